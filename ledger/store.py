"""The store: where epochs and exposures are kept for good.

Invariant: a record exists once however often it is written, and an epoch never changes nor shares its number.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import Connection, delete, func, select, update
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from ledger.database import Database, Extent, Pruned
from ledger.days import today
from ledger.errors import EpochConflict, StoreError
from ledger.records import EpochRecord, Exposure, ExposureBatch, Gap, PairBatch, Record, timestamp
from ledger.retention import Retention
from ledger.schema import EPOCHS, EXPOSURES, GAPS, INPUTS, METADATA, PAIRS, SEGMENTS
from ledger.sqlite import SqliteFile

log = logging.getLogger("contender.ledger")

PAGE_ROWS = 2_000
"""Exposures read at a time. Nothing is held open between two pages, so a slow reader keeps no writer from its work."""

FORGET_ROWS = 500
"""Rows of a customer removed in one transaction."""

SCORES, DECISION = (Exposure.__struct_fields__.index(name) for name in ("scores", "decision"))


class Store:
    """One connection to the ledger, for one thread. Any method raises StoreUnavailable while the database can't be used."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @classmethod
    def open(cls, where: str | Path, *, patient: bool = False) -> Store:
        """Open the ledger at a path, an SQLite URL (sqlite:///PATH) or a PostgreSQL URL (postgresql://USER@HOST/DATABASE).

        A file is made if it is missing, and brought up to this program's schema. A server isn't asked before the first use, so
        it may be away; its schema is `migrate`'s affair. `patient`: a person waits for it, so a query may take minutes.
        Raises StoreError for another kind of URL, StoreUnavailable.
        """
        if isinstance(where, Path) or "://" not in where:
            return cls(SqliteFile(Path(where)))
        if where.startswith("postgresql://"):
            from ledger.postgresql import PATIENT_SECONDS, STATEMENT_SECONDS, PostgresServer

            return cls(PostgresServer(where, statement_seconds=PATIENT_SECONDS if patient else STATEMENT_SECONDS))
        choice = "give a path, sqlite:///PATH or postgresql://USER@HOST/DATABASE"
        try:
            url = make_url(where)
        except ArgumentError as error:
            raise StoreError(f"the store's URL can't be read; {choice}") from error
        if url.get_backend_name() != "sqlite" or not url.database or url.database == ":memory:":
            raise StoreError(f"{url.get_backend_name()} is no ledger's kind of store; {choice}")
        return cls(SqliteFile(Path(url.database)))

    @property
    def where(self) -> str:
        """Return the store's place, without a password."""
        return self._database.where

    def close(self) -> None:
        self._database.close()

    def write(self, records: Iterable[Record], shipped: tuple[str, int] | None = None) -> int:
        """Keep the records in one transaction and return the number of exposures that were new.

        `shipped` names a spool segment and how many of its bytes are in the ledger with this. An epoch whose number is
        taken by other content is reported and left out: what the ledger has stays.
        """
        exposures: list[tuple[Any, ...]] = []
        inputs: list[tuple[Any, ...]] = []
        epochs: list[EpochRecord] = []
        pairs: list[tuple[Any, ...]] = []
        gaps: list[tuple[Any, ...]] = []
        for record in records:
            match record:
                case ExposureBatch():
                    exposures.extend(record.rows())
                    inputs.extend(record.input_rows())
                case PairBatch():
                    pairs.extend(record.rows())
                case Gap():
                    gaps.append((record.id, record.test, record.start, record.end, record.rows))
                case EpochRecord():
                    epochs.append(record)
        if exposures or pairs:
            self._database.make_room(row[0] for rows in (exposures, pairs) for row in rows)
        with self._database.transaction():
            new = self._database.insert_new(EXPOSURES, exposures)
            self._database.insert_new(INPUTS, inputs)
            self._database.insert_new(PAIRS, pairs)
            self._database.insert_new(GAPS, gaps)
            for epoch in epochs:
                if not self._insert_epoch(epoch) and self._digest(epoch) != epoch.digest():
                    log.error("test %s: an engine accepted another epoch %d than the ledger's", epoch.test, epoch.epoch)
            if shipped is not None:
                self._note_shipped(*shipped)
        return new

    def exposures(self, test: str | None = None, since: datetime | None = None) -> Iterator[Exposure]:
        """Yield the exposures in the order of their ids, of one test and not before `since` where given.

        Raises ValueError if `since` has no time zone.
        """
        wanted = []
        if test is not None:
            wanted.append(EXPOSURES.c.test == test)
        if since is not None:
            wanted.append(EXPOSURES.c.at >= timestamp(since))
        # A clock set back parts the order of ids from that of times; so the first id is looked up, not computed.
        with self._database.available():
            first = self._connection.execute(select(EXPOSURES.c.id).where(*wanted).order_by(EXPOSURES.c.id).limit(1)).scalar()
        if first is None:
            return
        page = select(EXPOSURES).where(*wanted).order_by(EXPOSURES.c.id).limit(PAGE_ROWS)
        after = EXPOSURES.c.id >= first
        while True:
            with self._database.available():
                rows = self._connection.execute(page.where(after)).all()
            for row in rows:
                yield _exposure(row)
            if len(rows) < PAGE_ROWS:
                return
            after = EXPOSURES.c.id > rows[-1].id

    def gaps(self, test: str) -> list[tuple[str, str, int]]:
        """Return start, end and rows of each time in which rows were answered without a record, in order."""
        query = select(GAPS.c.start, GAPS.c.end, GAPS.c.rows).where(GAPS.c.test == test).order_by(GAPS.c.start)
        with self._database.available():
            return [(start, end, rows) for start, end, rows in self._connection.execute(query)]

    def pairs(self) -> list[tuple[str, str, str, dict[str, Any]]]:
        """Return exposure, arm, digest and scores of each shadow's row, in the order of the exposures."""
        query = select(PAIRS).order_by(PAIRS.c.exposure, PAIRS.c.arm)
        with self._database.available():
            return [(each, arm, digest, orjson.loads(scores)) for each, arm, digest, scores in self._connection.execute(query)]

    def tests(self) -> list[str]:
        """Return the names of all tests that have an epoch, sorted."""
        with self._database.available():
            return list(self._connection.execute(select(EPOCHS.c.test).distinct().order_by(EPOCHS.c.test)).scalars())

    def epochs(self, test: str) -> list[bytes]:
        """Return the documents of a test's epochs, the first one first."""
        query = select(EPOCHS.c.document).where(EPOCHS.c.test == test).order_by(EPOCHS.c.epoch)
        with self._database.available():
            return [document.encode() for document in self._connection.execute(query).scalars()]

    def current_epoch(self, test: str) -> bytes | None:
        """Return the document of a test's newest epoch, or None if it has none."""
        query = select(EPOCHS.c.document).where(EPOCHS.c.test == test).order_by(EPOCHS.c.epoch.desc()).limit(1)
        with self._database.available():
            document: str | None = self._connection.execute(query).scalar()
        return None if document is None else document.encode()

    def set_epoch(self, test: str, epoch: int, document: bytes, actor: str, reason: str, at: str) -> bool:
        """Make an epoch, by compare-and-set: its number must follow the newest one's. Survives a power cut from then on.

        Returns False if this very content has the number already. Raises EpochConflict if somebody else was first, or
        BrokenRecord if the document is no JSON object.
        """
        record = EpochRecord(test=test, epoch=epoch, actor=actor, reason=reason, at=at, document=document.decode())
        digest = record.digest()
        newest = select(func.max(EPOCHS.c.epoch)).where(EPOCHS.c.test == test)
        with self._database.transaction(durable=True, alone=EPOCHS):
            if self._digest(record) == digest:
                return False
            found = self._connection.execute(newest).scalar() or 0
            if found != epoch - 1 or not self._insert_epoch(record):
                raise EpochConflict(test, expected=epoch - 1, found=found)
        return True

    def change_counter(self) -> int:
        """Return a number that is another one once another connection has made an epoch; cheap enough to be polled.

        It may change for less: any commit of another connection changes an SQLite file's.
        """
        return self._database.change_counter()

    def shipped(self, segment: str) -> int:
        """Return how many bytes of a spool segment are in the ledger."""
        with self._database.available():
            return self._connection.execute(select(SEGMENTS.c.shipped).where(SEGMENTS.c.name == segment)).scalar() or 0

    def finish_segment(self, segment: str) -> None:
        """Make durable whatever came from a segment, and forget it: from now on its file may be deleted."""
        with self._database.transaction(durable=True):
            self._connection.execute(delete(SEGMENTS).where(SEGMENTS.c.name == segment))

    def bucket(self, salt: str, key: str) -> int:
        """Return the customer's bucket as the database computes it, by the function that its own queries use."""
        with self._database.available():
            return int(self._connection.execute(select(func.contender_bucket(salt, key))).scalar_one())

    def migrate(self) -> str | None:
        """Bring the schema up to this program's; return the revision that was there, None for an empty database.

        Several may do so at once: one works, the others wait. Raises SchemaMismatch if the schema is newer.
        """
        return self._database.migrate()

    def revision(self) -> str | None:
        """Return the revision of the schema that is there; None for none."""
        return self._database.revision()

    def extents(self) -> dict[str, Extent]:
        """Return how much each table holds, by its name. It counts, so it takes seconds where there are millions."""
        return {str(table.name): self._database.extent(table) for table in METADATA.sorted_tables}

    def prune(self, retention: Retention, *, seconds: float = 1.0) -> Pruned:
        """Remove records older than they are kept, for about so many seconds; `more` if some are left."""
        rows = partitions = 0
        for table, days in ((INPUTS, retention.inputs), (EXPOSURES, retention.exposures), (PAIRS, retention.exposures)):
            if days:
                done = self._database.prune(table, today() - timedelta(days=days), seconds)
                rows, partitions = rows + done.rows, partitions + done.partitions
                if done.more:
                    return Pruned(rows, partitions, more=True)
        return Pruned(rows, partitions)

    def forget(self, customers: Sequence[str]) -> int:
        """Remove every row of a customer, who may stand there under several names; return how many exposures there were.

        Rows that are still in a spool come afterwards.
        """
        mine = select(EXPOSURES.c.id).where(EXPOSURES.c.customer.in_(customers)).limit(FORGET_ROWS)
        forgotten = 0
        while True:
            with self._database.transaction():
                ids = list(self._connection.execute(mine).scalars())
                for table in (INPUTS, PAIRS, EXPOSURES):
                    self._connection.execute(delete(table).where(table.columns[0].in_(ids)))
            forgotten += len(ids)
            if len(ids) < FORGET_ROWS:
                self._database.forget_traces()
                return forgotten

    @property
    def _connection(self) -> Connection:
        return self._database.connection

    def _insert_epoch(self, record: EpochRecord) -> int:
        row = record.test, record.epoch, record.document, record.actor, record.reason, record.at, record.digest()
        return self._database.insert_new(EPOCHS, [row])

    def _digest(self, record: EpochRecord) -> str | None:
        query = select(EPOCHS.c.digest).where(EPOCHS.c.test == record.test, EPOCHS.c.epoch == record.epoch)
        digest: str | None = self._connection.execute(query).scalar()
        return digest

    def _note_shipped(self, segment: str, shipped: int) -> None:
        if not self._database.insert_new(SEGMENTS, [(segment, shipped)]):
            behind = update(SEGMENTS).where(SEGMENTS.c.name == segment, SEGMENTS.c.shipped < shipped)
            self._connection.execute(behind.values(shipped=shipped))


def _exposure(row: Sequence[Any]) -> Exposure:
    values: list[Any] = list(row)
    values[SCORES], values[DECISION] = orjson.loads(values[SCORES]), orjson.loads(values[DECISION])
    return Exposure(*values)
