"""An epoch: the frozen content of one change to a test. Every change makes the next one; none is ever edited.

Invariant: an Epoch that exists is valid: ranges lie within the buckets and don't overlap, names and digests are given.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

import msgspec

from router.assignment import BUCKETS
from router.errors import InvalidEpoch

CHAMPION = "champion"


class ArmRange(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"start": "from", "stop": "to"}):
    """The buckets [start, stop) of one challenger, and the digest of the bundle it must serve (empty: any)."""

    start: int
    stop: int
    digest: str = ""

    @property
    def share(self) -> int:
        """Return the arm's share in basis points."""
        return self.stop - self.start


class Holdout(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"stop": "to"}):
    """Customers kept out of every test: those whose bucket under the holdout's own salt is below `stop`."""

    salt: str
    stop: int


class Epoch(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One immutable record of the test's state (DESIGN §5). `pins` maps `customer_hash` of a key to an arm."""

    test: str
    epoch: int
    salt: str
    arms: dict[str, ArmRange]
    champion: str = ""
    decision: str = ""
    shadow: bool = False
    holdout: Holdout | None = None
    pins: dict[str, str] = {}
    kill: bool = False
    actor: str
    reason: str
    at: str

    def __post_init__(self) -> None:
        if not self.test:
            raise InvalidEpoch("test: the name is empty")
        if self.epoch < 1:
            raise InvalidEpoch(f"epoch: {self.epoch} is no number of an epoch; the first is 1")
        _check_ranges(self.arms)
        if self.holdout is not None and not 0 <= self.holdout.stop <= BUCKETS:
            raise InvalidEpoch(f"holdout.to: {self.holdout.stop} is not within 0 … {BUCKETS}")
        for arm in self.pins.values():
            if arm != CHAMPION and arm not in self.arms:
                raise InvalidEpoch(f"pins: {arm!r} is no arm of this test; arms are {', '.join([CHAMPION, *self.arms])}")

    def share(self, arm: str) -> int:
        """Return the share of an arm in basis points; the champion has what the challengers leave."""
        if arm == CHAMPION:
            return BUCKETS - sum(each.share for each in self.arms.values())
        return self.arms[arm].share

    def to_json(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def from_json(cls, document: bytes) -> Epoch:
        """Parse one record. Raises InvalidEpoch naming the field."""
        try:
            return msgspec.json.decode(document, type=cls)
        except msgspec.ValidationError as error:
            raise InvalidEpoch(str(error)) from None
        except msgspec.DecodeError as error:
            raise InvalidEpoch(f"not JSON: {error}") from None

    def next(self, *, actor: str, reason: str, at: str, **changes: Any) -> Epoch:
        """Return the epoch that follows with `changes` applied. Raises InvalidEpoch if it must not exist."""
        return msgspec.structs.replace(self, epoch=self.epoch + 1, actor=actor, reason=reason, at=at, **changes)

    def with_share(self, arm: str, basis_points: int) -> dict[str, ArmRange]:
        """Return the arms with one share changed. Only the range's end moves, so nobody changes arm twice in a ramp.

        Raises InvalidEpoch if there is no such arm, or its range would meet the next one.
        """
        if arm not in self.arms:
            raise InvalidEpoch(f"{arm!r} is no challenger of {self.test}; there {_are(list(self.arms))}")
        start = self.arms[arm].start
        arms = {**self.arms, arm: msgspec.structs.replace(self.arms[arm], stop=start + basis_points)}
        _check_ranges(arms)
        return arms


def customer_hash(key: str, secret: bytes = b"") -> str:
    """Return the HMAC-SHA-256 of a customer key in hex. Without a secret it hides the key from the eye only."""
    return hmac.new(secret, key.encode(), hashlib.sha256).hexdigest()


def _check_ranges(arms: dict[str, ArmRange]) -> None:
    before, name_before = 0, ""
    for name, arm in sorted(arms.items(), key=lambda item: (item[1].start, item[1].stop)):
        if not name or name == CHAMPION:
            raise InvalidEpoch(f"arms: {name!r} can't name a challenger")
        if not 0 <= arm.start <= arm.stop <= BUCKETS:
            raise InvalidEpoch(f"arms.{name}: [{arm.start}, {arm.stop}) is not a range within 0 … {BUCKETS}")
        if arm.start < before and arm.start < arm.stop:
            raise InvalidEpoch(f"arms.{name}: [{arm.start}, {arm.stop}) overlaps {name_before}, which ends at {before}")
        if arm.stop > before:
            before, name_before = arm.stop, name


def _are(names: list[str]) -> str:
    return "are none" if not names else f"{'is' if len(names) == 1 else 'are'} {', '.join(names)}"
