"""Who gets which arm: the order of the rules, and the properties that make a ramp fair."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.assignment import bucket
from router.epoch import ArmRange, Epoch, Holdout, customer_hash
from router.split import Assignment, Splitter

KEYS = [str(number) for number in range(500)]


def splitter(share: int, *, salt: str = "campaigns-1", **changes: Any) -> Splitter:
    arms = changes.pop("arms", {"challenger": ArmRange(0, share)})
    return Splitter(Epoch(test="t", epoch=1, salt=salt, arms=arms, actor="", reason="", at="", **changes))


def arms(split: Splitter, keys: list[str] = KEYS) -> list[str]:
    return [each.arm for each in split.assign(keys)]


@given(st.integers(0, 10_000), st.integers(0, 10_000))
def test_raising_the_share_only_ever_adds_customers_and_going_back_restores_them(one: int, two: int) -> None:
    low, high = sorted((one, two))
    few, many = arms(splitter(low)), arms(splitter(high))
    assert all(after == "challenger" for before, after in zip(few, many, strict=True) if before == "challenger")
    assert arms(splitter(low)) == few


@given(st.lists(st.sampled_from(KEYS), max_size=30), st.integers(0, 10_000))
def test_a_row_s_arm_does_not_depend_on_the_rows_beside_it(keys: list[str], share: int) -> None:
    split = splitter(share)
    assert split.assign(keys) == [split.assign([key])[0] for key in keys]


@given(
    st.lists(st.one_of(st.none(), st.sampled_from(KEYS)), max_size=30),
    st.integers(0, 10_000),
    st.sampled_from([{}, {"kill": True}, {"pins": {customer_hash(KEYS[0]): "challenger"}}, {"holdout": Holdout("held", 5000)}]),
)
def test_a_request_s_columns_are_its_rows_assignments(keys: list[str | None], share: int, rules: dict[str, Any]) -> None:
    split = splitter(share, **rules)
    columns = split.split(keys)
    assert [Assignment(*row) for row in zip(*columns, strict=True)] == split.assign(keys)


@given(st.text(st.characters(codec="utf-8"), min_size=1), st.integers(0, 10_000), st.text(st.characters(codec="utf-8")))
def test_the_arm_is_the_bucket_s_range(key: str, share: int, salt: str) -> None:
    (assigned,) = splitter(share, salt=salt).assign([key])
    assert assigned.bucket == bucket(salt, key)
    assert assigned.arm == ("challenger" if bucket(salt, key) < share else "champion")
    assert assigned.propensity == (share if assigned.arm == "challenger" else 10_000 - share) / 10_000


def test_twenty_thousand_customers_split_exactly_as_the_arithmetic_says() -> None:
    keys = [f"customer-{number}" for number in range(20_000)]
    expected = sum(bucket("campaigns-1", key) < 2500 for key in keys)
    assert arms(splitter(2500), keys).count("challenger") == expected
    assert 4750 < expected < 5250


def test_several_challengers_each_have_their_range() -> None:
    split = splitter(0, arms={"a": ArmRange(0, 3000), "b": ArmRange(9500, 10_000)})
    for key, assigned in zip(KEYS, split.assign(KEYS), strict=True):
        place = bucket("campaigns-1", key)
        assert assigned.arm == ("a" if place < 3000 else "b" if place >= 9500 else "champion")


def test_kill_switch_then_pins_then_holdout_then_hash() -> None:
    key = next(key for key in KEYS if bucket("campaigns-1", key) >= 5000 and bucket("held", key) < 5000)
    pins = {customer_hash(key): "challenger"}
    holdout = Holdout("held", 5000)
    told = [
        splitter(5000, kill=True, pins=pins, holdout=holdout),
        splitter(5000, pins=pins, holdout=holdout),
        splitter(10_000, holdout=holdout),
        splitter(10_000),
    ]
    assert [(split.assign([key])[0].arm, split.assign([key])[0].reason) for split in told] == [
        ("champion", "kill"),
        ("challenger", "pin"),
        ("champion", "holdout"),
        ("challenger", "hash"),
    ]


@pytest.mark.parametrize("share", [0, 10_000])
def test_nobody_gets_the_champion_and_is_kept_apart(share: int) -> None:
    (assigned,) = splitter(share).assign([None])
    assert assigned == ("champion", "no-key", None, 1.0)
