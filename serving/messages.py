"""A message travels between nodes as the bytes that came in; it is parsed once, and only where somebody needs its table.

Invariant: a message that nobody changed leaves as the very bytes it came as.
"""

from __future__ import annotations

import json
import math
from typing import Any

import orjson

from router.errors import shown
from serving.errors import BadRequest
from serving.table import Table, parse

MAX_ROWS = 10_000


class Message:
    """One payload of Seldon's v1 protocol over REST, as bytes, as a table with meta, or as both.

    `content_type` is None where the sender named none; `content_encoding` is set where a node's answer is compressed.
    """

    __slots__ = ("_body", "_meta", "_table", "content_encoding", "content_type")

    def __init__(self, body: bytes, content_type: str | None = "application/json", content_encoding: str | None = None) -> None:
        self._body: bytes | None = body
        self._table: Table | None = None
        self._meta: dict[str, Any] | None = None
        self.content_type = content_type
        self.content_encoding = content_encoding

    @classmethod
    def of(cls, table: Table, meta: dict[str, Any] | None = None) -> Message:
        """Return the message of a table; its bytes are made when somebody asks for them."""
        message = cls.__new__(cls)
        message._body = None
        message._table = table
        message._meta = meta or {}
        message.content_type = "application/json"
        message.content_encoding = None
        return message

    @property
    def body(self) -> bytes:
        if self._body is None:
            table = self.table()
            data = {"names": table.names, "ndarray": table.lines}
            # OPT_NON_STR_KEYS stays off: a key that is no string is a fault of ours and must show.
            self._body = orjson.dumps({"data": data, "meta": self.meta}, option=orjson.OPT_SERIALIZE_NUMPY)
        return self._body

    def table(self, max_rows: int = MAX_ROWS) -> Table:
        """Return the payload's table, parsed on the first call. Raises BadRequest or TooLarge."""
        if self._table is None:
            self._parse(max_rows)
        assert self._table is not None  # noqa: S101 - _parse sets it or raises
        return self._table

    @property
    def meta(self) -> dict[str, Any]:
        """Return the payload's `meta`, {} where there is none. Raises BadRequest if the payload can't be parsed."""
        if self._meta is None:
            self._parse(MAX_ROWS)
        return self._meta or {}

    def _parse(self, max_rows: int) -> None:
        payload = _load(self._body or b"")
        table = parse(payload, max_rows=max_rows)
        meta = payload.get("meta")
        if meta is not None and type(meta) is not dict:
            raise BadRequest(f"meta is {shown(meta)}; an object is expected")
        if meta and type(meta.get("tags") or {}) is not dict:
            raise BadRequest(f"meta.tags is {shown(meta['tags'])}; an object is expected")
        if meta:
            try:
                orjson.dumps({"meta": meta})
            except TypeError as error:
                # What can be read at 1,024 levels can be written at 254 only, and tags are written into the answer.
                raise BadRequest(f"meta can't be passed on: {error}") from None
        self._table, self._meta = table, meta or {}


def _load(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        refused = BadRequest(f"the body is not JSON: {error}" if body else "the body is empty; a JSON object is expected")
    if b"NaN" in body or b"Infinity" in body:
        # Python's own parser takes these literals, which JSON lacks: it lets us say where they stand.
        try:
            payload = json.loads(body)
            rows = parse(payload, max_rows=MAX_ROWS)
        except (ValueError, RecursionError, BadRequest):
            raise refused from None
        for i, row in enumerate(rows.rows):
            for name, value in zip(rows.names, row, strict=True):
                if type(value) is float and not math.isfinite(value):
                    raise BadRequest(f"row {i}, field {name!r}: {value} is no JSON number; send null for a missing value")
    raise refused
