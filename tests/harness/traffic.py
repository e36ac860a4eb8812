"""Steady traffic through the ingress that remembers every answer, and the comparison of what was answered with the ledger."""

from __future__ import annotations

import http.client
import json
import threading
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from harness.kube import PREDICTIONS, Kube, wait_until

NAMES = ["device_id", "phone_brand", "device_model"]


@dataclass
class Counts:
    """What became of the requests: complete answers by request id with their rows' arms, and those that failed."""

    sent: int = 0
    answered: dict[str, list[str]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    slowest_ms: float = 0.0

    @property
    def rows(self) -> int:
        return sum(len(arms) for arms in self.answered.values())


class Traffic:
    """Clients that each keep one connection and send requests of some rows at a steady pace until the block ends."""

    def __init__(self, kube: Kube, *, clients: int = 4, per_second: float = 5.0, rows: int = 3) -> None:
        """`per_second` is each client's pace; a client whose answer is late sends the next one at once."""
        self.counts = Counts()
        self._kube = kube
        self._pause = 1 / per_second
        self._rows = rows
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(number,)) for number in range(clients)]
        self._run = uuid.uuid4().hex[:12]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def run_for(self, seconds: float) -> None:
        time.sleep(seconds)

    def _send(self, client: int) -> None:
        connection: http.client.HTTPConnection | None = None
        number = 0
        while not self._stop.is_set():
            due = time.monotonic() + self._pause
            puid = f"{self._run}-{client}-{number}"
            number += 1
            if connection is None:
                connection = http.client.HTTPConnection(self._kube.host, self._kube.port, timeout=30)
            started = time.monotonic()
            try:
                connection.request("POST", PREDICTIONS, self._body(puid), {"Content-Type": "application/json"})
                answer = connection.getresponse()
                with answer:
                    body = answer.read()
                    self._note(puid, answer.status, body, time.monotonic() - started)
            except (OSError, http.client.HTTPException) as error:
                with self._lock:
                    self.counts.sent += 1
                    self.counts.failed.append(f"{puid}: {error!r}")
                connection.close()
                connection = None
            self._stop.wait(max(0.0, due - time.monotonic()))
        if connection is not None:
            connection.close()

    def _body(self, puid: str) -> bytes:
        rows = [[f"{puid}-{row}", "小米", "MI 2"] for row in range(self._rows)]
        return json.dumps({"data": {"names": NAMES, "ndarray": rows}, "meta": {"puid": puid}}).encode()

    def _note(self, puid: str, status: int, body: bytes, seconds: float) -> None:
        with self._lock:
            self.counts.sent += 1
            self.counts.slowest_ms = max(self.counts.slowest_ms, seconds * 1000)
            if status != 200:
                self.counts.failed.append(f"{puid}: {status} {body[:300]!r}")
                return
            data: dict[str, Any] = json.loads(body)["data"]
            at = data["names"].index("arm")
            self.counts.answered[puid] = [row[at] for row in data["ndarray"]]


def missing_rows(kube: Kube, counts: Counts, timeout_s: float = 60) -> int:
    """Return how many answered rows the ledger still lacks once it has stopped growing, or `timeout_s` later."""
    prefix = next(iter(counts.answered)).partition("-")[0]

    def kept() -> dict[str, int]:
        found = kube.sql(f"SELECT puid, count(DISTINCT row) FROM exposures WHERE puid LIKE '{prefix}-%' GROUP BY puid")
        return {puid: int(rows) for puid, rows in found}

    def lacking() -> int:
        there = kept()
        return sum(max(0, len(arms) - there.get(puid, 0)) for puid, arms in counts.answered.items())

    end = time.monotonic() + timeout_s
    while (left := lacking()) and time.monotonic() < end:
        time.sleep(1)
    return left


def wait_shipped(kube: Kube, pods: list[str]) -> None:
    """Wait until no engine has anything left to ship."""
    wait_until(lambda: all(kube.metric(pod, "contender_ledger_lag_bytes") == 0 for pod in pods), 60, "every spool shipped")
