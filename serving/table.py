"""A table of rows: what a payload of Seldon's v1 protocol holds once it is parsed.

Invariant: every row has one value a column, exactly as JSON (or CSV text) gave it; no number was rounded on the way.
"""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Sequence
from typing import Any, NoReturn

from router.errors import shown
from serving.errors import BadRequest, TooLarge

_ONLY_TEXT, _ONLY_LISTS = {str}, {list}


class Table:
    """Column names and rows (`count` × `len(names)`), held by row or by column and turned over only when asked.

    `text` says that all values are text (CSV), where blank means missing. `cache` keeps what a node derived from all rows
    (a feature matrix), and `take` carries its part along; keys are the deriving objects.
    """

    __slots__ = ("_chosen", "_columns", "_rows", "_whole", "cache", "count", "names", "text")

    def __init__(
        self,
        names: list[str],
        rows: list[list[Any]] | None = None,
        *,
        columns: list[list[Any]] | None = None,
        text: bool = False,
    ) -> None:
        self.names = names
        self._rows = rows
        self._columns = columns
        self._whole: Table | None = None
        self._chosen: Sequence[int] = ()
        self.text = text
        self.cache: dict[object, Any] = {}
        self.count = len(rows) if rows is not None else len(columns[0]) if columns else 0

    @property
    def rows(self) -> list[list[Any]]:
        if self._rows is None:
            if self._whole is None:
                self._rows = [list(row) for row in zip(*(self._columns or []), strict=True)]
            else:
                rows = self._whole.rows
                self._rows = [rows[i] for i in self._chosen]
        return self._rows

    @property
    def lines(self) -> Sequence[Sequence[Any]]:
        """The rows for reading only: as tuples where they are held by column, in half the time that lists take."""
        return self.rows if self._columns is None or self._rows is not None else list(zip(*self._columns, strict=True))

    @property
    def columns(self) -> list[list[Any]]:
        if self._columns is None:
            rows = self.rows
            self._columns = [[row[i] for row in rows] for i in range(len(self.names))]
        return self._columns

    def column(self, name: str) -> list[Any] | None:
        """Return one column's values, or None where there is no such column."""
        try:
            index = self.names.index(name)
        except ValueError:
            return None
        if self._columns is not None:
            return self._columns[index]
        if self._whole is not None and self._whole._columns is not None:
            column = self._whole._columns[index]
            return [column[i] for i in self._chosen]
        return [row[index] for row in self.rows]

    def take(self, chosen: Sequence[int]) -> Table:
        """Return the table of the rows with these indices, in this order; they are looked up when somebody asks for them."""
        part = Table(self.names, text=self.text)
        part._whole, part._chosen, part.count = self, chosen, len(chosen)
        part.cache = {owner: derived[list(chosen)] for owner, derived in self.cache.items()}
        return part


def parse(payload: Any, *, max_rows: int) -> Table:
    """Return the table in a parsed message: `data.ndarray`, `data.tensor`, `jsonData` (objects), `strData` or `binData` (CSV).

    Raises BadRequest naming field and row, TooLarge over `max_rows`.
    """
    if type(payload) is not dict:
        raise BadRequest(f"the body is a JSON {_kind(payload)}; an object with data.names and data.ndarray is expected")
    given = [field for field in _PARSERS if payload.get(field) is not None]
    if len(given) != 1:
        found = " and ".join(given) or "none of them"
        raise BadRequest(f"exactly one of data, jsonData, strData and binData is expected; found {found}")
    value = payload[given[0]]
    table = _PARSERS[given[0]](value, max_rows)
    if table.count == 0:
        raise BadRequest(f"{given[0]} holds 0 rows; at least 1 is expected")
    if len(set(table.names)) != len(table.names):
        twice = sorted({name for name in table.names if table.names.count(name) > 1})
        raise BadRequest(f"duplicate column {', '.join(map(repr, twice))}; each name may appear once")
    return table


