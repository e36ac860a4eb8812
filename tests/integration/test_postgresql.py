"""The ledger in a real PostgreSQL: the same answers as from SQLite, several engines at once, and a server that goes away."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import orjson
import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from harness.postgres import Postgres
from harness.records import exposures
from ledger import migrations
from ledger import store as store_module
from ledger.days import today
from ledger.errors import EpochConflict, SchemaMismatch, StoreError, StoreUnavailable
from ledger.postgresql import LOCKS, MIGRATION, PRUNING, PostgresServer
from ledger.records import EpochRecord, Gap, PairBatch, timestamp, uuid7
from ledger.retention import Retention
from ledger.schema import METADATA
from ledger.shipper import Shipper
from ledger.spool import Spool, segments
from ledger.store import Store

AT = "2026-03-01T00:00:00.000000Z"


@pytest.fixture
def ledger(postgres: str) -> str:
    """The URL of a database with a ledger."""
    with closing(Store.open(postgres)) as store:
        assert store.migrate() is None
    return postgres


@pytest.fixture
def store(ledger: str) -> Iterator[Store]:
    with closing(Store.open(ledger)) as opened:
        yield opened


def query(url: str, text: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(text.encode()).fetchall()


def set_epoch(store: Store, epoch: int, **content: Any) -> bool:
    document = orjson.dumps({"test": "t", "epoch": epoch, **content})
    return store.set_epoch("t", epoch, document, "ann", "because", AT)


def partitions(url: str, table: str) -> list[str]:
    found = query(url, f"SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = '{table}'::regclass")
    return sorted(name for (name,) in found)


def test_what_is_written_is_what_an_sqlite_file_would_give_back(store: Store, tmp_path: Path) -> None:
    made = [
        exposures(3),
        exposures(1, days_ago=3, test="other"),
        msgspec.structs.replace(exposures(2), customers=["小米", None]),
    ]
    pairs = PairBatch(id=made[0].id, arm="challenger", digest="d", row=[0, 2], scores={"age": [30.5, None]})
    gap = Gap(id=uuid7(), test="campaigns", start=AT, end=AT, rows=7)
    epoch = EpochRecord(test="t", epoch=4, actor="ann", reason="r", at=AT, document='{"epoch":4}')
    with closing(Store.open(tmp_path / "ledger.db")) as file:
        for each in (store, file):
            assert each.write([epoch, *made, pairs, gap], ("segment", 10)) == 6
            assert each.write([gap, pairs, *reversed(made), epoch], ("segment", 5)) == 0
            assert each.shipped("segment") == 10
            each.finish_segment("segment")
            assert each.shipped("segment") == 0
        assert list(store.exposures()) == list(file.exposures())
        assert len(list(store.exposures(test="campaigns"))) == 5
        assert store.pairs() == file.pairs()
        assert store.gaps("campaigns") == file.gaps("campaigns")
        assert store.epochs("t") == file.epochs("t") == [b'{"epoch":4}']
        assert store.tests() == file.tests() == ["t"]
        counts = {name: extent.rows for name, extent in store.extents().items()}
        assert counts == {name: extent.rows for name, extent in file.extents().items()}
        since = datetime.now(UTC) - timedelta(days=1)
        assert list(store.exposures(since=since)) == list(file.exposures(since=since))


def test_exposures_come_in_order_over_pages_and_partitions(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "PAGE_ROWS", 7)
    batches = [exposures(count, days_ago=ago) for count, ago in ((3, 5), (8, 4), (14, 2), (1, 2), (4, 0))]
    assert store.write(reversed(batches)) == 30
    assert [each.id for each in store.exposures()] == sorted(row[0] for made in batches for row in made.rows())


def test_the_migrations_make_what_the_schema_declares(store: Store, ledger: str) -> None:
    """Partitions are nobody's declaration: they are left out by name."""
    store.write([exposures()])
    with closing(PostgresServer(ledger)) as server:
        context = MigrationContext.configure(
            server.connection, opts={"include_name": lambda name, kind, parents: kind != "table" or name in METADATA.tables}
        )
        assert compare_metadata(context, METADATA) == []
        assert len(partitions(ledger, "exposures")) == 2


