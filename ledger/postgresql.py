"""The cluster's database: PostgreSQL, into which any number of engines ship at the same time.

Invariant: nobody waits for ever (connecting, a statement, and silence each have a bound), whatever fails is a StoreUnavailable,
and the next use connects anew. Rows go in sorted by their key, table after table, so that writers never wait in a ring.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import Connection, Table, create_engine, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from ledger import migrations
from ledger.database import Extent, Pruned
from ledger.days import days_of, first_id, today
from ledger.errors import StoreError, StoreUnavailable
from ledger.schema import DAILY

if TYPE_CHECKING:
    from psycopg.abc import PQGen

CONNECT_SECONDS = 5
STATEMENT_SECONDS = 10.0
"""What the server gives a statement, locks included. A shipper's takes some 100 ms; a pod's grace period is longer."""
PATIENT_SECONDS = 600.0
SILENCE_SECONDS = 2.0
"""How much longer a client waits for a server that doesn't even say that it gave up: a machine that hangs."""
MIGRATION_SECONDS = 3600.0
PAUSE_SECONDS = 1.0
"""How long after a failed connection the next one is tried; meanwhile the store is unavailable at once."""
DROP_SECONDS = 2.0
"""How long a partition's removal may wait for readers, because writers queue behind it."""

NETWORK = {
    "connect_timeout": CONNECT_SECONDS,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
    "application_name": "contender",
}
"""libpq's parameters; those in the URL come first."""

DURABLE = "SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'"

LOCKS = 0x434F4E54
MIGRATION, PARTITIONS, PRUNING = 1, 2, 3
"""Advisory locks, together with LOCKS."""


class _Patient(psycopg.Connection[tuple[Any, ...]]):
    """A connection on which no answer is waited for longer than `patience` seconds."""

    patience: float | None = None

    def wait(self, gen: PQGen[Any], interval: float = 0.1, timeout: float | None = None) -> Any:
        return super().wait(gen, interval, self.patience if timeout is None else timeout)


