"""The canonical form of a customer key: what is one, what is none, what is refused."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import InvalidKey
from router.keys import MAX_LENGTH, canonical_key, canonical_keys


@given(st.integers(-(2**63), 2**63 - 1))
def test_an_integer_and_its_decimal_text_are_one_customer(value: int) -> None:
    assert canonical_key(value, "device_id") == canonical_key(str(value), "device_id") == str(value)


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=MAX_LENGTH))
def test_a_string_stays_as_it_is(value: str) -> None:
    assert canonical_key(value, "device_id") == value


@pytest.mark.parametrize("value", [None, ""])
def test_null_and_empty_are_nobody(value: object) -> None:
    assert canonical_key(value, "device_id") is None


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (1.0, "floating-point"),
        (-8076087639492063270.0, "floating-point"),
        (True, "boolean"),
        (2**63, "beyond 64 bits"),
        (-(2**63) - 1, "beyond 64 bits"),
        ([1], "list"),
        ({"a": 1}, "object"),
        ("a\0b", "U+0000"),
        ("\ud800", "surrogate"),
        ("x" * (MAX_LENGTH + 1), str(MAX_LENGTH)),
    ],
)
def test_what_has_no_canonical_form_is_refused_naming_row_and_field(value: object, said: str) -> None:
    with pytest.raises(InvalidKey) as caught:
        canonical_key(value, "device_id", 3)
    assert said in str(caught.value)
    assert "row 3" in str(caught.value)
    assert "device_id" in str(caught.value)


odd = st.one_of(
    st.none(), st.booleans(), st.floats(), st.just(""), st.just("a\0b"), st.just("\ud800"), st.just("x" * (MAX_LENGTH + 1)),
    st.integers(-(2**65), 2**65),
)  # fmt: skip


@given(st.lists(st.text(max_size=8)), st.lists(odd, max_size=2), st.randoms())
def test_a_column_is_read_as_its_values_are_one_by_one(texts: list[str], others: list[object], chosen: random.Random) -> None:
    column: list[object] = [*texts, *others]
    chosen.shuffle(column)
    outcomes: list[object] = []
    for read in (canonical_keys, lambda values, field: [canonical_key(each, field, row) for row, each in enumerate(values)]):
        try:
            outcomes.append(read(column, "device_id"))
        except InvalidKey as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]
