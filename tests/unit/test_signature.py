"""A table becomes the matrix that its models were trained on, or is refused with the first field and row that is wrong."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import BadRequest
from serving.signature import MISSING, UNKNOWN, Input, Signature

DAYS = ["Monday", "Tuesday"]
INPUTS = [
    Input("brand", "category", "brand", "小米", categories=["小米", "三星", "001"]),
    Input("events", "integer", "count", 3, missing=True, minimum=0),
    Input("lat", "number", "latitude", 31.5, missing=True, minimum=-90, maximum=90),
    Input("app", "category", "category id", 49, missing=True, numeric_ids=True, categories=["49", "7"]),
    Input("day", "category", "weekday", "Monday", missing=True, enum=DAYS, categories=["Tuesday"]),
    Input("income", "number", "income", 1000.0),
]
NAMES = [each.name for each in INPUTS]
GOOD: list[Any] = ["小米", 3, 31.5, 49, "Tuesday", 1000.0]
SIGNATURE = Signature(INPUTS)

# What each input allows, written down a second time and differently.
VALID: dict[str, st.SearchStrategy[Any]] = {
    "brand": st.sampled_from(["小米", "三星", "001"]) | st.text(min_size=1, max_size=5),
    "events": st.none() | st.integers(0, 10**9) | st.integers(0, 1000).map(float),
    "lat": st.none() | st.floats(-90, 90) | st.integers(-90, 90),
    "app": st.sampled_from([None, "", 49, "49", 49.0, 7, 8, "x"]) | st.integers(-(10**6), 10**6),
    "day": st.sampled_from([None, "", *DAYS]),
    "income": st.floats(-1e30, 1e30) | st.integers(-(10**18), 10**18),
}
rows_of_values = st.lists(st.tuples(*(VALID[name] for name in NAMES)).map(list), min_size=1, max_size=8)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.sampled_from([*DAYS, "49", 49, -91]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=3,
)


def code(name: str, value: Any) -> float:
    """What a valid value must become."""
    source = INPUTS[NAMES.index(name)]
    if source.type != "category":
        return math.nan if value is None else float(np.float32(value))
    if value is None or value == "":
        return MISSING
    text = str(int(value)) if not isinstance(value, str) else value
    return float(source.categories.index(text)) if text in source.categories else UNKNOWN


def fits(value: float) -> bool:
    """Tell whether a number is finite as float32, which the models take."""
    try:
        with np.errstate(over="ignore"):
            return bool(np.isfinite(np.float32(value)))
    except OverflowError:
        return False


def is_valid(name: str, value: Any) -> bool:
    """The rules of INPUTS, value by value."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and fits(value)
    match name:
        case "brand":
            return isinstance(value, str) and value != ""
        case "events":
            return value is None or (number and value >= 0 and value == int(value))
        case "lat":
            return value is None or (number and -90 <= value <= 90)
        case "app":
            whole = type(value) is int or (type(value) is float and value.is_integer())
            return value is None or isinstance(value, str) or whole
        case "day":
            return value in (None, "", "Monday", "Tuesday")
        case _:
            return number


@given(rows_of_values)
def test_valid_values_become_numbers_and_codes(rows: list[list[Any]]) -> None:
    matrix = SIGNATURE.encode(NAMES, rows)
    assert matrix.dtype == np.float32
    assert matrix.flags.c_contiguous
    expected = [[code(name, value) for name, value in zip(NAMES, row, strict=True)] for row in rows]
    np.testing.assert_array_equal(matrix, np.array(expected, dtype=np.float32))


@given(rows_of_values)
def test_a_few_rows_are_encoded_as_many_are(rows: list[list[Any]]) -> None:
    """The way of a few rows and the way of many are different lines."""
    np.testing.assert_array_equal(SIGNATURE.encode(NAMES, rows), SIGNATURE.encode(NAMES, rows * 20)[: len(rows)])


