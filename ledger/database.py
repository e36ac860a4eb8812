"""What a store needs of a database. `SqliteFile` and `PostgresServer` give it, each in its own way.

Invariant: every use lies within `available` or `transaction`, so that whatever fails there is a StoreUnavailable.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from datetime import date
from typing import Any, NamedTuple, Protocol

from sqlalchemy import Connection, Table


class Pruned(NamedTuple):
    """What was removed: rows in SQLite, whole partitions in PostgreSQL. `more`: time was up before the end."""

    rows: int = 0
    partitions: int = 0
    more: bool = False


class Extent(NamedTuple):
    """A table's rows; where it is partitioned by day, how many partitions there are, and the first and last day."""

    rows: int
    partitions: int | None = None
    first: date | None = None
    last: date | None = None


class Database(Protocol):
    """One connection, for one thread."""

    where: str
    """How it is named in messages; never with a password."""

    @property
    def connection(self) -> Connection:
        """Return the connection, opened anew where it was lost. Raises StoreUnavailable."""

    def available(self) -> AbstractContextManager[None]:
        """Turn whatever says that the database can't be used now into StoreUnavailable."""

    def transaction(self, *, durable: bool = False, alone: Table | None = None) -> AbstractContextManager[None]:
        """Write all of the block or nothing. `durable`: not even a power cut undoes it, nor any commit before it.

        `alone`: nobody else writes this table meanwhile.
        """

    def make_room(self, ids: Iterable[str]) -> None:
        """Make what rows of exposures with these ids need before they can be inserted. Not within a transaction."""

    def insert_new(self, table: Table, rows: Sequence[tuple[Any, ...]]) -> int:
        """Insert the rows whose key isn't there yet, values in the order of the columns; return how many were new."""

    def change_counter(self) -> int:
        """Return a number that is another one after an epoch was made by somebody else."""

    def prune(self, table: Table, before: date, seconds: float) -> Pruned:
        """Remove a daily table's records of the days before `before`, for about so many seconds."""

    def migrate(self) -> str | None:
        """Bring the schema up to this program's revision; return the one that was there, None for an empty database."""

    def revision(self) -> str | None:
        """Return the schema's revision, whatever it is."""

    def extent(self, table: Table) -> Extent:
        """Return how much a table holds."""

    def forget_traces(self) -> None:
        """Let nothing of rows that were deleted stay in files of this database, as far as it is ours to say."""

    def close(self) -> None: ...
