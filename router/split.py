"""Which arm each row of a request goes to, under one epoch.

Invariant: a row's arm depends on its own customer key and the epoch, never on the rows beside it.
Order of the rules: stale epoch, kill switch, no key, pins, holdout, hash.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

from router.assignment import BUCKETS, bucketing, bucketing_many
from router.epoch import CHAMPION, Epoch, customer_hash

HASH, PIN, HOLDOUT, KILL, NO_KEY, NO_EPOCH, STALE = "hash", "pin", "holdout", "kill", "no-key", "no-epoch", "stale"


class Assignment(NamedTuple):
    """One row's arm. `bucket` is None without a key; `propensity` is the probability that the rule gave this arm."""

    arm: str
    reason: str
    bucket: int | None
    propensity: float


class Assignments(NamedTuple):
    """The assignments of a request's rows, by columns."""

    arms: list[str]
    reasons: list[str]
    buckets: list[int | None]
    propensities: list[float]

    @classmethod
    def of(cls, *rows: Assignment, times: int = 1) -> Assignments:
        """Return the columns of these rows, or of one row so many times."""
        return cls(
            [row.arm for row in rows] * times,
            [row.reason for row in rows] * times,
            [row.bucket for row in rows] * times,
            [row.propensity for row in rows] * times,
        )


NOBODY = Assignment(CHAMPION, NO_KEY, None, 1.0)


class Splitter:
    """The rules of one epoch, prepared for the hot path. Immutable, so one reference serves a whole request."""

    def __init__(self, epoch: Epoch, *, secret: bytes = b"", stale: bool = False) -> None:
        """With `stale` everybody gets the champion: nobody knows whether the epoch still holds."""
        self.epoch = epoch
        self._alone = STALE if stale else KILL if epoch.kill else ""
        self._secret = secret
        self._place = bucketing(epoch.salt)
        self._ranges = [(arm.start, arm.stop, name) for name, arm in epoch.arms.items() if arm.share]
        self._propensity = {name: epoch.share(name) / BUCKETS for name in (CHAMPION, *epoch.arms)}
        self._held_out = None if epoch.holdout is None else bucketing(epoch.holdout.salt)
        self._held_out_below = 0 if epoch.holdout is None else epoch.holdout.stop
        self._hashed: dict[int, Assignment] = {}
        self._places = bucketing_many(epoch.salt)
        self._only_hash = not (self._alone or epoch.pins or epoch.holdout)
        self._arms: list[str] = []

    @property
    def stale(self) -> bool:
        return self._alone == STALE

    def assign(self, keys: Sequence[str | None]) -> list[Assignment]:
        """Return the assignment of each canonical key, in order."""
        one = self.assign_one
        return [one(key) for key in keys]

    def split(self, keys: Sequence[str | None]) -> Assignments:
        """Return what `assign` does by columns, and at once where the hash alone decides."""
        if len(keys) == 1:
            arm, reason, bucket, propensity = self.assign_one(keys[0])
            return Assignments([arm], [reason], [bucket], [propensity])
        if not self._only_hash or None in keys:
            return Assignments.of(*self.assign(keys))
        buckets = self._places(cast("Sequence[str]", keys))
        if not self._arms:
            self._arms = [self._by_hash(place).arm for place in range(BUCKETS)]
        arms = list(map(self._arms.__getitem__, buckets))
        return Assignments(arms, [HASH] * len(keys), list(buckets), list(map(self._propensity.__getitem__, arms)))

    def assign_one(self, key: str | None) -> Assignment:
        """Return the assignment of one canonical key (None: unknown customer)."""
        if key is None:
            return Assignment(CHAMPION, self._alone, None, 1.0) if self._alone else NOBODY
        place = self._place(key)
        if self._alone:
            return Assignment(CHAMPION, self._alone, place, 1.0)
        if self.epoch.pins:
            pinned = self.epoch.pins.get(customer_hash(key, self._secret))
            if pinned is not None:
                return Assignment(pinned, PIN, place, 1.0)
        if self._held_out is not None and self._held_out(key) < self._held_out_below:
            return Assignment(CHAMPION, HOLDOUT, place, 1.0)
        found = self._hashed.get(place)
        if found is None:
            found = self._hashed[place] = self._by_hash(place)
        return found

    def _by_hash(self, place: int) -> Assignment:
        """Return what the hash rule says of a bucket; made once a bucket, of which there are 10,000."""
        arm = next((name for start, stop, name in self._ranges if start <= place < stop), CHAMPION)
        return Assignment(arm, HASH, place, self._propensity[arm])