def test_a_day_has_a_partition_of_each_table_and_tomorrows_is_made_ahead(store: Store, ledger: str) -> None:
    store.write([exposures(2), exposures(1, days_ago=40)])
    days = [today() - timedelta(days=40), today(), today() + timedelta(days=1)]
    for table in ("exposures", "inputs", "pairs"):
        assert partitions(ledger, table) == [f"{table}_{day:%Y%m%d}" for day in days]
    assert query(ledger, f"SELECT count(*) FROM exposures_{today():%Y%m%d}") == [(2,)]


def test_a_row_without_a_partition_is_refused_and_never_swallowed(store: Store, ledger: str) -> None:
    """As when a partition is dropped between its making and the insert; the next attempt makes it anew."""
    old = exposures(1, days_ago=40)
    store.write([exposures(1, days_ago=40)])
    with psycopg.connect(ledger, autocommit=True) as connection:
        connection.execute(f"DROP TABLE exposures_{today() - timedelta(days=40):%Y%m%d}".encode())
    with pytest.raises(StoreUnavailable, match="no partition"):
        store.write([old], ("segment", 9))
    assert store.shipped("segment") == 0
    assert store.write([old], ("segment", 9)) == 1


def test_epochs_are_made_by_compare_and_set(store: Store, ledger: str) -> None:
    before = store.change_counter()
    assert set_epoch(store, 1)
    assert not set_epoch(store, 1)
    with closing(Store.open(ledger)) as other:
        counter = other.change_counter()
        assert counter != before
        assert set_epoch(other, 2, by="other")
    assert store.change_counter() != counter
    with pytest.raises(EpochConflict, match="on top of epoch 1, but epoch 2 is the newest"):
        set_epoch(store, 2)
    assert len(store.epochs("t")) == 2


RACE = """
import json, sys
from ledger.errors import EpochConflict
from ledger.store import Store

url, name, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
store = Store.open(url)
store.current_epoch("t")
print("ready", flush=True)
sys.stdin.readline()
lost = made = 0
while made < rounds:
    current = store.current_epoch("t")
    number = 1 + (0 if current is None else json.loads(current)["epoch"])
    try:
        document = json.dumps({"test": "t", "epoch": number, "by": name, "round": made}).encode()
        store.set_epoch("t", number, document, name, "race", "2026-03-01T00:00:00.000000Z")
        made += 1
    except EpochConflict as error:
        assert error.found >= number, (error.found, number)
        lost += 1
print(lost)
"""


def started(code: str, *arguments: object) -> list[subprocess.Popen[str]]:
    """Start three processes; each gets a name as its second argument, and reads the moment at which all begin."""
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    first, *rest = map(str, arguments)
    processes = [subprocess.Popen([sys.executable, "-c", code, first, f"p{n}", *rest], **pipes) for n in range(3)]
    for each in processes:
        assert each.stdout is not None
        assert each.stdout.readline() == "ready\n"
    moment = time.time() + 0.2
    for each in processes:
        assert each.stdin is not None
        each.stdin.write(f"{moment}\n")
        each.stdin.flush()
    return processes


def test_writers_in_several_processes_never_share_a_number(ledger: str) -> None:
    writers = started(RACE, ledger, 25)
    lost = sum(int(writer.communicate(timeout=60)[0]) for writer in writers)
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    with closing(Store.open(ledger)) as store:
        epochs = [orjson.loads(each) for each in store.epochs("t")]
    assert [each["epoch"] for each in epochs] == list(range(1, 76))
    assert len({(each["by"], each["round"]) for each in epochs}) == 75
    assert lost > 0, "nobody was ever second, so nothing was raced for"


