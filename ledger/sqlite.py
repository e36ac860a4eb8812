"""The embedded database: one SQLite file in WAL mode, read and written by several processes at the same time.

Invariant: a writer never holds an old snapshot (each transaction begins as a write), so it waits its turn or fails whole.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Table, create_engine, delete, func, inspect, select
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from ledger import migrations
from ledger.database import Extent, Pruned
from ledger.days import first_id
from ledger.errors import StoreUnavailable
from ledger.schema import EPOCHS, METADATA
from router.assignment import bucket

BUSY_SECONDS = 5.0
"""How long a writer waits for others. A shipper's transaction takes some 50 ms."""

RETRY_SECONDS = 0.02

CACHE_KIB = 32 * 1024
"""Page cache of a connection: the customers' index is written at random places."""

CHECKPOINT_PAGES = 4_000
"""Pages of the write-ahead log (16 MiB) that are moved into the file together: a page of an index, written at random places
in every transaction, is then moved once instead of four times. A larger log would be moved in longer writes."""

PRUNE_ROWS = 2_000
"""Rows deleted in one transaction, so that others wait for some 20 ms."""


class SqliteFile:
    """One open connection, for one thread. Raises StoreUnavailable wherever the file can't be used now."""

    def __init__(self, path: Path, *, busy_seconds: float = BUSY_SECONDS) -> None:
        """Open the file, and make it and its tables where they are missing, or bring them up to this program's schema.

        Raises SchemaMismatch for a file of a newer release.
        """
        self.path = path
        self.where = str(path)
        engine = create_engine(
            URL.create("sqlite", database=str(path)),
            poolclass=NullPool,
            isolation_level="AUTOCOMMIT",
            connect_args={"timeout": busy_seconds},
        )
        with self.available():
            path.parent.mkdir(parents=True, exist_ok=True)
            self.connection: Connection = engine.connect()
            self._driver: sqlite3.Connection = self.connection.connection.dbapi_connection  # type: ignore[assignment]
            try:
                self._prepare(busy_seconds)
            except BaseException:
                self.close()
                raise

    def _prepare(self, busy_seconds: float) -> None:
        self._file = _identity(self.path)
        _retry(self._set_wal, busy_seconds)
        self._driver.execute("PRAGMA synchronous = NORMAL")
        self._driver.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        self._driver.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        self._driver.create_function("contender_bucket", 2, _bucket_or_null, deterministic=True)
        # What is deleted is overwritten: a forgotten customer must not be found in the file's free pages.
        self._driver.execute("PRAGMA secure_delete = ON")
        self.migrate()

    def migrate(self) -> str | None:
        """Bring the schema up to this program's; opening does it. A new file gets the tables as they are declared."""
        with self.transaction():
            found = migrations.revision(self.connection)
            if found is None and not inspect(self.connection).has_table(EPOCHS.name):
                METADATA.create_all(self.connection)
                migrations.stamp(self.connection)
            elif found is None or found < migrations.HEAD:
                migrations.upgrade(self.connection)
            else:
                migrations.check(found, self.where)
        return found

    def revision(self) -> str | None:
        with self.available():
            return migrations.revision(self.connection)

    @contextmanager
    def available(self) -> Iterator[None]:
        """Turn whatever says that the file is locked, away, full or damaged into StoreUnavailable."""
        try:
            yield
        except (DBAPIError, sqlite3.Error, OSError) as error:
            cause = error.orig if isinstance(error, DBAPIError) else error
            if isinstance(cause, sqlite3.OperationalError | OSError) or type(cause) is sqlite3.DatabaseError:
                raise StoreUnavailable(f"{self.path}: {cause}") from error
            raise

    @contextmanager
    def transaction(self, *, durable: bool = False, alone: Table | None = None) -> Iterator[None]:
        """Write all of the block or nothing; one writer at a time, whatever the table."""
        with self.available():
            if _identity(self.path) != self._file:
                raise StoreUnavailable(f"{self.path}: the file was replaced while it was open; restart to use the new one")
            if durable:
                self._driver.execute("PRAGMA synchronous = FULL")
            try:
                self._driver.execute("BEGIN IMMEDIATE")
                yield
                self._driver.commit()
            except BaseException:
                self._driver.rollback()
                raise
            finally:
                if durable:
                    self._driver.execute("PRAGMA synchronous = NORMAL")

    def make_room(self, ids: Iterable[str]) -> None:
        """Do nothing: any row has room."""

    def insert_new(self, table: Table, rows: Sequence[tuple[Any, ...]]) -> int:
        """Insert the rows whose key isn't there yet, values in the order of the columns; return how many were new.

        By the driver's own executemany: building Core's statements costs ten times the insert.
        """
        statement = str(insert(table).on_conflict_do_nothing().compile(dialect=self.connection.dialect))
        return self._driver.executemany(statement, rows).rowcount if rows else 0

    def change_counter(self) -> int:
        """Return a number that is another one after any other connection has committed. It costs a microsecond."""
        with self.available():
            return int(self._driver.execute("PRAGMA data_version").fetchone()[0])

    def prune(self, table: Table, before: date, seconds: float) -> Pruned:
        """Delete in small transactions. The file keeps its size and uses the room again."""
        end = time.monotonic() + seconds
        key = table.columns[0]
        part = select(key).where(key < first_id(before)).order_by(key).limit(PRUNE_ROWS)
        removed = 0
        while True:
            with self.transaction():
                count = self.connection.execute(delete(table).where(key.in_(part))).rowcount
            removed += count
            if count < PRUNE_ROWS:
                return Pruned(rows=removed)
            if time.monotonic() >= end:
                return Pruned(rows=removed, more=True)

    def extent(self, table: Table) -> Extent:
        with self.available():
            return Extent(self.connection.execute(select(func.count()).select_from(table)).scalar_one())

    def forget_traces(self) -> None:
        """Write the deletions from the log into the file, and empty the log, unless somebody reads it just now."""
        with self.available():
            self._driver.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        self.connection.close()

    def _set_wal(self) -> None:
        if self._driver.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            self._driver.execute("PRAGMA journal_mode = WAL")


def _retry(action: Callable[[], None], seconds: float) -> None:
    """SQLite doesn't wait when two processes switch a new file to WAL at once; so this does."""
    end = time.monotonic() + seconds
    while True:
        try:
            action()
        except sqlite3.OperationalError:
            if time.monotonic() > end:
                raise
            time.sleep(RETRY_SECONDS)
        else:
            return


def _identity(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_dev, state.st_ino


def _bucket_or_null(salt: str | None, key: str | None) -> int | None:
    return None if salt is None or key is None else bucket(salt, key)
