"""Chromium without a window, spoken to over its pipe: opens a page, waits until it says so, and takes its picture.

Invariant: no port is opened, and the browser ends with the `with` block.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


def chromium() -> str | None:
    """Return Chromium's path, or None where it isn't installed."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


class Browser:
    """One page of one browser, spoken to by Chrome's DevTools protocol. `folder` holds the profile."""

    def __init__(self, program: str, folder: Path) -> None:
        reads, its_output = os.pipe()
        its_input, writes = os.pipe()
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe"]
        # The protocol wants descriptors 3 and 4, which a shell puts in place.
        shell = f'exec "$@" 3<&{its_input} 4>&{its_output}'
        self._process = subprocess.Popen(
            ["bash", "-c", shell, "chromium", program, *options, f"--user-data-dir={folder}", "about:blank"],
            pass_fds=(its_input, its_output),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(its_input)
        os.close(its_output)
        self._input, self._output = os.fdopen(writes, "wb", buffering=0), os.fdopen(reads, "rb")
        self._number = 0
        self._rest = b""
        self._session: str | None = None
        pages = self._ask("Target.getTargets")["targetInfos"]
        page = next(each["targetId"] for each in pages if each["type"] == "page")
        self._session = self._ask("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.terminate()
        self._process.wait(20)
        self._input.close()
        self._output.close()

    def _ask(self, method: str, **parameters: object) -> dict[str, Any]:
        self._number += 1
        message: dict[str, object] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._input.write(json.dumps(message).encode() + b"\0")
        while True:
            line, found, self._rest = self._rest.partition(b"\0")
            if not found:
                more = os.read(self._output.fileno(), 1 << 20)
                assert more, "the browser ended"
                self._rest = line + more
                continue
            answer: dict[str, Any] = json.loads(line)
            if answer.get("id") == self._number:
                assert "result" in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def open(self, url: str, width: int, height: int) -> None:
        """Go to a page, in a window of this size."""
        self._ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self._ask("Page.navigate", url=url)

    def evaluate(self, script: str) -> Any:
        """Return the value of a JavaScript expression on the page."""
        return self._ask("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def wait(self, script: str, seconds: float = 60) -> None:
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + seconds
        while self.evaluate(script) is not True:
            assert time.monotonic() < end, f"never true: {script}; the page says: {self.evaluate('document.body.innerText')}"
            time.sleep(0.2)

    def picture(self, path: Path) -> None:
        """Write what the window shows as PNG."""
        path.write_bytes(base64.b64decode(self._ask("Page.captureScreenshot", format="png")["data"]))