ENGINE = """
import random, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[4])
from harness.records import exposures
from ledger.records import PairBatch, decode
from ledger.shipper import Shipper
from ledger.spool import Spool
from ledger.store import Store

url, name, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
store = Store.open(url)
chosen = random.Random(name)
spool = Spool(folder / name, segment_bytes=60_000)
own = [exposures(chosen.randint(1, 30), days_ago=chosen.random() * 6) for _ in range(100)]
shared = [[decode(line) for line in path.read_bytes().splitlines()] for path in sorted(folder.glob("shared-*"))]
print("ready", flush=True)
began = float(sys.stdin.readline())
for number, records in enumerate(shared):
    chosen.shuffle(records)
    time.sleep(max(0, began + number - time.time()))
    store.write(records)
shipper = Shipper(folder / name, store, batch_bytes=20_000)
for batch in own:
    spool.append(batch.encode())
    spool.append(PairBatch(id=batch.id, arm="challenger", digest="d", row=[0], scores={"age": [1.0]}).encode())
    shipper.ship()
spool.close()
report = shipper.ship()
assert report.bytes_behind == 0 and report.skipped_lines == 0, report
print(sum(len(batch.customers) for batch in own))
"""


def test_several_engines_ship_at_once_without_a_deadlock_and_each_row_once(ledger: str, tmp_path: Path) -> None:
    """First all write the same rows at the same moment, each in another order; then rows of their own over seven days."""
    for number in range(3):
        shared = [exposures(1, days_ago=row % 3) for row in range(2500)]
        (tmp_path / f"shared-{number}").write_bytes(b"\n".join(each.encode() for each in shared))
    engines = started(ENGINE, ledger, tmp_path, Path(__file__).parents[1])
    own = [int(engine.communicate(timeout=120)[0]) for engine in engines]
    assert [engine.returncode for engine in engines] == [0, 0, 0]
    assert query(ledger, "SELECT count(*) FROM exposures") == [(sum(own) + 7500,)]
    assert query(ledger, "SELECT count(*) FROM inputs") == [(sum(own) + 7500,)]
    assert query(ledger, "SELECT count(*) FROM pairs") == [(300,)]
    assert query(ledger, "SELECT count(*) FROM segments") == [(0,)]
    assert query(ledger, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == [(0,)]


def spooled(folder: Path, batches: int) -> int:
    spool = Spool(folder, segment_bytes=20_000)
    for _ in range(batches):
        spool.append(exposures(4).encode())
    spool.close()
    return 4 * batches


@pytest.mark.parametrize("mode", ["immediate", "fast"])
def test_a_server_that_is_stopped_while_it_is_shipped_to_costs_nothing(
    postgres_server: Postgres, ledger: str, tmp_path: Path, mode: str
) -> None:
    """Stopped in the middle of a pass; every attempt meanwhile says so at once; the first one afterwards goes on."""
    folder = tmp_path / "spool"
    rows = spooled(folder, 300)

    class Stopping(Store):
        writes = 0

        def write(self, *arguments: Any, **named: Any) -> int:
            self.writes += 1
            if self.writes == 5:
                postgres_server.stop(mode)
            return super().write(*arguments, **named)

    with closing(Stopping(PostgresServer(ledger))) as store:
        shipper = Shipper(folder, store, batch_bytes=10_000)
        try:
            for _ in range(3):
                with pytest.raises(StoreUnavailable, match=r"postgresql://postgres@127"):
                    shipper.ship()
            assert shipper.lag().bytes > 0
            rows += spooled(folder, 10)
        finally:
            postgres_server.start()
        end = time.monotonic() + 20
        while segments(folder):
            assert time.monotonic() < end
            try:
                shipper.ship()
            except StoreUnavailable:
                time.sleep(0.1)
        assert len({each.id for each in store.exposures()}) == rows
        assert store.extents()["inputs"].rows == rows


def test_a_server_that_lost_what_it_had_confirmed_is_given_it_again(ledger: str, tmp_path: Path) -> None:
    """As after a failover to a replica that was behind: the shipper's memory of its progress is not trusted."""
    spool = Spool(tmp_path / "spool")
    with closing(Store.open(ledger)) as store:
        shipper = Shipper(tmp_path / "spool", store)
        spool.append(exposures(3).encode())
        assert shipper.ship().rows == 3
        with psycopg.connect(ledger, autocommit=True) as other:
            other.execute("TRUNCATE exposures, inputs, segments")
            other.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'contender'")
        spool.append(exposures(2).encode())
        with pytest.raises(StoreUnavailable):
            shipper.ship()
        assert shipper.ship().rows == 5
    spool.close()


def test_a_server_that_hangs_is_given_up_on(postgres_server: Postgres, ledger: str) -> None:
    with closing(Store(PostgresServer(ledger, statement_seconds=0.3))) as store:
        assert store.write([exposures()]) == 1
        began = time.monotonic()
        with postgres_server.frozen(), pytest.raises(StoreUnavailable, match="timeout"):
            store.write([exposures()])
        assert time.monotonic() - began < 30
        assert store.write([exposures()]) == 1


def test_a_statement_that_waits_for_a_lock_is_given_up_on(ledger: str) -> None:
    with closing(Store(PostgresServer(ledger, statement_seconds=0.2))) as store, psycopg.connect(ledger) as other:
        store.write([exposures()])
        other.execute("LOCK TABLE exposures")
        with pytest.raises(StoreUnavailable, match="timeout"):
            store.write([exposures()])
        other.rollback()
        assert store.write([exposures()]) == 1


def test_a_server_that_is_away_does_not_stop_a_store_from_being_opened() -> None:
    url = "postgresql://ann:secret@127.0.0.1:1/ledger?password=another-secret"
    with closing(Store.open(url)) as store:
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match=r"postgresql://ann@127\.0\.0\.1:1/ledger: .*refused") as caught:
                store.change_counter()
            assert "secret" not in str(caught.value)
        assert store.where == "postgresql://ann@127.0.0.1:1/ledger"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ann:secret@host/db?nonsense=1",
        "postgresql://ann:the@secret@host/db",
        "postgresql://ann:the/secret@host/db",
    ],
)
def test_a_url_that_can_not_be_read_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(StoreError, match="write postgresql://USER@HOST:PORT/DATABASE") as caught:
        Store.open(url)
    assert "secret" not in str(caught.value)


