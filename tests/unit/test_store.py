"""The store: records exist once, epochs have one writer each, and several processes share one file."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Dialect
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

from harness.records import exposures
from ledger import sqlite as sqlite_module
from ledger import store as store_module
from ledger.errors import BrokenRecord, EpochConflict, StoreError, StoreUnavailable
from ledger.records import EpochRecord, Exposure, ExposureBatch, Gap, PairBatch, timestamp, uuid7
from ledger.retention import AGAIN_SECONDS, LOOK_SECONDS, Housekeeping, Retention
from ledger.schema import EXPOSURES, METADATA
from ledger.sqlite import SqliteFile
from ledger.store import Store
from router.assignment import bucket

START = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with closing(Store.open(path)) as opened:
        yield opened


def batch(count: int = 1, *, at: datetime = START, test: str = "campaigns", inputs: bool = False) -> ExposureBatch:
    fields: dict[str, Any] = {} if inputs else {"inputs": None}
    return exposures(count, id=uuid7(), at=timestamp(at), test=test, **fields)


def document(epoch: int, **content: Any) -> bytes:
    return orjson.dumps({"test": "t", "epoch": epoch, **content})


def set_epoch(store: Store, epoch: int, **content: Any) -> bool:
    return store.set_epoch("t", epoch, document(epoch, **content), "ann", "because", timestamp(START))


def table(path: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()


def test_the_columns_are_an_exposures_fields_in_their_order(store: Store, path: Path) -> None:
    names = list(Exposure.__struct_fields__)
    assert [column.name for column in EXPOSURES.columns] == names
    assert [row[1] for row in table(path, "PRAGMA table_info(exposures)")] == names


def test_the_tables_are_also_postgresqls() -> None:
    dialect: Dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    made = [str(CreateTable(each).compile(dialect=dialect)) for each in METADATA.sorted_tables]
    assert any("CREATE TABLE exposures" in each and "PARTITION BY RANGE (id)" in each for each in made)


def test_what_is_written_is_what_is_read(store: Store, path: Path) -> None:
    made = batch(2, inputs=True)
    assert store.write([made]) == 2
    first, second = store.exposures()
    assert first == Exposure(
        id=made.id,
        puid="p",
        row=0,
        at="2026-03-01T00:00:00.000000Z",
        test="campaigns",
        epoch=1,
        customer="customer-0",
        bucket=0,
        assigned="challenger",
        served="champion",
        reason="fallback:error",
        propensity=0.1,
        scores={"age": 30.5},
        decision={"campaigns": "1,2"},
        digest="d" * 64,
        latency_ms=1.25,
    )
    assert (second.row, second.customer) == (1, "customer-1")
    assert table(path, "SELECT * FROM inputs ORDER BY exposure") == [
        (first.id, '{"brand":"小米","events":0}'),
        (second.id, '{"brand":"小米","events":1}'),
    ]


def test_exposures_come_in_order_over_many_pages(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "PAGE_ROWS", 7)
    batches = [batch(count) for count in (1, 5, 8, 14, 0, 3, 4)]
    assert store.write(reversed(batches)) == 35
    found = [each.id for each in store.exposures()]
    assert found == [row[0] for made in batches for row in made.rows()]


def test_exposures_of_one_test_and_since_a_time(store: Store) -> None:
    hours = [START + timedelta(hours=hour) for hour in range(6)]
    store.write(batch(at=hour, test=test) for hour in hours for test in ("a", "b"))

    def found(**wanted: Any) -> list[tuple[str, str]]:
        return [(each.test, each.at[11:13]) for each in store.exposures(**wanted)]

    assert found(test="a", since=hours[4]) == [("a", "04"), ("a", "05")]
    assert len(found(test="b")) == 6
    assert found(since=hours[5]) == [("a", "05"), ("b", "05")]
    assert found(since=hours[5] + timedelta(microseconds=1)) == []
    assert found(test="none") == []
    with pytest.raises(ValueError, match="no time zone"):
        found(since=datetime(2026, 3, 1))


def test_since_finds_all_after_a_clock_was_set_back(store: Store) -> None:
    """Ids go on rising, times don't: neither order may hide a row."""
    times = [START + timedelta(minutes=minute) for minute in (60, 61, 0, 1, 62)]
    store.write(batch(at=time) for time in times)
    found = [each.at[14:16] for each in store.exposures(since=START + timedelta(minutes=1))]
    assert found == ["00", "01", "01", "02"]


