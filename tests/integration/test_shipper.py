"""From the spool to the store: nothing acknowledged is lost, whoever dies, and nothing is there twice."""

from __future__ import annotations

import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from ledger import spool as spool_module
from ledger.errors import SpoolError, StoreUnavailable
from ledger.records import EpochRecord, ExposureBatch, Record, row_id, timestamp, uuid7
from ledger.shipper import Shipper
from ledger.spool import Spool, segments
from ledger.sqlite import SqliteFile
from ledger.store import Store

WORKERS = 20

APPEND = """
import os, random, sys, time
from pathlib import Path
from ledger.records import ExposureBatch, uuid7
from ledger.spool import Spool

folder, limit, pause = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[4])
spool = Spool(folder, segment_bytes=int(sys.argv[3]))
for _ in range(limit):
    if pause:
        time.sleep(pause)
    count = random.randint(1, 4)
    batch = ExposureBatch(
        id=uuid7(), puid="p", at="2026-03-01T00:00:00.000000Z", test="t", epoch=1, latency_ms=1.0,
        customers=["c"] * count, buckets=[1] * count, assigned=["champion"] * count, served=["champion"] * count,
        reasons=["hash"] * count, propensities=[0.9] * count, digests=["d"] * count, scores={}, decision={},
        inputs={"names": ["text"], "rows": [["x" * random.randint(0, 3000)]] * count},
    )
    spool.append(batch.encode())
    os.write(1, f"{batch.id} {count}\\n".encode())
"""

