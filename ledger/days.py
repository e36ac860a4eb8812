"""Days of records. An id holds the time of its making, so the id alone says which day a record belongs to.

Invariant: `first_id(day)` is at or below every id of that day and above every id of the day before.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta

DAY_MS = 86_400_000
EPOCH = date(1970, 1, 1)
TIME_LENGTH = 13
"""Characters of an id that hold its milliseconds: 8 hex digits, a dash, 4 hex digits."""


def days_of(ids: Iterable[str]) -> set[date]:
    """Return the UTC days in which the ids were made."""
    numbers = {int(each[:8] + each[9:], 16) // DAY_MS for each in {each[:TIME_LENGTH] for each in ids}}
    return {EPOCH + timedelta(days=number) for number in numbers}


def first_id(day: date) -> str:
    """Return the least id that a record of this UTC day may have."""
    digits = f"{max(0, (day - EPOCH).days) * DAY_MS:012x}"
    return f"{digits[:8]}-{digits[8:]}-0000-0000-000000000000"


def today() -> date:
    """Return the day by UTC, as ids count it."""
    return datetime.now(UTC).date()
