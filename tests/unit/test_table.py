"""Payloads become tables: every form gives the same rows, and every fault is named."""

from __future__ import annotations

import base64
import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import BadRequest, TooLarge
from serving.messages import Message

NAMES = ["device_id", "a"]
ID = -8076087639492063270
keys = st.integers(-(2**63), 2**63 - 1)


def message(payload: Any) -> Message:
    return Message(json.dumps(payload).encode())


@given(st.lists(st.tuples(keys, st.integers(-1000, 1000)), min_size=1, max_size=5))
def test_every_form_of_a_payload_gives_the_same_exact_rows(rows: list[tuple[int, int]]) -> None:
    wanted = [list(row) for row in rows]
    flat = [value for row in rows for value in row]
    csv = "device_id,a\n" + "".join(f"{key},{value}\n" for key, value in rows)
    typed = [
        {"data": {"names": NAMES, "ndarray": wanted}},
        {"data": {"names": NAMES, "tensor": {"shape": [len(rows), 2], "values": flat}}},
        {"jsonData": [dict(zip(NAMES, row, strict=True)) for row in rows]},
    ]
    for payload in typed:
        table = message(payload).table()
        assert (table.names, table.rows) == (NAMES, wanted)
    for payload in ({"strData": csv}, {"binData": base64.b64encode(csv.encode()).decode()}):
        table = message(payload).table()
        assert table.text
        assert (table.names, table.rows) == (NAMES, [[str(value) for value in row] for row in rows])


def test_one_json_object_is_one_row_and_absent_fields_are_null() -> None:
    assert message({"jsonData": {"device_id": ID}}).table().rows == [[ID]]
    table = message({"jsonData": [{"device_id": "x"}, {"a": 1}]}).table()
    assert table.rows == [["x", None], [None, 1]]


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        ([], "list"),
        ({}, "none of them"),
        ({"data": {"names": NAMES, "ndarray": [[1, 2]]}, "strData": "a"}, "data and strData"),
        ({"data": 1}, "data is a JSON number"),
        ({"data": {"ndarray": [[1]]}}, "data.names"),
        ({"data": {"names": [], "ndarray": [[]]}}, "data.names"),
        ({"data": {"names": [1], "ndarray": [[1]]}}, "data.names"),
        ({"data": {"names": NAMES}}, "data.ndarray is missing"),
        ({"data": {"names": NAMES, "ndarray": [[1, 2]], "tensor": {}}}, "both"),
        ({"data": {"names": NAMES, "ndarray": {}}}, "data.ndarray is a JSON object"),
        ({"data": {"names": NAMES, "ndarray": []}}, "0 rows"),
        ({"data": {"names": NAMES, "ndarray": [1, 2]}}, "row 0"),
        ({"data": {"names": NAMES, "ndarray": [[1, 2], [1]]}}, "row 1: 1 values for 2 names"),
        ({"data": {"names": ["a", "a"], "ndarray": [[1, 2]]}}, "duplicate column 'a'"),
        ({"data": {"names": NAMES, "tensor": {"shape": [2, 2], "values": [1, 2, 3]}}}, "3 values for the shape"),
        ({"data": {"names": NAMES, "tensor": {"shape": [1, 3], "values": [1, 2, 3]}}}, "second number"),
        ({"data": {"names": NAMES, "tensor": {"shape": 2, "values": []}}}, "shape"),
        ({"data": {"names": NAMES, "tensor": {"shape": [2, 2], "values": [1, 2, 3, "x"]}}}, "row 1"),
        ({"jsonData": [1]}, "row 0"),
        ({"jsonData": "x"}, "jsonData is a JSON string"),
        ({"strData": "a,b\n1\n"}, "row 0: 1 values for 2 names"),
        ({"strData": 'a,b\n"1,2\n'}, "CSV, line 2"),
        ({"strData": 1}, "strData"),
        ({"binData": "%"}, "base64"),
        ({"meta": 1, "data": {"names": NAMES, "ndarray": [[1, 2]]}}, "meta"),
    ],
)
def test_what_is_no_table_is_refused_by_name(payload: Any, said: str) -> None:
    with pytest.raises(BadRequest) as caught:
        message(payload).table()
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "empty"),
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"data":{"names":["a","b"],"ndarray":[[1,2],[3,NaN]]}}', "row 1, field 'b': nan"),
        (b'{"data":{"names":["a","b"],"ndarray":[[-Infinity,2]]}}', "row 0, field 'a': -inf"),
        (b'{"meta":{"x":NaN},"data":{"names":["a"],"ndarray":[[1]]}}', "not JSON"),
    ],
)
def test_what_is_no_json_is_refused(body: bytes, said: str) -> None:
    with pytest.raises(BadRequest) as caught:
        Message(body).table()
    assert said in str(caught.value)


@pytest.mark.parametrize("form", ["ndarray", "tensor", "jsonData", "strData"])
def test_one_row_too_many_is_too_large_in_every_form(form: str) -> None:
    payload = {
        "ndarray": {"data": {"names": ["a"], "ndarray": [[1]] * 6}},
        "tensor": {"data": {"names": ["a"], "tensor": {"shape": [6, 1], "values": [1] * 6}}},
        "jsonData": {"jsonData": [{"a": 1}] * 6},
        "strData": {"strData": "a\n" + "1\n" * 6},
    }[form]
    assert message(payload).table(6).count == 6
    with pytest.raises(TooLarge, match="at most 5"):
        message(payload).table(5)


def test_an_untouched_message_leaves_as_the_bytes_it_came_as() -> None:
    body = b'{ "data": {"names":["a"],"ndarray":[[1.0]]} }'
    untouched = Message(body)
    assert untouched.table().rows == [[1.0]]
    assert untouched.body is body


def test_columns_and_rows_are_two_views_of_one_table() -> None:
    table = message({"data": {"names": NAMES, "ndarray": [[1, 2], [3, 4], [5, 6]]}}).table()
    assert table.columns == [[1, 3, 5], [2, 4, 6]]
    turned = type(table)(table.names, columns=table.columns)
    for each in (table, turned):
        part = each.take([2, 0])
        assert (part.count, part.column("a"), part.column("b")) == (2, [6, 2], None)
        assert part.take([1]).column("device_id") == [1]
        assert list(map(list, part.lines)) == part.rows == [[5, 6], [1, 2]]
        assert part.columns == [[5, 1], [6, 2]]
    assert turned.rows == table.rows
    assert orjson.loads(Message.of(turned, {"puid": "x"}).body) == {
        "data": {"names": NAMES, "ndarray": [[1, 2], [3, 4], [5, 6]]},
        "meta": {"puid": "x"},
    }


@pytest.mark.parametrize(
    "form", ['{"jsonData":[%s]}', '{"data":{"names":%s,"ndarray":[[1]]}}', '{"meta":%s,"jsonData":{"a":1}}']
)
def test_a_value_nested_deeper_than_python_can_write_is_refused_as_any_other(form: str) -> None:
    with pytest.raises(BadRequest, match=r"no object|is expected"):
        Message((form % ("[" * 990 + "]" * 990)).encode()).table()
