"""A bundle's declared inputs turn a table of JSON values (or CSV text) into the feature matrix its models were trained on.

Invariant: a table either becomes a matrix whose every cell is allowed, or is refused with the first field and row that isn't;
training and serving encode through the same lines.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, Literal, NoReturn

import msgspec
import numpy as np
from numpy.typing import NDArray

from router.errors import shown
from serving.errors import BadRequest

UNKNOWN = -1.0
"""Code of a category that isn't among the known ones (new, or of too few customers at training)."""
MISSING = -2.0
"""Code of a missing category. A missing number is NaN."""

InputType = Literal["category", "number", "integer"]
Matrix = NDArray[np.float32]

_LARGEST = float(np.finfo(np.float32).max)
_MAX_PLANS = 256
_FEW_ROWS = 8  # beyond some ten rows numpy is the faster way
_NOTHING = type(None)
_NUMBER_OR_NOTHING = frozenset({int, float, _NOTHING})
_ID_OR_NOTHING = frozenset({str, int, _NOTHING})
_REFUSED = float("nan")  # what a lookup gives for a value that is not allowed


class Input(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One column of a request.

    A category is text; the known ones are coded by their place in `categories`, any other is served as unknown unless `enum`
    lists all that exist. With `numeric_ids` the integer 49 and the text "49" are one category. `missing` allows null and
    blank values, and the whole column to be absent. `minimum` and `maximum` are inclusive. `group` names inputs that are
    present or absent together; `within` names the input that this one refines (a model belongs to its brand).
    """

    name: str
    type: InputType
    description: str
    example: str | float | None
    unit: str = ""
    missing: bool = False
    minimum: float | None = None
    maximum: float | None = None
    categories: list[str] = []
    enum: list[str] | None = None
    numeric_ids: bool = False
    group: str = ""
    within: str = ""

    def expected(self) -> str:
        """Return in words what a value has to be."""
        if self.type == "category":
            kind = "text" if not self.numeric_ids else "a category id (text or integer)"
            kind = f"one of {', '.join(self.enum)}" if self.enum is not None else kind
        else:
            kind = "an integer" if self.type == "integer" else "a number"
            low, high = self.minimum, self.maximum
            if low is not None and high is not None:
                kind += f" from {low:g} to {high:g}"
            elif low is not None:
                kind += f" of at least {low:g}"
            elif high is not None:
                kind += f" of at most {high:g}"
        return f"{kind} or null" if self.missing else kind

    def fault(self, value: Any) -> str | None:
        """Return why this JSON value is not allowed, None if it is. The slow twin of what `Signature.encode` checks at once."""
        if value is None or (value == "" and self.type == "category"):
            return None if self.missing else "is missing"
        if self.type == "category":
            if self.numeric_ids and _integral(value):
                value = str(int(value))
            if type(value) is not str:
                return f"is {_kind(value)}"
            return None if self.enum is None or value in self.enum else "is not allowed"
        if type(value) is not int and type(value) is not float:
            return f"is {_kind(value)}"
        if type(value) is float and math.isnan(value):
            return "is not a number"
        low = -_LARGEST if self.minimum is None else self.minimum
        high = _LARGEST if self.maximum is None else self.maximum
        if not low <= value <= high:
            return "is out of range"
        return None if self.type == "number" or _integral(value) else "is not whole"


class _Lookup(dict[Any, float]):
    """Codes of one input's categories, `otherwise` for text that isn't listed. Where ids are numbers, a float or a boolean
    that equals one would be found too: who asks checks that."""

    def __init__(self, source: Input) -> None:
        super().__init__({name: float(code) for code, name in enumerate(source.categories)})
        self.otherwise = UNKNOWN if source.enum is None else _REFUSED
        self._kinds = (str, int) if source.numeric_ids else (str,)
        for name in source.enum or ():
            self.setdefault(name, UNKNOWN)
        if source.numeric_ids:
            self.update({int(name): code for name, code in self.items() if _canonical_integer(name)})
        self[None] = self[""] = MISSING if source.missing else _REFUSED

    def __missing__(self, key: Any) -> float:
        return self.otherwise if type(key) in self._kinds else _REFUSED


class _Plan:
    """How to encode tables with one particular list of column names. Of the inputs that are there integers come first, then
    the other numbers, then categories."""

    def __init__(self, inputs: Sequence[Input], lookups: Sequence[_Lookup | None], names: Sequence[str]) -> None:
        places = {name: place for place, name in enumerate(names)}
        kinds = {"integer": 0, "number": 1, "category": 2}
        there = sorted((kinds[each.type], i) for i, each in enumerate(inputs) if each.name in places)
        present = [(i, places[inputs[i].name]) for _, i in there]
        self.width = len(names)
        self.integers = sum(kind == 0 for kind, _ in there)
        self.numbers = [place for i, place in present if inputs[i].type != "category"]
        self.categories: list[tuple[int, Callable[[Any], float]]] = [
            (place, lookup.__getitem__) for i, place in present if (lookup := lookups[i]) is not None
        ]
        self.ids = [place for i, place in present if inputs[i].numeric_ids]
        low, high = zip(*(_bounds(inputs[i]) for i, _ in present), strict=True) if present else ((), ())
        self.low = np.array(low, dtype=np.float64)[:, None]
        self.high = np.array(high, dtype=np.float64)[:, None]
        self.required = [row for row, (i, _) in enumerate(present) if not inputs[i].missing]
        self.slots = [i for i, _ in present]
        self.template = [MISSING if each.type == "category" else _REFUSED for each in inputs]
        self.absent = None if len(present) == len(inputs) else np.array(self.template, dtype=np.float32)
        self.cells = [
            (i, place, lookups[i], inputs[i].numeric_ids, *_bounds(inputs[i]), inputs[i].type == "integer", inputs[i].missing)
            for i, place in sorted(present)
        ]


class Signature:
    """The inputs of a bundle, ready to encode tables. One column of the matrix for each input, in their order."""

    def __init__(self, inputs: Sequence[Input]) -> None:
        self.inputs = tuple(inputs)
        self.width = len(self.inputs)
        self._lookups = [_Lookup(each) if each.type == "category" else None for each in self.inputs]
        self._plans: dict[tuple[str | None, ...], _Plan] = {}

    def encode(self, names: Sequence[str], rows: Sequence[Sequence[Any]], *, ignore: str | None = None) -> Matrix:
        """Return the float32 matrix (rows, inputs) of a table of values as JSON gave them.

        Numbers stay, null or an absent column is NaN; a category is its code, UNKNOWN or MISSING. The column `ignore` (the
        customer key) is left out. Raises BadRequest naming field, 0-based row, value and what is expected.
        """
        plan = self._plan(names, ignore)
        if set(map(len, rows)) - {plan.width}:
            _refuse_ragged(rows, names)
        if 0 < len(rows) <= _FEW_ROWS and (coded := [_cells(plan, row) for row in rows]) and None not in coded:
            return np.array(coded, dtype=np.float32)
        columns: list[Sequence[Any]] = list(zip(*rows, strict=True)) or [()] * plan.width
        for place in plan.ids:
            if float in map(type, columns[place]):
                columns[place] = [int(v) if type(v) is float and v.is_integer() else v for v in columns[place]]
        return self._matrix(plan, names, columns)

    def parse_text(self, names: Sequence[str], rows: Sequence[Sequence[str]], *, ignore: str | None = None) -> Matrix:
        """Return the matrix of a table of text, as `encode` does: a blank value is missing, a number is read from its text.

        Raises BadRequest as `encode` does.
        """
        plan = self._plan(names, ignore)
        if set(map(len, rows)) - {plan.width}:
            _refuse_ragged(rows, names)
        columns: list[Sequence[Any]] = list(zip(*rows, strict=True)) or [()] * plan.width
        for place in plan.numbers:
            columns[place] = _numbers(columns[place])
        for place in plan.ids:
            columns[place] = [value.removesuffix(".0") for value in columns[place]]
        return self._matrix(plan, names, columns)

    def _plan(self, names: Sequence[str], ignore: str | None) -> _Plan:
        known = (ignore, *names)
        plan = self._plans.get(known)
        if plan is None:
            self._check_names(names, ignore)
            plan = _Plan(self.inputs, self._lookups, names)
            if len(self._plans) >= _MAX_PLANS:
                # Names come from clients: whoever permutes columns for ever must not fill the memory.
                self._plans.clear()
            self._plans[known] = plan
        return plan

    def _matrix(self, plan: _Plan, names: Sequence[str], columns: list[Sequence[Any]]) -> Matrix:
        """Encode the columns; any doubt sends them to `_explain`, so that the common way costs few calls."""
        count = len(columns[0]) if columns else 0
        numbers: list[Any] = list(chain.from_iterable([columns[place] for place in plan.numbers]))
        kinds = set(map(type, numbers))
        if kinds - _NUMBER_OR_NOTHING or any(set(map(type, columns[place])) - _ID_OR_NOTHING for place in plan.ids):
            self._explain(names, columns)
        missing = 0
        if _NOTHING in kinds:
            missing = numbers.count(None)
            numbers = [math.nan if value is None else value for value in numbers]
        try:
            for place, code in plan.categories:
                numbers += map(code, columns[place])
            # In half the time that numpy takes for a list.
            cells = np.frombuffer(struct.pack(f"{len(numbers)}d", *numbers)).reshape(len(plan.slots), count)
        except (struct.error, TypeError):
            # An integer beyond all doubles, or a category that can't be a key.
            self._explain(names, columns)
        # NaN fails both comparisons, so this counts what is there and allowed; a null is the only NaN that may remain.
        allowed = np.count_nonzero((cells >= plan.low) & (cells <= plan.high))
        if allowed + missing != cells.size:
            self._explain(names, columns)
        if missing and plan.required and np.count_nonzero(np.isnan(cells[plan.required])):
            self._explain(names, columns)
        if float in kinds and plan.integers:
            integers = cells[: plan.integers]
            if np.count_nonzero(integers > np.floor(integers)):
                self._explain(names, columns)
        if plan.absent is None:
            matrix = np.empty((count, len(self.inputs)), dtype=np.float32)
        else:
            matrix = np.tile(plan.absent, (count, 1))
        matrix[:, plan.slots] = cells.T
        return matrix

    def _explain(self, names: Sequence[str], columns: Sequence[Sequence[Any]]) -> NoReturn:
        """Raise BadRequest for the first value, row by row, that isn't allowed."""
        places = {name: place for place, name in enumerate(names)}
        present = [(each, columns[places[each.name]]) for each in self.inputs if each.name in places]
        for row in range(len(columns[0])):
            for each, values in present:
                fault = each.fault(values[row])
                if fault is not None:
                    value = "it" if values[row] is None or values[row] == "" else shown(values[row])
                    raise BadRequest(f"row {row}, field {each.name!r}: {value} {fault}; {each.expected()} is expected")
        raise AssertionError("a table was refused without a fault")

    def _check_names(self, names: Sequence[str], ignore: str | None) -> None:
        known = {each.name for each in self.inputs}
        for place, name in enumerate(names):
            if name in names[:place]:
                raise BadRequest(f"field {name!r} appears twice among the columns; each may appear once")
            if name not in known and name != ignore:
                expected = ", ".join(([ignore] if ignore else []) + [each.name for each in self.inputs])
                raise BadRequest(f"field {name!r:.80} is unknown; the columns are {expected}")
        for each in self.inputs:
            if not each.missing and each.name not in names:
                raise BadRequest(f"field {each.name!r} is missing; {each.expected()} is expected in every row")


def _cells(plan: _Plan, row: Sequence[Any]) -> list[float] | None:
    """Return one row's cells, or None in any doubt: the way for a few rows, where numpy's overhead would be all the work."""
    cells = plan.template.copy()
    for slot, place, lookup, numeric_ids, low, high, integer, missing in plan.cells:
        value = row[place]
        kind = type(value)
        if lookup is not None:
            if numeric_ids and kind is float and value.is_integer():
                value, kind = int(value), int
            if kind is not str and value is not None and not (numeric_ids and kind is int):
                return None
            value = lookup[value]
            if value != value:  # noqa: PLR0124 - NaN, a lookup's refusal
                return None
        elif value is None:
            if not missing:
                return None
            value = math.nan
        elif (kind is not int and kind is not float) or not low <= value <= high or (integer and value % 1):
            return None
        cells[slot] = value
    return cells


def _bounds(source: Input) -> tuple[float, float]:
    if source.type == "category":
        return MISSING, _LARGEST
    low = -_LARGEST if source.minimum is None else source.minimum
    return low, _LARGEST if source.maximum is None else source.maximum


def _numbers(column: Sequence[str]) -> Sequence[Any]:
    """Read a column of text; whatever is no number stays text, for the checks to refuse with its row."""
    joined = "".join(column)
    if joined.isascii() and "_" not in joined:  # float() would take "1_000" and other scripts' digits
        try:
            return [float(value) if value and not value.isspace() else None for value in column]
        except ValueError:
            pass
    return [_number(value) for value in column]


def _number(text: str) -> float | str | None:
    if not text or text.isspace():
        return None
    try:
        return float(text) if text.isascii() and "_" not in text else text
    except ValueError:
        return text


def _integral(value: Any) -> bool:
    return type(value) is int or (type(value) is float and value.is_integer())


def _canonical_integer(text: str) -> bool:
    return text.removeprefix("-").isdecimal() and str(int(text)) == text


def _kind(value: Any) -> str:
    kinds = {bool: "a boolean", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return kinds.get(type(value), type(value).__name__)


def _refuse_ragged(rows: Sequence[Sequence[Any]], names: Sequence[str]) -> NoReturn:
    row = next(i for i, each in enumerate(rows) if len(each) != len(names))
    raise BadRequest(f"row {row}: {len(rows[row])} values for {len(names)} fields ({', '.join(names):.200})")
