"""The schema through time, on SQLite: old files are taken over, and both ways to a schema lead to the same one."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

from harness.records import exposures
from ledger import migrations
from ledger.errors import SchemaMismatch
from ledger.records import Exposure
from ledger.schema import METADATA
from ledger.sqlite import SqliteFile
from ledger.store import Store

ROOT = Path(__file__).parents[2]

FIRST_RELEASE = """
CREATE TABLE epochs (test TEXT NOT NULL, epoch BIGINT NOT NULL, document TEXT NOT NULL, actor TEXT NOT NULL,
 reason TEXT NOT NULL, at TEXT NOT NULL, digest VARCHAR(64) NOT NULL, PRIMARY KEY (test, epoch));
CREATE TABLE exposures (id VARCHAR(36) NOT NULL, puid TEXT NOT NULL, "row" INTEGER NOT NULL, at VARCHAR(27) NOT NULL,
 test TEXT NOT NULL, epoch BIGINT NOT NULL, customer TEXT, bucket INTEGER, assigned TEXT NOT NULL, served TEXT NOT NULL,
 reason TEXT NOT NULL, propensity DOUBLE NOT NULL, scores TEXT NOT NULL, decision TEXT NOT NULL, digest TEXT NOT NULL,
 latency_ms DOUBLE NOT NULL, PRIMARY KEY (id));
CREATE INDEX exposures_at_id ON exposures (at, id);
CREATE INDEX exposures_customer ON exposures (customer);
CREATE TABLE inputs (exposure VARCHAR(36) NOT NULL, input TEXT NOT NULL, PRIMARY KEY (exposure));
CREATE TABLE segments (name TEXT NOT NULL, shipped BIGINT NOT NULL, PRIMARY KEY (name));
"""
"""What a file held before there were migrations; `gaps` and `pairs` came later and were made when they were missing."""

ROW = (
    "01910000-0000-7000-8000-000000000000", "p", 0, "2026-03-01T00:00:00.000000Z", "t", 3, "小米", 6165, "champion", "champion",
    "hash", 0.9, '{"age":30.5}', '{"campaigns":"1"}', "d", 1.25,
)  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


def old_file(path: Path) -> None:
    with closing(sqlite3.connect(path)) as file:
        file.executescript(FIRST_RELEASE)
        file.execute("INSERT INTO exposures VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)", ROW)
        file.execute("INSERT INTO epochs VALUES ('t', 3, '{\"epoch\":3}', 'ann', 'r', 'at', 'd')")
        file.execute("INSERT INTO segments VALUES ('s', 7)")
        file.commit()


def differences(path: Path) -> list[object]:
    with closing(SqliteFile(path)) as file:
        return list(compare_metadata(MigrationContext.configure(file.connection), METADATA))


def tables(path: Path) -> list[tuple[str, str]]:
    """Return each table's and index's name and columns as SQLite knows them."""
    with closing(sqlite3.connect(path)) as file:
        names = [name for (name,) in file.execute("SELECT name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'")]
        kinds = {name: file.execute(f"PRAGMA table_info({name})").fetchall() for name in names}
        places = {name: file.execute(f"PRAGMA index_info({name})").fetchall() for name in names}
    return sorted((name, f"{kinds[name]} {places[name]}") for name in names)


def test_the_program_knows_the_newest_revision_and_revisions_are_numbers_in_order() -> None:
    scripts = ScriptDirectory(str(Path(migrations.__file__).parent))
    known = [each.revision for each in scripts.walk_revisions()]
    assert scripts.get_current_head() == migrations.HEAD == known[0]
    assert known == sorted(known, reverse=True)
    assert all(len(each) == 4 and each.isdigit() for each in known)


def test_a_new_file_is_what_the_migrations_make(path: Path) -> None:
    Store.open(path).close()
    migrated = path.with_name("migrated.db")
    with create_engine(f"sqlite:///{migrated}", isolation_level="AUTOCOMMIT").connect() as connection:
        migrations.upgrade(connection)
    assert tables(migrated)[1:] == tables(path)[1:], "the first is Alembic's own"
    assert tables(path)[0][0] == "alembic_version"
    assert differences(path) == differences(migrated) == []


def test_a_file_of_before_there_were_migrations_is_taken_over_with_all_it_holds(path: Path) -> None:
    old_file(path)
    with closing(Store.open(path)) as store:
        assert store.revision() == migrations.HEAD
        (kept,) = store.exposures()
        assert kept == Exposure(*ROW[:12], {"age": 30.5}, {"campaigns": "1"}, *ROW[14:])
        assert store.epochs("t") == [b'{"epoch":3}']
        assert store.shipped("s") == 7
        assert store.gaps("t") == []
        assert store.pairs() == []
        assert store.write([exposures(2)]) == 2
    assert differences(path) == []


def test_opening_again_migrates_nothing(path: Path) -> None:
    old_file(path)
    Store.open(path).close()
    before = tables(path)
    with closing(Store.open(path)) as store:
        assert store.migrate() == migrations.HEAD
    assert tables(path) == before


def test_a_file_of_a_newer_release_is_refused_with_what_to_do(path: Path) -> None:
    Store.open(path).close()
    with closing(sqlite3.connect(path)) as file:
        file.execute("UPDATE alembic_version SET version_num = '9999'")
        file.commit()
    with pytest.raises(SchemaMismatch, match=r"ledger\.db: the ledger's schema 9999 is newer .* newer release of contender"):
        Store.open(path)


def test_an_older_schema_names_the_command() -> None:
    with pytest.raises(SchemaMismatch, match=r"x: the ledger's schema 0000 is older .* run `contender ledger migrate`"):
        migrations.check("0000", "x")


def test_a_local_ledger_needs_neither_alembic_nor_psycopg(path: Path) -> None:
    """They would cost every start a third of a second."""
    code = (
        "import sys; from ledger.store import Store; Store.open(sys.argv[1]); print(*{'alembic', 'psycopg'} & set(sys.modules))"
    )
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True, cwd=ROOT)
        assert done.stdout == "\n"