@given(rows_of_values, st.data())
def test_a_few_rows_are_refused_as_many_are(rows: list[list[Any]], data: st.DataObject) -> None:
    row = data.draw(st.integers(0, len(rows) - 1))
    rows[row][data.draw(st.integers(0, len(NAMES) - 1))] = data.draw(json_values)
    outcomes: list[object] = []
    for count in (1, 20):
        try:
            outcomes.append(SIGNATURE.encode(NAMES, rows * count)[: len(rows)].tobytes())
        except BadRequest as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]


@given(rows_of_values, st.permutations(range(len(NAMES))))
def test_a_row_is_encoded_alike_alone_in_a_batch_and_in_any_column_order(rows: list[list[Any]], order: list[int]) -> None:
    matrix = SIGNATURE.encode(NAMES, rows)
    moved = SIGNATURE.encode([NAMES[i] for i in order], [[row[i] for i in order] for row in rows])
    np.testing.assert_array_equal(matrix, moved)
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(SIGNATURE.encode(NAMES, [row]), matrix[i : i + 1])


@given(rows_of_values)
def test_an_absent_column_is_a_column_of_nulls(rows: list[list[Any]]) -> None:
    required = [0, 5]
    nulls = [[value if i in required else None for i, value in enumerate(row)] for row in rows]
    few = SIGNATURE.encode(["brand", "income"], [[row[0], row[5]] for row in rows])
    np.testing.assert_array_equal(few, SIGNATURE.encode(NAMES, nulls))


@given(rows_of_values, st.data())
def test_one_bad_cell_is_refused_with_its_field_and_row_and_every_good_one_is_taken(rows: list[list[Any]], data: Any) -> None:
    row = data.draw(st.integers(0, len(rows) - 1))
    column = data.draw(st.integers(0, len(NAMES) - 1))
    value = data.draw(json_values)
    rows[row][column] = value
    if is_valid(NAMES[column], value):
        assert SIGNATURE.encode(NAMES, rows).shape == (len(rows), len(NAMES))
    else:
        with pytest.raises(BadRequest) as refused:
            SIGNATURE.encode(NAMES, rows)
        assert str(refused.value).startswith(f"row {row}, field {NAMES[column]!r}: ")
        assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("brand", None, "it is missing; text is expected"),
        ("brand", "", "it is missing; text is expected"),
        ("brand", 5, "5 is a number; text is expected"),
        ("brand", ["小米"], "['小米'] is a list; text is expected"),
        ("events", "3", "'3' is text; an integer of at least 0 or null is expected"),
        ("events", 3.5, "3.5 is not whole; an integer of at least 0 or null is expected"),
        ("events", -1, "-1 is out of range"),
        ("events", True, "True is a boolean"),
        ("lat", 90.0001, "90.0001 is out of range; a number from -90 to 90 or null is expected"),
        ("lat", math.nan, "nan is not a number"),
        ("lat", math.inf, "inf is out of range"),
        ("lat", {"a": 1}, "{'a': 1} is an object"),
        ("app", True, "True is a boolean; a category id (text or integer) or null is expected"),
        ("app", 49.5, "49.5 is a number"),
        ("day", "Sunday", "'Sunday' is not allowed; one of Monday, Tuesday or null is expected"),
        ("income", None, "it is missing; a number is expected"),
        ("income", 1e39, "1e+39 is out of range"),
        ("income", 10**400, "0 is out of range"),
        ("income", "x" * 500, "'" + "x" * 79 + " is text; a number is expected"),
    ],
)
def test_the_refusal_says_what_is_wrong_and_what_would_be_right(field: str, value: Any, said: str) -> None:
    bad = [value if name == field else good for name, good in zip(NAMES, GOOD, strict=True)]
    with pytest.raises(BadRequest) as refused:
        SIGNATURE.encode(NAMES, [GOOD, GOOD, bad, bad])
    assert str(refused.value).startswith(f"row 2, field {field!r}: ")
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (NAMES[1:], "field 'brand' is missing; text is expected in every row"),
        ([*NAMES, "colour"], "field 'colour' is unknown; the columns are key, brand,"),
        ([*NAMES, "lat"], "field 'lat' appears twice"),
        (["key", "key", *NAMES], "field 'key' appears twice"),
    ],
)
def test_columns_must_be_known_single_and_complete(names: list[str], said: str) -> None:
    with pytest.raises(BadRequest) as refused:
        SIGNATURE.encode(names, [[*GOOD, 1, 2][: len(names)]], ignore="key")
    assert said in str(refused.value)


