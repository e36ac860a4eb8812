"""A soak: steady load on a real server for a long time, after which its counters must be exact and its memory flat.

    soak.py [--minutes 30] [--rate 200] [--workers 2] [--out bench/results]

Every second the load sends `rate` requests over a few connections, most of one row, some of up to 50; now and then the share
changes. Each few seconds the memory of the server's processes is read. At the end the rows answered, the rows counted and the
rows in the ledger must be the same number, and the least-squares slope of the memory below the bound. Exits 1 if not.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
CONTENDER = Path(sys.executable).with_name("contender")
GRAPH = ROOT / "manifests/base/seldondeployment.yaml"
PREDICTIONS = "/api/v1.0/predictions"
NAMES = ["device_id", "phone_brand", "device_model"]
SAMPLE_SECONDS = 3.0
SHARE_SECONDS = 20.0
CONNECTIONS = 4
WARM_UP = 0.25
"""Part of the run whose memory is not judged: caches and the store's pages fill up first."""

SLOPE_BOUND = 1.0
"""MiB an hour for each process. Measured over half an hour, less is noise."""


@dataclass
class Memory:
    """One process: its resident MiB over time, and the slope after the warm-up."""

    pid: int
    seconds: list[float] = field(default_factory=list)
    mebibytes: list[float] = field(default_factory=list)

    def slope(self) -> float:
        """Return MiB an hour by least squares."""
        start = int(len(self.seconds) * WARM_UP)
        times, sizes = np.array(self.seconds[start:]), np.array(self.mebibytes[start:])
        return float(np.polyfit(times, sizes, 1)[0]) * 3600 if len(times) > 2 else 0.0


@dataclass
class Report:
    """What a run has shown."""

    minutes: float
    workers: int
    rate: float
    python: str = platform.python_version()
    processors: int = os.cpu_count() or 1
    requests: int = 0
    failed: int = 0
    rows_answered: int = 0
    rows_counted: int = 0
    rows_in_ledger: int = 0
    shares: list[str] = field(default_factory=list)
    latency_ms: dict[str, float] = field(default_factory=dict)
    memory: dict[str, dict[str, float]] = field(default_factory=dict)

    def exact(self) -> bool:
        return self.failed == 0 and self.rows_answered == self.rows_counted == self.rows_in_ledger

    def markdown(self) -> str:
        lines = [
            "# Soak",
            "",
            f"{self.minutes:g} minutes, {self.workers} worker(s), {self.rate:g} requests a second asked for, "
            f"{self.processors} processors, Python {self.python}.",
            "",
            "| figure | value |",
            "|---|---|",
            f"| requests | {self.requests} ({self.requests / self.minutes / 60:.0f} a second), {self.failed} failed |",
            f"| rows answered, counted, in the ledger | {self.rows_answered}, {self.rows_counted}, {self.rows_in_ledger} |",
            f"| changes of the share | {len(self.shares)} |",
            *(f"| latency, {name} | {value:.1f} ms |" for name, value in self.latency_ms.items()),
            "",
            "| process | first MiB | last MiB | slope, MiB an hour |",
            "|---|---|---|---|",
            *(f"| {name} | {m['first']:.1f} | {m['last']:.1f} | {m['slope']:+.2f} |" for name, m in self.memory.items()),
            "",
        ]
        return "\n".join(lines)


