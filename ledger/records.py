"""What the ledger keeps, in two shapes: one JSON line a request in the spool, one exposure a row in the store.

Invariant: a row's id follows from its line alone, so a line may be shipped any number of times and its rows exist once.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import repeat
from random import Random
from typing import Annotated, Any, TypedDict, TypeVar

import msgspec
import orjson
from msgspec import Meta

from ledger.errors import BrokenRecord

Value = TypeVar("Value")

ROW_BITS = 24
MAX_ROWS = 1 << ROW_BITS
"""Rows of one batch that ids have room for."""

NUMPY = orjson.OPT_SERIALIZE_NUMPY
"""Columns may hold numpy's scalars; NaN and infinity become null."""

# Of a year before 2500, because a store has a place for each day.
UuidText = Annotated[str, Meta(pattern="^0[0-9a-f]{7}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{6}0{6}$")]
Timestamp = Annotated[str, Meta(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$")]
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Bucket = Annotated[int, Meta(ge=0, lt=10_000)]
RowIndex = Annotated[int, Meta(ge=0, lt=MAX_ROWS)]


class UuidGenerator:
    """Makes UUIDs of version 7 (RFC 9562: section 5.7, and section 6.2, method 3), each greater than the last, for any thread.

    48 bits are milliseconds, 12 bits the fraction of one, 38 bits random. The low 24 bits are zero, so that a row's index
    fits there. When the clock stands still or goes back, counting goes on from the last id's time.
    """

    def __init__(self, clock: Callable[[], int] = time.time_ns) -> None:
        """`clock` returns nanoseconds since 1970."""
        self._clock = clock
        self._last = -1
        self._lock = threading.Lock()
        # Of its own, so that nobody's `random.seed` repeats it, and anew in a forked child; the kernel's is six times as slow.
        self._random = Random()  # noqa: S311 - an id is no secret
        os.register_at_fork(after_in_child=self._random.seed)

    def __call__(self) -> str:
        ticks = (self._clock() << 12) // 1_000_000
        with self._lock:
            if ticks <= self._last:
                ticks = self._last + 1
            self._last = ticks
        drawn = self._random.getrandbits(38)
        parts = ticks >> 28, ticks >> 12 & 0xFFFF, ticks & 0xFFF, 0x8000 | drawn >> 24, drawn & 0xFFFFFF
        return "%08x-%04x-7%03x-%04x-%06x000000" % parts  # noqa: UP031 - in two thirds of the time that `format` takes


uuid7 = UuidGenerator()
"""The process's one generator: ids are monotone within a process only if all of it asks here."""


def row_id(batch: str, row: int) -> str:
    """Return the id of a batch's row, 0-based: its index stands in the bits that `uuid7` leaves zero."""
    return f"{batch[:30]}{row:06x}"


def timestamp(moment: datetime) -> str:
    """Return a time as RFC 3339 in UTC with microseconds, so that text sorts as time. Raises ValueError if it has no zone."""
    if moment.tzinfo is None:
        raise ValueError(f"{moment.isoformat()} has no time zone; add Z or an offset such as +02:00")
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


class Now:
    """The present as `timestamp` writes it. The text of a second is made once: the date is most of the work."""

    def __init__(self, clock: Callable[[], int] = time.time_ns) -> None:
        """`clock` returns nanoseconds since 1970."""
        self._clock = clock
        self._known = (-1, "")

    def __call__(self) -> str:
        second, rest = divmod(self._clock(), 1_000_000_000)
        known = self._known
        if known[0] != second:
            known = self._known = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{known[1]}.{rest // 1000:06d}Z"


class Inputs(TypedDict):
    """A request's rows as they came, without the customer key."""

    names: list[str]
    rows: list[list[Any]]


class ExposureBatch(msgspec.Struct, kw_only=True, tag_field="kind", tag="exposures"):
    """One answered request by columns: each list holds one value a row, in the request's order."""

    id: UuidText
    """From `uuid7`, and the id of row 0."""
    puid: str
    at: Timestamp
    test: str
    epoch: Count
    """0: there was no usable epoch."""
    latency_ms: float
    customers: list[str | None]
    """Canonical keys; None where the customer is unknown."""
    buckets: list[Bucket | None]
    assigned: list[str]
    served: list[str]
    reasons: list[str]
    propensities: list[float]
    digests: list[str]
    scores: dict[str, list[Any]]
    """The model's columns by name."""
    decision: dict[str, list[Any]]
    """The decision unit's columns by name."""
    inputs: Inputs | None = None

    def encode(self) -> bytes:
        """Return the spool line, without newline. A column of routing whose rows are all equal is written as one value."""
        routing: tuple[Sequence[Any], ...] = self.assigned, self.served, self.reasons, self.propensities, self.digests
        if len(self.customers) > 1:
            routing = tuple(map(_once, routing))
        assigned, served, reasons, propensities, digests = routing
        line: dict[str, Any] = {
            "kind": "exposures",
            "id": self.id,
            "puid": self.puid,
            "at": self.at,
            "test": self.test,
            "epoch": self.epoch,
            "latency_ms": self.latency_ms,
            "customers": self.customers,
            "buckets": self.buckets,
            "assigned": assigned,
            "served": served,
            "reasons": reasons,
            "propensities": propensities,
            "digests": digests,
            "scores": self.scores,
            "decision": self.decision,
        }
        if self.inputs is not None:
            line["inputs"] = self.inputs
        return orjson.dumps(line, option=NUMPY)

    def expand(self) -> None:
        """Give columns written as one value their full length. Raises BrokenRecord if the columns don't fit together."""
        count = len(self.customers)
        if count > MAX_ROWS:
            raise BrokenRecord(f"batch {self.id} has {count} rows; ids have room for {MAX_ROWS}")
        if count != 1:
            self.assigned = _fill(self.assigned, count)
            self.served = _fill(self.served, count)
            self.reasons = _fill(self.reasons, count)
            self.propensities = _fill(self.propensities, count)
            self.digests = _fill(self.digests, count)
        routing: tuple[list[Any], ...] = self.buckets, self.assigned, self.served, self.reasons, self.propensities, self.digests
        for column in (*routing, *self.scores.values(), *self.decision.values()):
            if len(column) != count:
                raise BrokenRecord(f"batch {self.id} has {count} customers and a column of {len(column)} values")
        if self.inputs is not None:
            width = len(self.inputs["names"])
            if len(self.inputs["rows"]) != count or any(len(row) != width for row in self.inputs["rows"]):
                raise BrokenRecord(f"batch {self.id}: its inputs aren't {count} rows of {width} values")

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """Return each row's values in the order of Exposure's fields, scores and decision as JSON text."""
        return zip(
            self._ids(),
            repeat(self.puid),
            range(len(self.customers)),
            repeat(self.at),
            repeat(self.test),
            repeat(self.epoch),
            self.customers,
            self.buckets,
            self.assigned,
            self.served,
            self.reasons,
            self.propensities,
            _objects(self.scores),
            _objects(self.decision),
            self.digests,
            repeat(self.latency_ms),
            strict=False,
        )

    def input_rows(self) -> Iterator[tuple[str, str]]:
        """Return each row's exposure id and its inputs as a JSON object; nothing where inputs weren't kept."""
        if self.inputs is None:
            return iter(())
        names = self.inputs["names"]
        objects = (_dump(dict(zip(names, values, strict=True))) for values in self.inputs["rows"])
        return zip(self._ids(), objects, strict=True)

    def _ids(self) -> list[str]:
        return [row_id(self.id, row) for row in range(len(self.customers))]


class EpochRecord(msgspec.Struct, kw_only=True, tag_field="kind", tag="epoch"):
    """An epoch that an engine accepted. `document` is the whole record as JSON text."""

    test: str
    epoch: Annotated[int, Meta(ge=1, le=2**63 - 1)]
    actor: str
    reason: str
    at: str
    document: str

    def encode(self) -> bytes:
        """Return the spool line, without newline."""
        return msgspec.json.encode(self)

    def digest(self) -> str:
        """Return the SHA-256 of the document's content, whatever its spaces and the order of its keys.

        Raises BrokenRecord if the document is no JSON object.
        """
        try:
            content = orjson.loads(self.document)
        except orjson.JSONDecodeError as error:
            raise BrokenRecord(f"epoch {self.epoch} of test {self.test}: its document is not JSON: {error}") from None
        if not isinstance(content, dict):
            raise BrokenRecord(f"epoch {self.epoch} of test {self.test}: its document is no JSON object")
        return hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()


class Gap(msgspec.Struct, kw_only=True, tag_field="kind", tag="gap"):
    """A time in which `rows` rows were answered by the champion without a record. The judge takes no entries from it."""

    id: UuidText
    test: str
    start: Timestamp
    end: Timestamp
    rows: Count

    def encode(self) -> bytes:
        """Return the spool line, without newline."""
        return msgspec.json.encode(self)


class PairBatch(msgspec.Struct, kw_only=True, tag_field="kind", tag="pairs"):
    """What the arm that did not serve says of some rows of an answered request (a shadow's scores), by columns."""

    id: UuidText
    """The id of the request's ExposureBatch."""
    arm: str
    digest: str
    row: list[RowIndex]
    """Which rows of the request."""
    scores: dict[str, list[Any]]

    def encode(self) -> bytes:
        """Return the spool line, without newline."""
        return orjson.dumps({"kind": "pairs", **msgspec.structs.asdict(self)}, option=NUMPY)

    def check(self) -> None:
        """Raise BrokenRecord if the columns don't fit together."""
        if any(len(column) != len(self.row) for column in self.scores.values()):
            raise BrokenRecord(f"pairs of batch {self.id}: {len(self.row)} rows and columns of other lengths")

    def rows(self) -> Iterator[tuple[str, str, str, str]]:
        """Return each row's exposure id, arm, digest and scores as JSON text."""
        ids = (row_id(self.id, row) for row in self.row)
        return zip(ids, repeat(self.arm), repeat(self.digest), _objects(self.scores), strict=False)


class Exposure(msgspec.Struct, frozen=True):
    """One row answered, as exported. The order of the fields is the order of the columns everywhere."""

    id: str
    puid: str
    row: int
    at: str
    test: str
    epoch: int
    customer: str | None
    bucket: int | None
    assigned: str
    served: str
    reason: str
    propensity: float
    scores: dict[str, Any]
    decision: dict[str, Any]
    digest: str
    latency_ms: float


Record = ExposureBatch | EpochRecord | Gap | PairBatch

NUL = rb"\u0000"
"""U+0000 as JSON writes it."""

_decoder: msgspec.json.Decoder[Record] = msgspec.json.Decoder(Record)


def decode(line: bytes) -> Record:
    """Read one spool line. Raises BrokenRecord saying what is wrong with it."""
    try:
        record = _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BrokenRecord(str(error)) from None
    if NUL in line:
        _replace_nul(record)
    if isinstance(record, ExposureBatch):
        record.expand()
    elif isinstance(record, EpochRecord):
        record.digest()
    elif isinstance(record, PairBatch):
        record.check()
    return record


def _replace_nul(record: Record) -> None:
    """Put U+FFFD where a name or a reason has U+0000, which PostgreSQL can't hold. What is stored as JSON keeps it, escaped."""
    for name in record.__struct_fields__:
        value = getattr(record, name)
        if isinstance(value, str):
            setattr(record, name, value.replace("\0", "\ufffd"))
        elif isinstance(value, list):
            setattr(record, name, [each.replace("\0", "\ufffd") if isinstance(each, str) else each for each in value])


def _once(column: Sequence[Value]) -> Sequence[Value]:
    return column[:1] if len(column) > 1 and column.count(column[0]) == len(column) else column


def _fill(column: list[Value], count: int) -> list[Value]:
    return column * count if len(column) == 1 else column


def _objects(columns: Mapping[str, Sequence[Any]]) -> Iterator[str]:
    if not columns:
        return repeat("{}")
    names = list(columns)
    return (_dump(dict(zip(names, values, strict=True))) for values in zip(*columns.values(), strict=True))


def _dump(value: dict[str, Any]) -> str:
    return orjson.dumps(value, option=NUMPY).decode()
