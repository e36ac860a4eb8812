"""One cell of the table: warm up, load, and count what it cost and what of it is in the ledger.

Invariant: a cell of a variant with a ledger is valid only if every row answered is in it afterwards.
"""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import msgspec

from bench import machine
from bench.load import Requests
from bench.variants import Running

SETTLE_SECONDS = 120.0
WARM_UP_SECONDS = 1.0
REST_SECONDS, REST_LOOKS = 0.2, 50


class Cell(msgspec.Struct, kw_only=True):
    """One measured run. Times in milliseconds, memory in MiB; CPU of the whole tree of processes, wrk's left out."""

    variant: str
    rows: int
    concurrency: int
    requests_per_second: float
    rows_per_second: float
    p50_ms: float
    p99_ms: float
    cpu_ms_per_request: float
    supervisor_cpu_ms_per_request: float | None
    """The supervisor's part while it was under load: mostly shipping. What was shipped afterwards is in `shipping`."""
    shipping_cpu_us_per_row: float | None
    """The supervisor's CPU from the first request until the last row was in the ledger, for each row."""
    rss_mib: float
    pss_mib: float
    answered_rows: int
    ledger_rows: int | None
    faults: list[str]


def measure(variant: str, running: Running, requests: Requests, *, rows: int, concurrency: int, seconds: float) -> Cell:
    """Run one cell."""
    requests.run(running.port, rows, concurrency, WARM_UP_SECONDS)
    processes = [pid for root in running.roots for pid in machine.tree(root)]
    _rest(processes)
    settle(running)
    recorded = count(running)
    ships = [] if running.supervisor is None else [running.supervisor]
    before, shipping_before = machine.cpu(processes), machine.cpu(ships)
    load = requests.run(running.port, rows, concurrency, seconds)
    after, shipping_after = machine.usage(processes), machine.cpu(ships)
    faults = []
    if load.bad or load.lost:
        faults.append(f"{load.bad} answers were no 200, {load.lost} did not come")
    if set(processes) != {pid for root in running.roots for pid in machine.tree(root)}:
        faults.append("processes ended or began during the run")
    if load.requests == 0:
        faults.append("no request was answered")
    answered = load.requests * rows
    now = shipped = None
    if running.ledger is not None and recorded is not None:
        settled = settle(running)
        now = (count(running) or 0) - recorded
        # Requests under way when wrk stopped were answered and recorded, but not counted by it.
        if not settled or not answered <= now <= answered + concurrency * rows:
            faults.append(f"{answered} rows were answered, {now} are in the ledger")
        shipped = (machine.cpu(ships) - shipping_before) * 1e6 / max(1, now)
    each = 1000 / max(1, load.requests)
    return Cell(
        variant=variant,
        rows=rows,
        concurrency=concurrency,
        requests_per_second=load.requests / load.seconds,
        rows_per_second=answered / load.seconds,
        p50_ms=load.p50,
        p99_ms=load.p99,
        cpu_ms_per_request=(after.cpu - before) * each,
        supervisor_cpu_ms_per_request=(shipping_after - shipping_before) * each if ships else None,
        shipping_cpu_us_per_row=shipped,
        rss_mib=after.rss / 2**20,
        pss_mib=after.pss / 2**20,
        answered_rows=answered,
        ledger_rows=now,
        faults=faults,
    )


def settle(running: Running) -> bool:
    """Wait until the spool is in the ledger whole; return whether it is."""
    if running.ledger is None or running.spool is None:
        return True
    end = time.monotonic() + SETTLE_SECONDS
    while _behind(running.ledger, running.spool):
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def count(running: Running) -> int | None:
    """Return how many exposures the ledger has."""
    if running.ledger is None:
        return None
    with closing(_reader(running.ledger)) as ledger:
        return int(ledger.execute("SELECT count(*) FROM exposures").fetchone()[0])


def _rest(processes: list[int]) -> None:
    """Wait until the requests that the warm-up left behind are done: their work belongs to no cell."""
    used = machine.cpu(processes)
    for _ in range(REST_LOOKS):
        time.sleep(REST_SECONDS)
        before, used = used, machine.cpu(processes)
        if used - before <= REST_SECONDS / 10:
            break


def _behind(path: Path, spool: Path) -> bool:
    with closing(_reader(path)) as ledger:
        shipped = dict(ledger.execute("SELECT name, shipped FROM segments").fetchall())
    for segment in spool.glob("*.jsonl"):
        try:
            if segment.stat().st_size > shipped.get(segment.name, 0):
                return True
        except FileNotFoundError:
            continue
    return False


def _reader(ledger: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{ledger}?mode=ro", uri=True, timeout=10)