def test_a_database_without_a_ledger_names_the_command(postgres: str) -> None:
    with closing(Store.open(postgres)) as store:
        for _ in range(2):
            with pytest.raises(SchemaMismatch, match=r"has no ledger yet; run `contender ledger migrate`"):
                store.write([exposures()])
        with closing(Store.open(postgres)) as other:
            other.migrate()


def test_another_schema_is_refused_and_a_newer_one_is_never_migrated(store: Store, ledger: str) -> None:
    with psycopg.connect(ledger, autocommit=True) as other:
        other.execute("UPDATE alembic_version SET version_num = '9999'")
    for use in (lambda: store.current_epoch("t"), store.migrate):
        with pytest.raises(SchemaMismatch, match="schema 9999 is newer than this program's"):
            use()
    with psycopg.connect(ledger, autocommit=True) as other:
        other.execute("UPDATE alembic_version SET version_num = '0000'")
    with closing(Store.open(ledger)) as fresh, pytest.raises(SchemaMismatch, match=r"older .* run `contender ledger migrate`"):
        fresh.current_epoch("t")


MIGRATE = """
import sys
from ledger.store import Store

store = Store.open(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
print(store.migrate())
"""


def test_replicas_that_migrate_at_once_do_it_once(postgres: str) -> None:
    with psycopg.connect(postgres) as other:
        other.execute("SELECT pg_advisory_xact_lock(%s, %s)", (LOCKS, MIGRATION))
        replicas = started(MIGRATE, postgres)
        waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        end = time.monotonic() + 30
        while query(postgres, waiting) != [(3,)]:
            assert time.monotonic() < end
            time.sleep(0.05)
    found = sorted(replica.communicate(timeout=60)[0] for replica in replicas)
    assert found == [f"{migrations.HEAD}\n", f"{migrations.HEAD}\n", "None\n"]
    assert [replica.returncode for replica in replicas] == [0, 0, 0]