def test_pairs_and_gaps_are_kept_once(store: Store) -> None:
    made = batch(2)
    pairs = PairBatch(id=made.id, arm="challenger", digest="d", row=[1], scores={"age": [30.5]})
    gap = Gap(id=uuid7(), test="t", start=timestamp(START), end=timestamp(START + timedelta(seconds=1)), rows=7)
    for _ in range(2):
        store.write([pairs, made, gap])
    assert store.pairs() == [([each.id for each in store.exposures()][1], "challenger", "d", {"age": 30.5})]
    assert store.gaps("t") == [("2026-03-01T00:00:00.000000Z", "2026-03-01T00:00:01.000000Z", 7)]
    assert store.gaps("another") == []


RECORDED = [batch(3, inputs=True), batch(1), batch(2, test="other"), batch(5, inputs=True), batch(0)]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.sampled_from(RECORDED), max_size=6), max_size=6))
def test_whatever_is_written_again_in_whatever_order_the_tables_are_the_same(transactions: list[list[ExposureBatch]]) -> None:
    with TemporaryDirectory() as folder, closing(Store.open(Path(folder) / "ledger.db")) as store:
        new = sum(store.write(records) for records in transactions)
        seen = {made.id for records in transactions for made in records}
        expected = [row for made in RECORDED if made.id in seen for row in made.rows()]
        assert table(Path(folder) / "ledger.db", "SELECT * FROM exposures ORDER BY id") == expected
        assert new == len(expected)
        inputs = [row for made in RECORDED if made.id in seen for row in made.input_rows()]
        assert table(Path(folder) / "ledger.db", "SELECT * FROM inputs ORDER BY exposure") == inputs


def test_epochs_follow_each_other(store: Store) -> None:
    assert store.current_epoch("t") is None
    assert store.tests() == []
    assert set_epoch(store, 1)
    assert set_epoch(store, 2, kill=True)
    assert store.set_epoch("another", 1, b"{}", "ann", "r", timestamp(START))
    assert store.current_epoch("t") == document(2, kill=True)
    assert store.epochs("t") == [document(1), document(2, kill=True)]
    assert store.epochs("none") == []
    assert store.tests() == ["another", "t"]


@pytest.mark.parametrize(("there", "wanted", "found"), [(0, 2, 0), (2, 2, 2), (3, 2, 3), (1, 3, 1)])
def test_an_epoch_made_on_top_of_another_than_the_newest_is_refused(store: Store, there: int, wanted: int, found: int) -> None:
    for epoch in range(1, there + 1):
        set_epoch(store, epoch)
    with pytest.raises(EpochConflict, match=f"on top of epoch {wanted - 1}, but epoch {found} is the newest") as caught:
        set_epoch(store, wanted, by="somebody else")
    assert (caught.value.expected, caught.value.found) == (wanted - 1, found)
    assert store.epochs("t") == [document(epoch) for epoch in range(1, there + 1)]


def test_the_same_content_again_changes_nothing(store: Store) -> None:
    assert set_epoch(store, 1, a=1, b=2)
    assert set_epoch(store, 2)
    assert not set_epoch(store, 1, b=2, a=1)
    assert len(store.epochs("t")) == 2


def test_an_epoch_must_be_an_object(store: Store) -> None:
    with pytest.raises(BrokenRecord, match="epoch 1 of test t"):
        store.set_epoch("t", 1, b"[]", "ann", "r", timestamp(START))