class PostgresServer:
    """One connection, made when it is first used and again after it was lost."""

    def __init__(self, url: str, *, statement_seconds: float = STATEMENT_SECONDS) -> None:
        """Nothing is asked yet: the server may be away. Raises StoreError if the URL can't be read."""
        try:
            given = conninfo_to_dict(url)
        except psycopg.Error:
            given = {"host": "@"}
        # A password with such a character in it is taken for other parts of the URL; and the driver's own message may quote it.
        where = "".join(str(given.get(part, "")) for part in ("host", "port", "dbname"))
        if "@" in where or not re.fullmatch(r"[\d,]*", str(given.get("port", ""))):
            raise StoreError(
                "the store's URL can't be read; write postgresql://USER@HOST:PORT/DATABASE, with the password in PGPASSWORD"
            )
        self._parameters: dict[str, Any] = {**NETWORK, **given}
        user = f"{given['user']}@" if "user" in given else ""
        port = f":{given['port']}" if "port" in given else ""
        self.where = f"postgresql://{user}{given.get('host', '')}{port}/{given.get('dbname', '')}"
        self._seconds = statement_seconds
        self._engine = create_engine(
            "postgresql+psycopg://",
            creator=self._connect,
            poolclass=NullPool,
            pool_reset_on_return=None,
            isolation_level="AUTOCOMMIT",
            use_native_hstore=False,
        )
        self._connection: Connection | None = None
        self._staged = False
        self._rooms: set[date] = set()
        self._failed: StoreUnavailable | None = None
        self._failed_at = 0.0

    @property
    def connection(self) -> Connection:
        if self._connection is None:
            if self._failed is not None and time.monotonic() < self._failed_at + PAUSE_SECONDS:
                raise type(self._failed)(str(self._failed))
            try:
                with self.available():
                    migrations.check(migrations.revision(self._open()), self.where)
            except StoreUnavailable as error:
                self._failed, self._failed_at = error, time.monotonic()
                raise
        return self._open()

    def _open(self) -> Connection:
        """Return the connection, whatever the schema."""
        if self._connection is None:
            self._connection = self._engine.connect()
        return self._connection

    def _connect(self) -> _Patient:
        connection = _Patient.connect(**self._parameters, autocommit=True)
        try:
            self._allow(connection, self._seconds)
        except BaseException:
            connection.close()
            raise
        return connection

    def _allow(self, driver: _Patient, seconds: float) -> None:
        """Let each statement take so long from now on."""
        driver.patience = seconds + SILENCE_SECONDS
        limit = sql.Literal(int(seconds * 1000))
        driver.execute(
            sql.SQL("SET statement_timeout = {}; SET lock_timeout = {}; SET idle_in_transaction_session_timeout = {}").format(
                limit, limit, limit
            )
        )

    @property
    def _driver(self) -> _Patient:
        driver: _Patient = self.connection.connection.dbapi_connection  # type: ignore[assignment]
        return driver

    def _drop_connection(self) -> None:
        """Let go of a connection in an unknown state; the server undoes its transaction. Nothing is sent or waited for."""
        connection, self._connection = self._connection, None
        self._staged = False
        self._rooms.clear()
        if connection is not None:
            with suppress(psycopg.Error, DBAPIError):
                connection.invalidate()
                connection.close()

    def _message(self, error: Exception) -> str:
        """Return what went wrong, without the server's details: they may quote a row."""
        cause = error.orig if isinstance(error, DBAPIError) else error
        said = cause.diag.message_primary if isinstance(cause, psycopg.Error) else None
        return f"{self.where}: {said or ' '.join(str(cause).split())}"

    @contextmanager
    def available(self) -> Iterator[None]:
        """Turn whatever the server, or the way to it, says no with into StoreUnavailable."""
        try:
            yield
        except (DBAPIError, psycopg.Error) as error:
            self._drop_connection()
            raise StoreUnavailable(self._message(error)) from error
        except StoreUnavailable:
            self._drop_connection()
            raise

    @contextmanager
    def transaction(self, *, durable: bool = False, alone: Table | None = None) -> Iterator[None]:
        """Write all of the block or nothing. Commits are durable wherever the server's own settings don't say otherwise."""
        with self.available():
            driver = self._driver
            driver.execute("BEGIN")
            try:
                if durable:
                    driver.execute(DURABLE)
                if alone is not None:
                    driver.execute(sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(sql.Identifier(alone.name)))
                yield
                driver.commit()
            except (DBAPIError, psycopg.Error):
                raise
            except BaseException:
                if not driver.closed:
                    driver.rollback()
                raise

    def make_room(self, ids: Iterable[str]) -> None:
        """Make the partitions of the ids' days, and tomorrow's ahead, and this connection's staging tables."""
        with self.available():
            if not self._staged:
                for table in DAILY:
                    self._driver.execute(
                        f"CREATE TEMP TABLE IF NOT EXISTS staged_{table.name} (LIKE {table.name}) ON COMMIT DELETE ROWS"
                    )
                self._staged = True
            days = days_of(ids) - self._rooms
            if not days:
                return
            with self.transaction():
                self._lock(PARTITIONS)
                for day in sorted(days | {day + timedelta(days=1) for day in days if day >= today()}):
                    for table in DAILY:
                        self._make_partition(table, day)
            self._rooms |= days

    def _make_partition(self, table: Table, day: date) -> None:
        """Made apart and then attached: that lets others go on inserting, where CREATE … PARTITION OF would stop them."""
        name = f"{table.name}_{day:%Y%m%d}"
        if self._driver.execute("SELECT to_regclass(%s)", (name,)).fetchone() != (None,):
            return
        self._driver.execute(f"CREATE TABLE {name} (LIKE {table.name} INCLUDING ALL)")
        limits = f"FROM ('{first_id(day)}') TO ('{first_id(day + timedelta(days=1))}')"
        self._driver.execute(f"ALTER TABLE {table.name} ATTACH PARTITION {name} FOR VALUES {limits}")

    def insert_new(self, table: Table, rows: Sequence[tuple[Any, ...]]) -> int:
        """Insert the rows whose key isn't there yet, values in the order of the columns; return how many were new."""
        if not rows:
            return 0
        driver = self._driver
        if table not in DAILY:
            statement = str(insert(table).on_conflict_do_nothing().compile(dialect=self._engine.dialect))
            names = [column.name for column in table.columns]
            with driver.cursor() as cursor:
                cursor.executemany(statement, [dict(zip(names, row, strict=True)) for row in sorted(rows)])
                return cursor.rowcount
        with driver.cursor() as cursor:
            with cursor.copy(f"COPY staged_{table.name} FROM STDIN") as copy:
                for row in rows:
                    copy.write_row(row)
            keys = ", ".join(column.name for column in table.primary_key)
            cursor.execute(
                f"INSERT INTO {table.name} SELECT * FROM staged_{table.name} ORDER BY {keys} ON CONFLICT DO NOTHING"  # noqa: S608
            )
            return cursor.rowcount

    def change_counter(self) -> int:
        """Return the number of epochs: none is ever changed or removed. A query over some hundred rows."""
        with self.available():
            row = self._driver.execute("SELECT count(*) FROM epochs").fetchone()
            return int(row[0]) if row else 0

    def prune(self, table: Table, before: date, seconds: float) -> Pruned:
        """Drop whole partitions, one replica at a time, each once no reader is in its way."""
        end = time.monotonic() + seconds
        dropped = 0
        for day in [each for each in self._days(table) if each < before]:
            if time.monotonic() >= end:
                return Pruned(partitions=dropped, more=True)
            with self.transaction():
                row = self._driver.execute("SELECT pg_try_advisory_xact_lock(%s, %s)", (LOCKS, PRUNING)).fetchone()
                if row == (False,):
                    return Pruned(partitions=dropped)
                self._driver.execute(f"SET LOCAL lock_timeout = {int(DROP_SECONDS * 1000)}")
                self._driver.execute(f"DROP TABLE IF EXISTS {table.name}_{day:%Y%m%d}")
            self._rooms.discard(day)
            dropped += 1
        return Pruned(partitions=dropped)

    def extent(self, table: Table) -> Extent:
        with self.available():
            rows = self.connection.execute(select(func.count()).select_from(table)).scalar_one()
            if table not in DAILY:
                return Extent(rows)
            days = self._days(table)
            return Extent(rows, len(days), *((days[0], days[-1]) if days else ()))

    def _days(self, table: Table) -> list[date]:
        """Return the days that have a partition, in order."""
        with self.available():
            found = self._driver.execute(
                "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = %s::regclass",
                (table.name,),
            ).fetchall()
        named = (re.fullmatch(rf"{table.name}_(\d{{8}})", name) for (name,) in found)
        return sorted(datetime.strptime(match[1], "%Y%m%d").date() for match in named if match)

    def migrate(self) -> str | None:
        """Bring the schema up to this program's, one process at a time; return the revision that was there."""
        with self.available():
            connection = self._open()
            driver: _Patient = connection.connection.dbapi_connection  # type: ignore[assignment]
            self._allow(driver, MIGRATION_SECONDS)
            driver.execute("BEGIN")
            driver.execute("SELECT pg_advisory_xact_lock(%s, %s)", (LOCKS, MIGRATION))
            found = migrations.revision(connection)
            if found is None or found < migrations.HEAD:
                migrations.upgrade(connection)
            driver.commit()
            self._allow(driver, self._seconds)
        migrations.check(migrations.HEAD if found is None else max(found, migrations.HEAD), self.where)
        return found

    def revision(self) -> str | None:
        with self.available():
            return migrations.revision(self._open())

    def forget_traces(self) -> None:
        """Do nothing: the server's own vacuum removes what was deleted."""

    def close(self) -> None:
        self._drop_connection()
        self._engine.dispose()

    def _lock(self, number: int) -> None:
        """Wait for an advisory lock that the transaction's end gives back."""
        self._driver.execute("SELECT pg_advisory_xact_lock(%s, %s)", (LOCKS, number))