def test_a_ragged_row_is_named() -> None:
    with pytest.raises(BadRequest, match=r"row 1: 5 values for 6 fields \(brand, events"):
        SIGNATURE.encode(NAMES, [GOOD, GOOD[:5], GOOD])
    with pytest.raises(BadRequest, match="row 0: 1 values for 6 fields"):
        SIGNATURE.parse_text(NAMES, [["x"]])


def test_the_key_column_is_left_out_whatever_it_holds() -> None:
    with_key = SIGNATURE.encode(["key", *NAMES], [[{"any": "thing"}, *GOOD]], ignore="key")
    np.testing.assert_array_equal(with_key, SIGNATURE.encode(NAMES, [GOOD]))


def test_an_id_is_one_category_as_text_and_as_integer() -> None:
    rows = [["小米", None, None, app, None, 1] for app in (49, "49", 49.0, 8, "049", "49 ")]
    assert SIGNATURE.encode(NAMES, rows)[:, 3].tolist() == [0, 0, 0, UNKNOWN, UNKNOWN, UNKNOWN]


def test_values_may_come_from_the_json_parser_as_they_are() -> None:
    body = '{"names":["income","brand","lat"],"rows":[[1e3,"\\u5c0f\\u7c73",-0.0],[18446744073709551615,"new",null]]}'
    table = orjson.loads(body)
    matrix = SIGNATURE.encode(table["names"], table["rows"])
    assert matrix[0].tolist()[::5] == [0, 1000]
    assert matrix[1, 0] == UNKNOWN
    assert math.isnan(matrix[1, 2])


text_cells = {
    "events": st.integers(0, 10**6).map(str) | st.just("17.0") | st.just(" "),
    "lat": st.floats(-90, 90).map(repr) | st.just("") | st.just(" 1.5 ") | st.just("1e1"),
    "app": st.sampled_from(["", "49", "49.0", "x"]),
    "day": st.sampled_from(["", *DAYS]),
    "income": st.floats(-1e9, 1e9).map(repr),
    "brand": st.text(min_size=1, max_size=4),
}


@given(st.lists(st.tuples(*(text_cells[name] for name in NAMES)).map(list), min_size=1, max_size=6))
def test_text_means_what_the_same_values_mean_in_json(rows: list[list[str]]) -> None:
    def value(name: str, text: str) -> Any:
        if name in ("events", "lat", "income"):
            return float(text) if text.strip() else None
        return 49 if name == "app" and text == "49.0" else text

    values = [[value(name, text) for name, text in zip(NAMES, row, strict=True)] for row in rows]
    np.testing.assert_array_equal(SIGNATURE.parse_text(NAMES, rows), SIGNATURE.encode(NAMES, values))


@pytest.mark.parametrize("text", ["abc", "nan", "NaN", "inf", "-Infinity", "1_000", "１２", "0x10", "1,5", "91", "true"])
def test_text_that_is_no_number_in_range_is_refused(text: str) -> None:
    good = ["小米", "3", "31.5", "49", "Monday", "1"]
    with pytest.raises(BadRequest, match=r"^row 1, field 'lat': "):
        SIGNATURE.parse_text(NAMES, [good, [*good[:2], text, *good[3:]]])


def test_a_table_without_rows_is_an_empty_matrix() -> None:
    assert SIGNATURE.encode(NAMES, []).shape == (0, 6)
    assert SIGNATURE.encode(["brand", "income"], []).shape == (0, 6)


def test_permuted_columns_do_not_fill_the_memory() -> None:
    signature = Signature(INPUTS)
    for order in itertools.permutations(range(len(NAMES))):
        signature.encode([NAMES[i] for i in order], [[GOOD[i] for i in order]])
    assert len(signature._plans) <= 256