SHIP = """
import sys
from pathlib import Path
from ledger.errors import StoreUnavailable
from ledger.shipper import Shipper
from ledger.store import Store

shipper = Shipper(Path(sys.argv[1]), Store.open(Path(sys.argv[2])), batch_bytes=20_000)
print("ready", flush=True)
while True:
    try:
        shipper.ship()
    except StoreUnavailable:
        pass
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def store(ledger: Path) -> Iterator[Store]:
    with closing(Store.open(ledger)) as opened:
        yield opened


def appender(folder: Path, output: Path, limit: int, segment_bytes: int, pause: float = 0) -> subprocess.Popen[bytes]:
    """Start a worker that appends `limit` batches, and after each writes its id and row count to `output`."""
    command = [sys.executable, "-c", APPEND, folder, limit, segment_bytes, pause]
    with output.open("wb") as acks:
        return subprocess.Popen(list(map(str, command)), stdout=acks)


def shipper_process(folder: Path, ledger: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", SHIP, str(folder), str(ledger)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def acknowledged(output: bytes) -> set[str]:
    """Return the row ids of all batches whose acknowledgement came through whole."""
    pairs = [line.split() for line in output.decode().splitlines(keepends=True) if line.endswith("\n")]
    return {row_id(batch, row) for batch, count in pairs for row in range(int(count))}


def stored(store: Store) -> set[str]:
    return {each.id for each in store.exposures()}


def batch(count: int = 1) -> ExposureBatch:
    return ExposureBatch(
        id=uuid7(),
        puid="p",
        at="2026-03-01T00:00:00.000000Z",
        test="t",
        epoch=1,
        latency_ms=1.0,
        customers=["c"] * count,
        buckets=[1] * count,
        assigned=["champion"] * count,
        served=["champion"] * count,
        reasons=["hash"] * count,
        propensities=[0.9] * count,
        digests=["d"] * count,
        scores={},
        decision={},
    )


def test_whatever_was_acknowledged_before_kill_9_is_in_the_store(folder: Path, store: Store) -> None:
    """Worker after worker, each killed at any moment of its work, and shipped when two segments are left."""
    chosen = random.Random(5)
    shipper = Shipper(folder, store)
    output = folder.with_name("worker")
    acks: set[str] = set()
    for number in range(WORKERS):
        worker = appender(folder, output, 10**9, 200_000)
        while not output.stat().st_size:
            assert worker.poll() is None
            time.sleep(0.001)
        time.sleep(chosen.random() * 0.02)
        worker.kill()
        assert worker.wait(10) == -signal.SIGKILL
        acks |= acknowledged(output.read_bytes())
        if number % 2:
            shipper.ship()
            assert not segments(folder)
    found = stored(store)
    assert acks <= found
    # A worker may die between its write and its acknowledgement, with one batch of at most four rows.
    assert len(found - acks) <= 4 * WORKERS
    assert len(acks) > 300


def test_appenders_and_two_shippers_at_once_lose_and_double_nothing(folder: Path, ledger: Path, store: Store) -> None:
    """Segments of some ten lines, so that shippers race with each other and with workers for hundreds of them."""
    outputs = [folder.with_name(f"worker-{number}") for number in range(2)]
    other = shipper_process(folder, ledger)
    try:
        workers = [appender(folder, output, 1500, 20_000, 0.0002) for output in outputs]
        shipper = Shipper(folder, store, batch_bytes=5000)
        done = 0
        while any(worker.poll() is None for worker in workers) or segments(folder):
            done += shipper.ship().segments_done
        assert [worker.wait() for worker in workers] == [0, 0]
    finally:
        other.kill()
        other.communicate()
    acks = acknowledged(outputs[0].read_bytes()) | acknowledged(outputs[1].read_bytes())
    assert stored(store) == acks
    assert len(acks) > 3000
    assert done > 10, "this shipper hardly finished a segment, so nothing was raced for"


def test_a_shipper_killed_at_any_moment_is_continued_by_the_next(folder: Path, ledger: Path, store: Store) -> None:
    chosen = random.Random(6)
    output = folder.with_name("worker")
    assert appender(folder, output, 3000, 100_000).wait(60) == 0
    kills = 0
    while segments(folder) and kills < 6:
        process = shipper_process(folder, ledger)
        time.sleep(chosen.random() * 0.03)
        process.kill()
        process.communicate()
        kills += 1
    report = Shipper(folder, store).ship()
    assert not segments(folder)
    assert report.skipped_lines == 0
    assert stored(store) == acknowledged(output.read_bytes())
    assert kills > 1


def test_a_live_segment_is_shipped_up_to_its_last_whole_line_as_it_grows(folder: Path, store: Store) -> None:
    spool, shipper = Spool(folder), Shipper(folder, store)
    (path,) = segments(folder)
    assert shipper.ship().rows == 0
    spool.append(batch(2).encode())
    spool.append(batch(3).encode())
    assert [shipper.ship().rows, shipper.ship().rows] == [5, 0]
    half, rest = batch(4).encode()[:100], batch(4).encode()[100:]
    with path.open("ab") as file:
        file.write(half)
    report = shipper.ship()
    assert (report.rows, report.skipped_lines, report.bytes_behind) == (0, 0, 100)
    with path.open("ab") as file:
        file.write(rest + b"\n")
    assert shipper.ship().rows == 4
    assert segments(folder) == [path]
    spool.close()
    report = shipper.ship()
    assert (report.rows, report.segments_done, report.bytes_behind) == (0, 1, 0)
    assert not segments(folder)
    assert len(stored(store)) == 9


def test_a_segment_that_a_shipper_deletes_before_its_worker_has_locked_it_is_made_anew(
    folder: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = spool_module.lock_segment

    def after_a_pass(fd: int) -> bool:
        monkeypatch.undo()
        assert Shipper(folder, store).ship().segments_done == 1
        return locked(fd)

    monkeypatch.setattr(spool_module, "lock_segment", after_a_pass)
    spool = Spool(folder)
    spool.append(batch().encode())
    assert Shipper(folder, store).ship().rows == 1
    spool.close()


def test_what_a_worker_writes_last_while_its_segment_is_shipped_is_not_deleted(folder: Path, ledger: Path) -> None:
    spool = Spool(folder)
    spool.append(batch().encode())

    class Interrupted(Store):
        def write(self, records: Iterable[Record], shipped: tuple[str, int] | None = None) -> int:
            new = super().write(records, shipped)
            if len(stored(self)) == 1:
                spool.append(batch().encode())
                spool.close()
            return new

    with closing(Interrupted(SqliteFile(ledger))) as store:
        shipper = Shipper(folder, store)
        assert [shipper.ship().segments_done, shipper.ship().segments_done] == [0, 1]
        assert len(stored(store)) == 2


def test_a_torn_tail_of_a_dead_worker_is_skipped_and_counted(
    folder: Path, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    spool, shipper = Spool(folder), Shipper(folder, store)
    (path,) = segments(folder)
    spool.append(batch().encode())
    spool.close()
    with path.open("ab") as file:
        file.write(batch().encode()[:50])
    report = shipper.ship()
    assert (report.rows, report.segments_done, report.skipped_lines) == (1, 1, 1)
    assert "torn off after 50 bytes" in caplog.text
    assert not segments(folder)


def test_lines_that_can_not_be_read_are_skipped_and_counted(
    folder: Path, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool(folder)
    at = timestamp(datetime.now(UTC))
    epoch = EpochRecord(test="t", epoch=1, actor="ann", reason="r", at=at, document='{"epoch":1}')
    for line in (batch(2).encode(), b'{"kind":"from the future"}', b"\0\0\0", b"", epoch.encode(), b"{", batch(3).encode()):
        spool.append(line)
    spool.close()
    report = Shipper(folder, store).ship()
    assert (report.rows, report.skipped_lines, report.segments_done) == (5, 4, 1)
    assert "4 lines" in caplog.text
    assert "from the future" in caplog.text
    assert store.current_epoch("t") == b'{"epoch":1}'


def test_a_line_larger_than_a_transaction_is_shipped_whole(folder: Path, store: Store) -> None:
    spool = Spool(folder)
    for count in (1, 500, 1):
        spool.append(batch(count).encode())
    spool.close()
    assert Shipper(folder, store, batch_bytes=100).ship().rows == 502


def test_while_the_store_is_locked_nothing_is_lost_and_the_lag_is_told(folder: Path, ledger: Path) -> None:
    with closing(Store(SqliteFile(ledger, busy_seconds=0.05))) as store, closing(sqlite3.connect(ledger)) as other:
        shipper = Shipper(folder, store)
        assert shipper.lag().bytes == 0
        assert shipper.lag().seconds == 0
        for worker in range(2):
            spool = Spool(folder)
            for _ in range(worker + 1):
                spool.append(batch().encode())
            spool.close()
        other.execute("BEGIN IMMEDIATE")
        time.sleep(0.05)
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                shipper.ship()
        lag = shipper.lag()
        assert lag.bytes == sum(path.stat().st_size for path in segments(folder))
        assert 0.05 <= lag.seconds < 60
        other.rollback()
        report = shipper.ship()
        assert (report.rows, report.segments_done) == (3, 2)
        assert (report.bytes_behind, report.seconds_behind) == (0, 0)


def test_the_lag_is_the_age_of_the_oldest_record_not_shipped(folder: Path, store: Store) -> None:
    spool, shipper = Spool(folder), Shipper(folder, store)
    hour_ago, minute_ago = (f"{int((time.time() - ago) * 1000):012x}" for ago in (3600, 60))
    old, newer = (
        msgspec.structs.replace(batch(), id=f"{each[:8]}-{each[8:]}{uuid7()[13:]}") for each in (hour_ago, minute_ago)
    )
    spool.append(old.encode())
    spool.append(newer.encode())
    assert 3600 <= shipper.lag().seconds < 3660
    assert shipper.ship().seconds_behind == 0
    spool.append(newer.encode())
    assert 60 <= shipper.lag().seconds < 120
    spool.close()


def test_the_next_shipper_goes_on_where_the_last_one_was(folder: Path, store: Store) -> None:
    spool = Spool(folder)
    (path,) = segments(folder)
    spool.append(batch().encode())
    assert Shipper(folder, store).ship().rows == 1
    shipped = path.stat().st_size
    assert store.shipped(path.name) == shipped
    with path.open("r+b") as file:
        file.write(b"#" * (shipped - 1))
    spool.append(batch(2).encode())
    report = Shipper(folder, store).ship()
    assert (report.rows, report.skipped_lines) == (2, 0)
    spool.close()


def test_a_pass_ends_even_if_a_segment_grows_faster_than_it_is_shipped(folder: Path, ledger: Path) -> None:
    spool = Spool(folder)

    class Overrun(Store):
        def write(self, records: Iterable[Record], shipped: tuple[str, int] | None = None) -> int:
            for _ in range(2 if spool.size < 50_000 else 0):
                spool.append(batch().encode())
            return super().write(records, shipped)

    spool.append(batch().encode())
    spool.append(batch().encode())
    with closing(Overrun(SqliteFile(ledger))) as store:
        report = Shipper(folder, store, batch_bytes=100).ship()
    assert report.rows == 2
    assert report.bytes_behind > 0
    spool.close()


def test_a_segment_that_comes_back_after_it_was_finished_adds_nothing(folder: Path, ledger: Path, store: Store) -> None:
    """As after a power cut that undid the deletion."""
    spool = Spool(folder)
    spool.append(batch(3).encode())
    spool.close()
    (path,) = segments(folder)
    copy = shutil.copy(path, folder.parent / "copy")
    assert Shipper(folder, store).ship().rows == 3
    shutil.copy(copy, path)
    report = Shipper(folder, store).ship()
    assert (report.rows, report.segments_done) == (0, 1)
    assert len(stored(store)) == 3
    with closing(sqlite3.connect(ledger)) as connection:
        assert connection.execute("SELECT count(*) FROM segments").fetchone() == (0,)


def test_one_segment_that_can_not_be_read_does_not_stop_the_others(folder: Path, store: Store) -> None:
    folder.mkdir()
    (folder / "0-first.jsonl").mkdir()
    spool = Spool(folder)
    spool.append(batch(2).encode())
    with pytest.raises(SpoolError, match=r"0-first\.jsonl: Is a directory"):
        Shipper(folder, store).ship()
    assert len(stored(store)) == 2
    spool.close()


def test_a_missing_spool_is_an_empty_one(folder: Path, store: Store) -> None:
    assert Shipper(folder, store).ship().rows == 0
