"""The store: where epochs and exposures are kept for good.

Invariant: a record exists once however often it is written, and an epoch never changes nor shares its number.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import Connection, delete, func, select, update
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from ledger.errors import EpochConflict, StoreError
from ledger.records import EpochRecord, Exposure, ExposureBatch, Gap, PairBatch, Record, timestamp
from ledger.schema import EPOCHS, EXPOSURES, GAPS, INPUTS, PAIRS, SEGMENTS
from ledger.sqlite import SqliteFile

log = logging.getLogger("contender.ledger")

PAGE_ROWS = 2_000
"""Exposures read at a time. Nothing is held open between two pages, so a slow reader keeps no writer from its work."""

SCORES, DECISION = (Exposure.__struct_fields__.index(name) for name in ("scores", "decision"))


class Store:
    """One connection to the ledger, for one thread. Any method raises StoreUnavailable while the database can't be used."""

    def __init__(self, database: SqliteFile) -> None:
        self._database = database

    @classmethod
    def open(cls, where: str | Path) -> Store:
        """Open the ledger at a path or an SQLite URL (sqlite:///PATH); it is made if it is missing.

        Raises StoreError for another kind of URL, StoreUnavailable.
        """
        if isinstance(where, Path) or "://" not in where:
            return cls(SqliteFile(Path(where)))
        try:
            url = make_url(where)
        except ArgumentError as error:
            raise StoreError("the store's URL can't be read; give a path or sqlite:///PATH") from error
        if url.get_backend_name() != "sqlite" or not url.database or url.database == ":memory:":
            raise StoreError(f"{url.render_as_string()}: not a ledger; give a path or sqlite:///PATH")
        return cls(SqliteFile(Path(url.database)))

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
            first = self._connection.execute(select(func.min(EXPOSURES.c.id)).where(*wanted)).scalar()
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
        with self._database.transaction(durable=True):
            if self._digest(record) == digest:
                return False
            found = self._connection.execute(newest).scalar() or 0
            if found != epoch - 1 or not self._insert_epoch(record):
                raise EpochConflict(test, expected=epoch - 1, found=found)
        return True

    def change_counter(self) -> int:
        """Return a number that is another one once any other connection has committed; cheap enough to be polled."""
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
