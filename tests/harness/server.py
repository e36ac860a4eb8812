"""A real server process with a home and manifests of its own, and what tests ask of it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from harness.ports import free_port

ROOT = Path(__file__).parents[2]
CONTENDER = Path(sys.executable).with_name("contender")
PREDICTIONS = "/api/v1.0/predictions"


class Answer(NamedTuple):
    """One HTTP answer; header names in lower case."""

    status: int
    body: bytes
    headers: dict[str, str]


class Server:
    """A real `contender serve` process on a home and a copy of the shipped manifests of its own."""

    def __init__(self, folder: Path, *, workers: int = 1) -> None:
        self.home = folder / "home"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.workers = workers
        self.log = folder / "log"
        self.rules = folder / "campaigns.yaml"
        base = ROOT / "manifests/base"
        shutil.copy(base / "campaigns.yaml", self.rules)
        shutil.copy(base / "experiment.yaml", folder)
        self.graph = folder / "seldondeployment.yaml"
        text = (base / "seldondeployment.yaml").read_text(encoding="utf-8")
        self.graph.write_text(text.replace("manifests/base/campaigns.yaml", str(self.rules)), encoding="utf-8")
        self.cwd = ROOT
        self.environment: dict[str, str] = {}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            CONTENDER,
            "serve",
            self.graph,
            "--port",
            str(self.port),
            "--workers",
            str(self.workers),
            "--home",
            self.home,
        ]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                list(map(str, command)),
                cwd=self.cwd,
                env={**os.environ, **self.environment},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until the server answers; fail with its own words if it ends."""
        end = time.monotonic() + 60
        while time.monotonic() < end:
            assert self.process is not None
            if self.process.poll() is not None:
                pytest.fail(f"the server ended with {self.process.returncode}: {self.log.read_text()}")
            try:
                if self.get("/ready")[0] == 200:
                    return
            except OSError:
                time.sleep(0.05)
        pytest.fail(f"the server was not ready in time: {self.log.read_text()}")

    def stop(self, signum: int = signal.SIGTERM) -> int:
        """Signal the supervisor and return its exit code, with nobody of its group left behind."""
        assert self.process is not None
        self.process.send_signal(signum)
        code = self.process.wait(30)
        if signum == signal.SIGKILL:
            self.kill_group()
        return code

    def kill_group(self) -> None:
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)

    def request(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return Answer(answer.status, answer.read(), {k.lower(): v for k, v in answer.getheaders()})
        finally:
            connection.close()

    def get(self, path: str) -> Answer:
        return self.request("GET", path)

    def post(self, message: object, headers: dict[str, str] | None = None) -> Answer:
        body = message if isinstance(message, bytes) else json.dumps(message).encode()
        return self.request("POST", PREDICTIONS, body, {"Content-Type": "application/json", **(headers or {})})

    def predict(self, names: list[str], rows: list[list[object]], headers: dict[str, str] | None = None) -> dict[str, Any]:
        answer = self.post({"data": {"names": names, "ndarray": rows}}, headers)
        assert answer.status == 200, answer.body
        parsed: dict[str, Any] = json.loads(answer.body)
        return parsed

    def contender(self, *arguments: object, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command on this server's home."""
        command = [str(CONTENDER), *map(str, arguments)]
        environment = {**os.environ, "CONTENDER_HOME": str(self.home), "COLUMNS": "200"}
        return subprocess.run(
            command, cwd=ROOT, env=environment, input=stdin, capture_output=True, text=True, timeout=120, check=False
        )

    def exposures(self) -> list[dict[str, Any]]:
        done = self.contender("exposures", "--format", "jsonl")
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.split("\n") if line]

    def epoch(self) -> int:
        """Return the epoch in use at every worker, by metric."""
        return int(self.metric('contender_epoch{test="campaigns"}'))

    def metric(self, series: str) -> float:
        text = self.get("/prometheus").body.decode()
        for line in text.splitlines():
            if line.startswith(series + " "):
                return float(line.rpartition(" ")[2])
        return 0.0

    def wait_epoch(self, number: int) -> None:
        end = time.monotonic() + 10
        while self.epoch() != number:
            assert time.monotonic() < end, f"epoch {number} was not taken over"
            time.sleep(0.02)