def _data(data: Any, max_rows: int) -> Table:
    if type(data) is not dict:
        raise BadRequest(f"data is a JSON {_kind(data)}; an object with names and ndarray is expected")
    names = data.get("names")
    if type(names) is not list or not names or set(map(type, names)) != _ONLY_TEXT:
        raise BadRequest(f"data.names is {shown(names)}; the list of the columns' names is expected")
    if ("ndarray" in data) == ("tensor" in data):
        raise BadRequest(
            "data holds both ndarray and tensor; one is expected" if "ndarray" in data else "data.ndarray is missing"
        )
    width = len(names)
    if "tensor" in data:
        return Table(names, _tensor(data["tensor"], width, max_rows))
    rows = data["ndarray"]
    if type(rows) is not list:
        raise BadRequest(f"data.ndarray is a JSON {_kind(rows)}; a list of rows is expected")
    _check_count(len(rows), "data.ndarray", max_rows)
    if set(map(type, rows)) - _ONLY_LISTS or set(map(len, rows)) - {width}:
        _refuse_rows(names, rows)
    return Table(names, rows)


def _refuse_rows(names: list[str], rows: list[Any]) -> NoReturn:
    width = len(names)
    row, found = next((i, row) for i, row in enumerate(rows) if type(row) is not list or len(row) != width)
    if type(found) is not list:
        raise BadRequest(f"data.ndarray, row {row}: {shown(found)} is no list; a row is a list of {width} values")
    raise BadRequest(f"data.ndarray, row {row}: {len(found)} values for {width} names ({', '.join(names):.200})")


def _tensor(tensor: Any, width: int, max_rows: int) -> list[list[Any]]:
    shape = tensor.get("shape") if type(tensor) is dict else None
    values = tensor.get("values") if type(tensor) is dict else None
    if (
        type(shape) is not list
        or len(shape) != 2
        or not all(type(n) is int and n >= 0 for n in shape)
        or type(values) is not list
    ):
        raise BadRequest("data.tensor needs shape, a list of two numbers (rows, columns), and values, a flat list")
    if shape[1] != width:
        raise BadRequest(f"data.tensor.shape is {shape}; its second number must be that of data.names, {width}")
    _check_count(shape[0], "data.tensor", max_rows)
    if shape[0] * shape[1] != len(values):
        raise BadRequest(f"data.tensor has {len(values)} values for the shape {shape}")
    for i, value in enumerate(values):
        if type(value) is not int and type(value) is not float:
            raise BadRequest(f"data.tensor, row {i // width}: {shown(value)} is no number; use ndarray for text and null")
    return [values[i : i + width] for i in range(0, len(values), width)]


def _objects(data: Any, max_rows: int) -> Table:
    objects = [data] if type(data) is dict else data
    if type(objects) is not list:
        raise BadRequest(f"jsonData is a JSON {_kind(data)}; an object or a list of objects is expected")
    _check_count(len(objects), "jsonData", max_rows)
    names: dict[str, None] = {}
    for i, each in enumerate(objects):
        if type(each) is not dict:
            raise BadRequest(f"jsonData, row {i}: {shown(each)} is no object")
        names.update(dict.fromkeys(each))
    return Table(list(names), [[each.get(name) for name in names] for each in objects])


def _csv(text: Any, max_rows: int) -> Table:
    if type(text) is not str:
        raise BadRequest(f"strData is a JSON {_kind(text)}; CSV text with a line of names is expected")
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[list[Any]] = []
    try:
        names = next(lines, [])
        for row in lines:
            if not row:
                continue
            if len(row) != len(names):
                raise BadRequest(f"CSV, row {len(rows)}: {len(row)} values for {len(names)} names ({', '.join(names):.200})")
            rows.append(row)
            _check_count(len(rows), "CSV", max_rows)
    except csv.Error as error:
        raise BadRequest(f"CSV, line {lines.line_num}: {error}") from None
    return Table(names, rows, text=True)


def _binary(data: Any, max_rows: int) -> Table:
    if type(data) is not str:
        raise BadRequest(f"binData is a JSON {_kind(data)}; CSV text in base64 is expected")
    try:
        text = base64.b64decode(data, validate=True).decode()
    except ValueError as error:
        raise BadRequest(f"binData is no UTF-8 text in base64: {error}") from None
    return _csv(text, max_rows)


_PARSERS = {"data": _data, "jsonData": _objects, "strData": _csv, "binData": _binary}


def _check_count(count: int, field: str, max_rows: int) -> None:
    if count > max_rows:
        raise TooLarge(f"{field} holds {count} rows or more; at most {max_rows} are allowed in one request")


def _kind(value: Any) -> str:
    kinds = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return kinds.get(type(value), "number")
