"""Days of ids: what an id's own time says, at every edge."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.days import DAY_MS, days_of, first_id
from ledger.errors import BrokenRecord
from ledger.records import Gap, UuidGenerator, decode, row_id

MILLISECONDS = st.integers(0, 16_000_000_000_000)


def made_at(milliseconds: int) -> str:
    return UuidGenerator(lambda: milliseconds * 1_000_000)()


@settings(deadline=None)
@given(MILLISECONDS)
def test_an_id_lies_within_its_day(milliseconds: int) -> None:
    made = made_at(milliseconds)
    day = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=milliseconds)).date()
    assert days_of([made, row_id(made, 7)]) == {day}
    assert first_id(day) <= made < first_id(day + timedelta(days=1))


@settings(deadline=None)
@given(st.integers(0, 190_000))
def test_a_day_begins_at_its_first_millisecond(number: int) -> None:
    day = date(1970, 1, 1) + timedelta(days=number)
    first, last = made_at(number * DAY_MS), made_at((number + 1) * DAY_MS - 1)
    assert days_of([first]) == days_of([last]) == {day}
    assert first[:13] == first_id(day)[:13]
    assert last < first_id(day + timedelta(days=1))


@settings(deadline=None)
@given(st.sets(MILLISECONDS, max_size=20))
def test_many_ids_have_the_days_of_each(times: set[int]) -> None:
    assert days_of(map(made_at, times)) == {day for each in times for day in days_of([made_at(each)])}


def test_an_id_of_a_year_that_no_store_has_a_place_for_is_broken() -> None:
    gap = Gap(id=made_at(2**47), test="t", start="2026-03-01T00:00:00.000000Z", end="2026-03-01T00:00:00.000000Z", rows=1)
    with pytest.raises(BrokenRecord, match="id"):
        decode(gap.encode())