def test_an_epoch_from_a_spool_is_kept_unless_its_number_has_other_content(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    def accepted(epoch: int, **content: Any) -> EpochRecord:
        text = document(epoch, **content).decode()
        return EpochRecord(test="t", epoch=epoch, actor="ann", reason="r", at=timestamp(START), document=text)

    assert store.write([accepted(4), accepted(4), accepted(7)]) == 0
    assert caplog.records == []
    store.write([accepted(4, kill=True), batch()])
    assert "another epoch 4 than the ledger's" in caplog.text
    assert store.epochs("t") == [document(4), document(7)]
    assert len(list(store.exposures())) == 1


RACE = """
import json, sys
from pathlib import Path
from ledger.errors import EpochConflict
from ledger.store import Store

path, name, rounds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
store = Store.open(path)
lost = made = 0
while made < rounds:
    current = store.current_epoch("t")
    number = 1 + (0 if current is None else json.loads(current)["epoch"])
    try:
        document = json.dumps({"test": "t", "epoch": number, "by": name, "round": made}).encode()
        store.set_epoch("t", number, document, name, "race", "2026-03-01T00:00:00.000000Z")
        made += 1
    except EpochConflict:
        lost += 1
print(lost)
"""


def test_writers_in_several_processes_never_share_a_number(path: Path) -> None:
    """They make and open the file at the same moment, too."""
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    writers = [subprocess.Popen([sys.executable, "-c", RACE, str(path), f"writer-{n}", "25"], **pipes) for n in range(4)]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.flush()
    lost = sum(int(writer.communicate(timeout=60)[0]) for writer in writers)
    assert [writer.returncode for writer in writers] == [0, 0, 0, 0]
    with closing(Store.open(path)) as store:
        epochs = [orjson.loads(each) for each in store.epochs("t")]
    assert [each["epoch"] for each in epochs] == list(range(1, 101))
    assert len({(each["by"], each["round"]) for each in epochs}) == 100
    assert lost > 0, "nobody was ever second, so nothing was raced for"


def test_the_change_counter_tells_of_others_commits_only(store: Store, path: Path) -> None:
    before = store.change_counter()
    set_epoch(store, 1)
    assert store.change_counter() == before
    with closing(Store.open(path)) as other:
        assert store.change_counter() == before
        set_epoch(other, 2)
    assert store.change_counter() != before


def test_a_locked_store_is_unavailable_and_nothing_is_written(path: Path) -> None:
    with closing(Store(SqliteFile(path, busy_seconds=0.05))) as store, closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN IMMEDIATE")
        for attempt in (lambda: store.write([batch()]), lambda: set_epoch(store, 1), lambda: store.finish_segment("s")):
            with pytest.raises(StoreUnavailable, match=r"ledger\.db: .*locked"):
                attempt()
        assert list(store.exposures()) == []
        other.rollback()
        assert store.write([batch()]) == 1


def test_a_new_file_is_waited_for_while_another_process_makes_it(path: Path) -> None:
    """SQLite answers "locked" at once to whoever switches a file to WAL while another writes it in its first mode."""
    with closing(sqlite3.connect(path, check_same_thread=False)) as other:
        other.execute("CREATE TABLE first (a)")
        other.execute("BEGIN IMMEDIATE")
        other.execute("INSERT INTO first VALUES (1)")
        timer = threading.Timer(0.2, other.commit)
        timer.start()
        with closing(Store.open(path)) as store:
            assert store.write([batch()]) == 1
        timer.join()
    with closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreUnavailable, match="locked"):
            SqliteFile(path, busy_seconds=0.05)


def test_a_failed_transaction_leaves_nothing_of_itself(store: Store) -> None:
    def records() -> Iterator[ExposureBatch]:
        yield batch(3)
        yield msgspec.structs.replace(batch(2), customers=[{"not": "text"}, None])

    with pytest.raises(sqlite3.ProgrammingError):
        store.write(records(), ("segment", 10))
    assert list(store.exposures()) == []
    assert store.shipped("segment") == 0
    assert store.write([batch()]) == 1


def test_a_file_that_is_no_database_is_unavailable(path: Path) -> None:
    path.write_bytes(b"not a database" * 1000)
    with pytest.raises(StoreUnavailable, match=r"ledger\.db: file is not a database"):
        Store.open(path)


def test_a_folder_that_can_not_be_made_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match="file"):
        Store.open(tmp_path / "file" / "ledger.db")


def test_a_file_moved_away_takes_nothing_until_it_is_back(store: Store, path: Path) -> None:
    """SQLite itself would go on writing into the file without a name, and what is shipped there would be lost."""
    away = path.with_name("away")
    path.rename(away)
    with pytest.raises(StoreUnavailable, match=r"ledger\.db"):
        store.write([batch()])
    path.write_bytes(b"")
    with pytest.raises(StoreUnavailable, match="replaced while it was open"):
        store.write([batch()])
    away.rename(path)
    assert store.write([batch()]) == 1


