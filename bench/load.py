"""Load by wrk: the requests are made once, from the sample population, and every variant gets the same ones.

Invariant: an answer that isn't a 200, or none at all, makes the cell invalid; nothing is left out of a mean.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from serving.bundle import load_manifest
from training.population import population

PATH = "/api/v1.0/predictions"
CUSTOMERS = 20_000
BODIES = {1: 5_000, 100: 200}
"""Different requests of each size; wrk sends them in turn."""

# One body a line; wrk.format is paid once a body, not once a request.
SCRIPT = """
local requests, count, at = {}, 0, 0
function init(arguments)
  local headers = {["Content-Type"] = "application/json"}
  for line in io.lines(arguments[1]) do
    count = count + 1
    requests[count] = wrk.format("POST", "%s", headers, line)
  end
end
function request()
  at = at %% count + 1
  return requests[at]
end
function done(summary, latency)
  local e = summary.errors
  io.write(string.format('\\nRESULT {"requests":%%d,"us":%%d,"p50":%%d,"p99":%%d,"bad":%%d,"lost":%%d}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), e.status,
    e.connect + e.read + e.write + e.timeout))
end
"""


class Load(NamedTuple):
    """One run of wrk. `requests` were answered within `seconds`; `p50` and `p99` are milliseconds."""

    requests: int
    seconds: float
    p50: float
    p99: float
    bad: int
    """Answers other than 2xx and 3xx."""
    lost: int
    """Connections that failed, and answers that did not come in time."""


class Requests:
    """The request bodies in files, and wrk's script beside them."""

    def __init__(self, folder: Path, bundle: Path) -> None:
        self._folder = folder
        names, rows = population(load_manifest(bundle), CUSTOMERS, seed=11)
        self._script = folder / "load.lua"
        self._script.write_text(SCRIPT % PATH)
        self.first: dict[int, bytes] = {}
        for size, count in BODIES.items():
            bodies = [body(names, rows[i * size : (i + 1) * size]) for i in range(count)]
            self.first[size] = bodies[0]
            (folder / f"{size}.jsonl").write_bytes(b"\n".join(bodies))

    def bodies(self, rows: int) -> list[bytes]:
        """Return the requests of so many rows, in the order in which they are sent."""
        return (self._folder / f"{rows}.jsonl").read_bytes().split(b"\n")

    def run(self, port: int, rows: int, connections: int, seconds: float) -> Load:
        """Send requests of `rows` rows over `connections` connections for so many seconds."""
        whole = max(1, round(seconds))
        command = ["wrk", "--threads", "1", "--connections", str(connections), "--duration", f"{whole}s", "--timeout", "30s"]
        command += [
            "--latency",
            "--script",
            str(self._script),
            f"http://127.0.0.1:{port}",
            "--",
            f"{self._folder}/{rows}.jsonl",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=whole + 90)
        line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
        if line is None:
            raise RuntimeError(f"wrk gave no result: {done.stderr or done.stdout}")
        told = json.loads(line.removeprefix("RESULT "))
        spent = told["us"] / 1e6
        return Load(told["requests"], spent, told["p50"] / 1000, told["p99"] / 1000, told["bad"], told["lost"])


def body(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> bytes:
    """Return a request of Seldon's v1 protocol."""
    return orjson.dumps({"data": {"names": list(names), "ndarray": [list(row) for row in rows]}})
