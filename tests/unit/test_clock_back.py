"""A wall clock that jumps back between two requests, or before a restart: every row stays, in the order of its id."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ledger.records import ExposureBatch, UuidGenerator, timestamp
from ledger.shipper import Shipper
from ledger.spool import Spool
from ledger.store import Store

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(tmp_path / "ledger.db")
    yield opened
    opened.close()


class Clock:
    """Shows the time it is given."""

    def __init__(self, moment: datetime) -> None:
        self.moment = moment

    def __call__(self) -> int:
        return int(self.moment.timestamp()) * 10**9


def batch(new_id: UuidGenerator, at: datetime, *customers: str | None) -> ExposureBatch:
    count = len(customers)
    return ExposureBatch(
        id=new_id(),
        puid="p",
        at=timestamp(at),
        test="t",
        epoch=1,
        latency_ms=1.0,
        customers=list(customers),
        buckets=[1] * count,
        assigned=["champion"] * count,
        served=["champion"] * count,
        reasons=["hash"] * count,
        propensities=[1.0] * count,
        digests=["d"] * count,
        scores={"score": [0.5] * count},
        decision={},
    )


@pytest.mark.parametrize("restarted", [False, True])
def test_rows_before_and_after_the_jump_are_all_shipped_and_all_exported(store: Store, tmp_path: Path, restarted: bool) -> None:
    clock = Clock(NOON)
    new_id = UuidGenerator(clock)
    spool = Spool(tmp_path / "spool")
    shipper = Shipper(tmp_path / "spool", store)
    spool.append(batch(new_id, NOON, "a", "b").encode())
    shipper.ship()
    clock.moment = NOON - timedelta(hours=1)
    if restarted:
        # The new process knows nothing of the old one's ids, so its own are smaller.
        new_id = UuidGenerator(clock)
    spool.append(batch(new_id, clock.moment, "c", "d").encode())
    spool.append(batch(new_id, clock.moment + timedelta(minutes=1), "e").encode())
    spool.close()
    assert shipper.ship().rows == 3
    assert shipper.lag().seconds == 0

    def exported(since: datetime | None) -> list[str | None]:
        found = list(store.exposures("t", since))
        assert [each.id for each in found] == sorted(each.id for each in found)
        return [each.customer for each in found]

    in_order = ["c", "d", "e", "a", "b"] if restarted else ["a", "b", "c", "d", "e"]
    assert exported(None) == in_order
    assert exported(NOON - timedelta(hours=2)) == in_order
    assert exported(NOON - timedelta(minutes=59)) == [key for key in in_order if key in "abe"]
    assert exported(NOON) == ["a", "b"]
    assert exported(NOON + timedelta(seconds=1)) == []
