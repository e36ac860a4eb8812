"""The store goes away, the spool or the disk fills: serving goes on, and each row answered is in the ledger or in a gap."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.clients import Load
from harness.server import Server
from ledger.store import Store

BOUND = 150_000
"""Bytes of a spool, or of a disk, that holds some 200 one-row requests."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server whose challenger has everybody, with little room: by the setting, or (parameter "disk") by its file system."""
    running = Server(tmp_path)
    with contextlib.ExitStack() as stack:
        if getattr(request, "param", "bound") == "disk":
            stack.enter_context(small_disk(running.home / "spool"))
        else:
            monkeypatch.setenv("CONTENDER_SPOOL_MAX_BYTES", str(BOUND))
        running.start()
        stack.callback(running.kill_group)
        assert running.contender("share", "100%").returncode == 0
        running.wait_epoch(2)
        yield running


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True)
    options = ["-t", "tmpfs", "-o", f"size={BOUND},mode=700", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(["mount", *options], check=False, capture_output=True).returncode != 0:
        pytest.skip("a small file system needs root and the right to mount")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextlib.contextmanager
def store_away(server: Server) -> Iterator[None]:
    """Lock the ledger for writers, as a stuck backup would."""
    with contextlib.closing(sqlite3.connect(server.home / "ledger.db", isolation_level=None)) as other:
        other.execute("PRAGMA busy_timeout = 30000")
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.execute("ROLLBACK")


def wait_for(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def unrecorded(server: Server) -> float:
    return server.metric("contender_unrecorded_rows_total")


def test_while_the_store_is_away_nothing_is_lost_and_the_lag_shows_and_drains(server: Server) -> None:
    with store_away(server):
        load = Load(server, 2)
        load.wait_answers(100)
        load.end()
        wait_for(lambda: server.metric("contender_ledger_lag_seconds") > 1, "the lag doesn't show")
        wait_for(lambda: server.metric("contender_ledger_errors_total") > 0, "the failure is not counted")
        print("lag", {name: server.metric(f"contender_ledger_lag_{name}") for name in ("bytes", "seconds")})
        assert server.metric("contender_ledger_lag_bytes") > 100 * len(load.answered)
    wait_for(lambda: server.metric("contender_ledger_lag_bytes") == 0, "the lag doesn't drain")
    assert server.metric("contender_ledger_lag_seconds") == 0
    assert (load.broken, load.failed, unrecorded(server)) == ([], [], 0)
    assert set(load.answered.values()) == {"challenger"}
    assert sorted(each["customer"] for each in server.exposures()) == sorted(load.answered)


@pytest.mark.parametrize("server", ["bound", "disk"], indirect=True)
def test_without_room_the_champion_serves_and_the_gap_is_in_the_ledger(server: Server) -> None:
    with store_away(server):
        load = Load(server, 4)
        wait_for(lambda: unrecorded(server) > 0, "the spool never fills")
        load.wait_answers(500)
    wait_for(lambda: recovered(load), "the challenger doesn't come back")
    load.end()
    assert (load.broken, load.failed) == ([], [])
    missed = unrecorded(server)
    assert server.stop() == 0
    assert not list((server.home / "spool").glob("*.jsonl"))
    store = Store.open(server.home / "ledger.db")
    recorded = {each.customer: each.reason for each in store.exposures("campaigns")}
    gaps = store.gaps("campaigns")
    store.close()
    print("rows", {"answered": len(load.answered), "recorded": len(recorded), "gaps": gaps})
    assert sum(rows for _, _, rows in gaps) == missed > 400
    assert len(recorded) + missed == len(load.answered)
    # Nobody got the challenger unrecorded, and whoever got the champion did so in a gap: the challenger has everybody here.
    # A request that began in the gap and ended after it is recorded, and says so.
    assert {key for key, reason in recorded.items() if reason == "hash"} == challenged(load)
    assert set(recorded.values()) <= {"hash", "unrecorded"}
    assert all(start < end for start, end, _ in gaps)


def challenged(load: Load) -> set[str]:
    return {key for key, arm in load.answered.items() if arm == "challenger"}


def recovered(load: Load) -> bool:
    """Tell whether some client's latest answer is the challenger's again."""
    return any(list(client.answered.values())[-1] == "challenger" for client in load.clients)