def test_progress_through_a_segment_only_grows_until_it_is_finished(store: Store, path: Path) -> None:
    assert store.shipped("a") == 0
    store.write([], ("a", 100))
    store.write([], ("b", 5))
    store.write([], ("a", 50))
    assert (store.shipped("a"), store.shipped("b")) == (100, 5)
    store.finish_segment("a")
    assert table(path, "SELECT * FROM segments") == [("b", 5)]


def test_buckets_are_computed_in_sql(store: Store) -> None:
    assert store.bucket("campaigns-1", "小米") == bucket("campaigns-1", "小米") == 6165
    store.write([msgspec.structs.replace(batch(2), customers=["1", None], buckets=[8199, None])])
    with store._database.available():
        rows = store._connection.exec_driver_sql(
            "SELECT contender_bucket('campaigns-1', customer), bucket FROM exposures"
        ).all()
    assert [tuple(row) for row in rows] == [(8199, 8199), (None, None)]


def test_old_records_are_deleted_in_small_transactions(store: Store, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_module, "PRUNE_ROWS", 3)
    batches = [exposures(4, days_ago=ago) for ago in (0, 1, 9, 10, 11, 40)]
    pairs = [PairBatch(id=each.id, arm=arm, digest="d", row=[0, 1], scores={}) for each in batches for arm in "ab"]
    store.write([*batches, *pairs])

    def rows() -> list[int]:
        return [store.extents()[name].rows for name in ("inputs", "exposures", "pairs")]

    assert store.prune(Retention()) == (0, 0, False)
    done = store.prune(Retention(inputs=10), seconds=0)
    assert (done, rows()) == ((3, 0, True), [21, 24, 24])
    assert store.prune(Retention(inputs=10)) == (5, 0, False)
    assert store.prune(Retention(inputs=10, exposures=30)) == (8, 0, False)
    assert rows() == [16, 20, 20]
    assert store.prune(Retention(inputs=10, exposures=30)) == (0, 0, False)


def test_a_forgotten_customer_is_nowhere_in_the_file(store: Store, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "FORGET_ROWS", 3)
    batches = [exposures(2, customers=["a-very-personal-key", "other"], digests=[f"d{n}", "e"]) for n in range(8)]
    store.write([*batches, *(PairBatch(id=each.id, arm="c", digest="d", row=[0, 1], scores={}) for each in batches)])
    store._database.forget_traces()
    files = [path, path.with_name("ledger.db-wal")]
    assert any(b"a-very-personal-key" in file.read_bytes() for file in files)
    assert store.forget(["a-very-personal-key", "unknown"]) == 8
    assert not any(b"a-very-personal-key" in file.read_bytes() for file in files)
    assert [store.extents()[name].rows for name in ("inputs", "exposures", "pairs")] == [8, 8, 8]
    assert {each.customer for each in store.exposures()} == {"other"}
    assert table(path, "SELECT count(*) FROM inputs WHERE exposure NOT IN (SELECT id FROM exposures)") == [(0,)]
    assert store.forget(["a-very-personal-key"]) == 0


def test_housekeeping_looks_once_a_day_and_again_soon_where_it_failed(store: Store, path: Path) -> None:
    now = 0.0
    keeping = Housekeeping(Retention(inputs=5), lambda: now)

    def tend() -> int:
        store.write([exposures(1, days_ago=20)])
        keeping.tend(store)
        return store.extents()["inputs"].rows

    assert tend() == 0
    assert tend() == 1
    now += LOOK_SECONDS
    with closing(Store(SqliteFile(path, busy_seconds=0.05))) as impatient, closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN IMMEDIATE")
        keeping.tend(impatient)
        other.rollback()
    assert tend() == 2
    now += AGAIN_SECONDS
    assert tend() == 0


def test_a_store_is_opened_by_path_or_url(tmp_path: Path) -> None:
    for where in (tmp_path / "new" / "a.db", str(tmp_path / "b.db"), f"sqlite:///{tmp_path}/c.db"):
        with closing(Store.open(where)) as store:
            assert set_epoch(store, 1)
    assert sorted(path.name for path in tmp_path.rglob("*.db")) == ["a.db", "b.db", "c.db"]


@pytest.mark.parametrize("url", ["mysql://root:secret@host/db", "sqlite://", "sqlite:///:memory:", "://"])
def test_another_url_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(StoreError, match=r"sqlite:///PATH") as caught:
        Store.open(url)
    assert "secret" not in str(caught.value)
