"""The split's arithmetic: golden vectors, and what must hold for every salt and key."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.assignment import BUCKETS, bucket, bucketing, bucketing_many

GOLDEN = [
    ("campaigns-1", "-8076087639492063270", 5938),
    ("campaigns-1", "1", 8199),
    ("campaigns-1", "customer-42", 1662),
    ("campaigns-1", "小米", 6165),
    ("campaigns-2", "1", 2477),
    ("", "", 9049),
]
text = st.text(st.characters(codec="utf-8"))


@pytest.mark.parametrize(("salt", "key", "place"), GOLDEN)
def test_golden_vectors(salt: str, key: str, place: int) -> None:
    assert bucket(salt, key) == place
    assert bucketing(salt)(key) == place


def test_a_million_keys_fall_below_1000_exactly_as_counted() -> None:
    place = bucketing("campaigns-1")
    assert sum(place(str(number)) < 1000 for number in range(1_000_000)) == 100_204


@given(text, text)
def test_every_key_has_one_bucket_in_range_and_both_forms_agree(salt: str, key: str) -> None:
    assert 0 <= bucket(salt, key) < BUCKETS
    assert bucketing(salt)(key) == bucket(salt, key)


@given(text, st.lists(text))
def test_many_keys_have_the_buckets_of_each(salt: str, keys: list[str]) -> None:
    assert bucketing_many(salt)(keys) == [bucket(salt, key) for key in keys]


def test_another_salt_is_another_independent_split() -> None:
    """Of the customers in the first tenth under one salt, about a tenth is there under another: 4 sigma of a binomial."""
    one, two = bucketing("campaigns-1"), bucketing("campaigns-2")
    first = [str(number) for number in range(100_000) if one(str(number)) < 1000]
    both = sum(two(key) < 1000 for key in first)
    assert abs(both - len(first) / 10) < 4 * (len(first) * 0.1 * 0.9) ** 0.5