def test_whole_partitions_go_when_they_are_older_than_kept(store: Store, ledger: str) -> None:
    ages = (0, 1, 9, 10, 11, 40)
    batches = [exposures(2, days_ago=ago) for ago in ages]
    store.write([*batches, *(PairBatch(id=each.id, arm="c", digest="d", row=[0], scores={}) for each in batches)])
    done = store.prune(Retention(inputs=10))
    assert (done.rows, done.partitions, done.more) == (0, 2, False)
    assert [store.extents()[name].rows for name in ("inputs", "exposures", "pairs")] == [8, 12, 6]
    assert store.prune(Retention(inputs=10, exposures=30)).partitions == 2
    assert [store.extents()[name].rows for name in ("inputs", "exposures", "pairs")] == [8, 10, 5]
    assert store.prune(Retention(inputs=10, exposures=30)).partitions == 0
    extent = store.extents()["exposures"]
    assert (extent.first, extent.last) == (today() - timedelta(days=11), today() + timedelta(days=1))
    assert store.write([exposures(1, days_ago=40)]) == 1


def test_only_one_replica_prunes_and_a_reader_is_not_waited_for_long(store: Store, ledger: str) -> None:
    store.write([exposures(1, days_ago=40)])
    with psycopg.connect(ledger) as other:
        other.execute("SELECT pg_advisory_xact_lock(%s, %s)", (LOCKS, PRUNING))
        assert store.prune(Retention(inputs=1)).partitions == 0
        other.rollback()
        other.execute("SELECT count(*) FROM inputs")
        with pytest.raises(StoreUnavailable, match="lock timeout"):
            store.prune(Retention(inputs=1))
        assert store.extents()["inputs"].rows == 1
    assert store.prune(Retention(inputs=1)).partitions == 1


def test_a_forgotten_customer_is_nowhere(store: Store, ledger: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "FORGET_ROWS", 3)
    batches = [exposures(2, days_ago=ago) for ago in range(8)]
    store.write([*batches, *(PairBatch(id=each.id, arm="c", digest="d", row=[0, 1], scores={}) for each in batches)])
    assert store.forget(["customer-1", "unknown"]) == 8
    assert {each.customer for each in store.exposures()} == {"customer-0"}
    assert [extent.rows for name, extent in store.extents().items() if name in ("inputs", "exposures", "pairs")] == [8, 8, 8]
    orphans = "SELECT count(*) FROM inputs WHERE exposure NOT IN (SELECT id FROM exposures)"
    assert query(ledger, orphans) == [(0,)]


def test_text_that_postgresql_can_not_hold_stops_nothing(store: Store, tmp_path: Path) -> None:
    """U+0000 in a name that came over the network from elsewhere; within JSON it stays, escaped."""
    spool = Spool(tmp_path / "spool")
    odd = exposures(2, digests=["a\0b", "c"], inputs={"names": ["brand"], "rows": [["x\0y"], ["\\u0000"]]})
    epoch = EpochRecord(test="t", epoch=1, actor="a\0", reason="r", at=timestamp(datetime.now(UTC)), document='{"x":"\\u0000"}')
    for line in (odd.encode(), epoch.encode(), exposures(1).encode()):
        spool.append(line)
    spool.close()
    report = Shipper(tmp_path / "spool", store).ship()
    assert (report.rows, report.skipped_lines, report.bytes_behind) == (3, 0, 0)
    assert [each.digest for each in store.exposures()][:2] == ["a\ufffdb", "c"]
    assert store.epochs("t") == [b'{"x":"\\u0000"}']