class Load:
    """One connection's share of the load. It counts what it was answered."""

    def __init__(self, port: int, rate: float, seed: int) -> None:
        self._port = port
        self._pause = 1 / rate
        self._chosen = random.Random(seed)
        self.requests = self.failed = self.rows = 0
        self.seconds: list[float] = []

    def run(self, until: float) -> None:
        """Send until this moment of the monotonic clock; a late request is followed at once by the next."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        due = time.monotonic()
        while due < until:
            time.sleep(max(0.0, due - time.monotonic()))
            due += self._pause
            rows = [self._row() for _ in range(self._chosen.choice((1, 1, 1, 1, 1, 1, 1, 2, 10, 50)))]
            body = json.dumps({"data": {"names": NAMES, "ndarray": rows}})
            started = time.perf_counter()
            connection.request("POST", PREDICTIONS, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            content = answer.read()
            self.seconds.append(time.perf_counter() - started)
            self.requests += 1
            if answer.status == 200:
                self.rows += len(json.loads(content)["data"]["ndarray"])
            else:
                self.failed += 1
        connection.close()

    def _row(self) -> list[object]:
        key = None if self._chosen.random() < 0.02 else str(self._chosen.randrange(1_000_000))
        return [key, self._chosen.choice(("小米", "三星", "华为", "?")), f"model {self._chosen.randrange(50)}"]


class Server:
    """A real `contender serve` on a home of its own."""

    def __init__(self, home: Path, workers: int) -> None:
        self.home = home
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        command = [
            str(CONTENDER),
            "serve",
            str(GRAPH),
            "--port",
            str(self.port),
            "--workers",
            str(workers),
            "--home",
            str(home),
        ]
        self.process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
        while self.get("/ready")[0] != 200:
            if self.process.poll() is not None:
                raise SystemExit(f"the server ended with {self.process.returncode}")
            time.sleep(0.1)

    def get(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except ConnectionError:
            return 0, ""
        finally:
            connection.close()

    def sum(self, name: str) -> int:
        """Return a metric's sum over its labels."""
        lines = self.get("/prometheus")[1].splitlines()
        return round(sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((name + "{", name + " "))))

    def contender(self, *arguments: str) -> str:
        environment = {**os.environ, "CONTENDER_HOME": str(self.home)}
        command = [str(CONTENDER), *arguments]
        return subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout

    def memory(self) -> dict[int, float]:
        """Return the resident MiB of the supervisor and its children, by pid."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if int((folder / "stat").read_text().rpartition(")")[2].split()[2]) == self.process.pid:
                    found[int(folder.name)] = (
                        int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
                    )
            except OSError:
                continue
        return found

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


@contextmanager
def every(seconds: float, action: Any, until: float) -> Iterator[None]:
    """Call `action` in a thread of its own, again and again until this moment."""

    def run() -> None:
        while time.monotonic() < until:
            action()
            time.sleep(max(0.0, min(seconds, until - time.monotonic())))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def soak(minutes: float, rate: float, workers: int) -> Report:
    report = Report(minutes, workers, rate)
    memories: dict[int, Memory] = {}
    chosen = random.Random(1)
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder) / "home", workers)
        started = time.monotonic()
        until = started + minutes * 60

        def sample() -> None:
            for pid, size in server.memory().items():
                memory = memories.setdefault(pid, Memory(pid))
                memory.seconds.append(time.monotonic() - started)
                memory.mebibytes.append(size)

        def change_share() -> None:
            share = f"{chosen.randrange(1, 50)}%"
            server.contender("share", share, "--reason", "soak")
            report.shares.append(share)

        loads = [Load(server.port, rate / CONNECTIONS, seed) for seed in range(CONNECTIONS)]
        try:
            with (
                every(SAMPLE_SECONDS, sample, until),
                every(SHARE_SECONDS, change_share, until),
                ThreadPoolExecutor(CONNECTIONS) as pool,
            ):
                for done in [pool.submit(load.run, until) for load in loads]:
                    done.result()
            end = time.monotonic() + 60
            while server.sum("contender_ledger_lag_bytes") and time.monotonic() < end:
                time.sleep(0.5)
            report.requests = sum(load.requests for load in loads)
            report.failed = sum(load.failed for load in loads)
            report.rows_answered = sum(load.rows for load in loads)
            report.rows_counted = server.sum("contender_rows_total")
            report.rows_in_ledger = sum(line != "" for line in server.contender("exposures", "--format", "jsonl").split("\n"))
        finally:
            server.stop()
    milliseconds = np.concatenate([load.seconds for load in loads]) * 1000
    report.latency_ms = {f"{q:g} %": float(np.percentile(milliseconds, q)) for q in (50, 99, 99.9)}
    for number, pid in enumerate(sorted(memories)):
        memory = memories[pid]
        name = "supervisor" if pid == server.process.pid else f"process {number}"
        report.memory[name] = {"first": memory.mebibytes[0], "last": memory.mebibytes[-1], "slope": memory.slope()}
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description="Steady load on a real server, then exact counters and flat memory.")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rate", type=float, default=200, help="requests a second")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results")
    options = parser.parse_args()
    report = soak(options.minutes, options.rate, options.workers)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "soak.json").write_text(json.dumps(asdict(report), indent=1) + "\n", encoding="utf-8")
    (options.out / "soak.md").write_text(report.markdown(), encoding="utf-8")
    sys.stdout.write(report.markdown())
    steepest = max(each["slope"] for each in report.memory.values())
    if not report.exact():
        sys.stderr.write("soak: the counters differ\n")
        return 1
    if options.minutes >= 30 and steepest > SLOPE_BOUND:
        sys.stderr.write(f"soak: memory grows by {steepest:.2f} MiB an hour; at most {SLOPE_BOUND} is allowed\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
