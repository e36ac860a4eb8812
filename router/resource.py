"""An `Experiment` (docs/experiments.md) as a document, from a file or from a cluster's API, and the epoch that it stands for.

Invariant: the epoch follows from the document alone, so every replica that reads one document makes the same record.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from router.assignment import BUCKETS
from router.epoch import CHAMPION, ArmRange, Epoch, Holdout
from router.errors import InvalidEpoch

GROUP, VERSION, PLURAL, KIND = "contender.dev", "v1alpha1", "experiments", "Experiment"
API_VERSION = f"{GROUP}/{VERSION}"

MANAGER = "contender-"
"""What the field manager of our commands begins with; the user's name follows."""

Positive = Annotated[int, Meta(ge=1)]


class HoldoutSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Customers kept out of every test; `share` is a percentage such as "5%"."""

    salt: str
    share: str

    def __post_init__(self) -> None:
        basis_points(self.share, "holdout.share")


class Change(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The note to the change that made `epoch`; left behind by a later change it says nothing."""

    epoch: Positive
    actor: str = ""
    reason: str = ""
    at: str = ""


class Spec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"first_epoch": "firstEpoch"}):
    """What the custom resource's schema describes field by field. Defaults are the same there."""

    salt: str
    arms: tuple[str, ...] = (CHAMPION, "challenger")
    share: str = "10%"
    run: Positive = 1
    shadow: bool = False
    kill: bool = False
    holdout: HoldoutSpec | None = None
    pins: dict[str, str] = {}
    digests: dict[str, str] = {}
    decision: str = ""
    first_epoch: Positive = 1
    change: Change | None = None

    def __post_init__(self) -> None:
        if not self.salt:
            raise ValueError("salt is empty; a text such as campaigns-1 is expected")
        if len(self.arms) != 2 or self.arms[0] != CHAMPION:
            raise ValueError(f"arms is {list(self.arms)}; [champion, NAME] is expected: one challenger at a time")
        basis_points(self.share)

    @property
    def challenger(self) -> str:
        return self.arms[1]

    @property
    def salt_in_use(self) -> str:
        """Return the salt of this run: the declared one, from the second run on with the run's number."""
        return self.salt if self.run == 1 else f"{self.salt}/{self.run}"

    def epoch(self, test: str, number: int, *, actor: str, reason: str, at: str) -> Epoch:
        """Return the epoch that stands for this. Raises InvalidEpoch."""
        challenger = self.challenger
        return Epoch(
            test=test,
            epoch=number,
            salt=self.salt_in_use,
            arms={challenger: ArmRange(0, basis_points(self.share), self.digests.get(challenger, ""))},
            champion=self.digests.get(CHAMPION, ""),
            decision=self.decision,
            shadow=self.shadow,
            holdout=None if self.holdout is None else Holdout(self.holdout.salt, basis_points(self.holdout.share)),
            pins=self.pins,
            kill=self.kill,
            actor=actor,
            reason=reason,
            at=at,
        )


class ManagedFields(msgspec.Struct, frozen=True, rename="camel"):
    """Who wrote which fields of an object last, as the API server keeps it."""

    manager: str = ""
    time: str = ""
    subresource: str = ""
    fields_v1: dict[str, dict[str, Any]] = msgspec.field(default_factory=dict, name="fieldsV1")


class Metadata(msgspec.Struct, frozen=True, rename="camel"):
    """What an epoch needs of an object's metadata. `generation` counts the changes of its spec."""

    name: str
    generation: Positive
    resource_version: str = ""
    creation_timestamp: str = ""
    managed_fields: list[ManagedFields] = []


class Resource(msgspec.Struct, frozen=True):
    """An Experiment as the API server gives it."""

    metadata: Metadata
    spec: Spec

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Resource:
        """Read an object. Fields of its spec that this version doesn't know are left aside. Raises InvalidEpoch."""
        known = {field.encode_name for field in msgspec.structs.fields(Spec)}
        spec = document.get("spec")
        if isinstance(spec, Mapping):
            document = {**document, "spec": {name: value for name, value in spec.items() if name in known}}
        try:
            return msgspec.convert(document, cls)
        except msgspec.ValidationError as error:
            raise InvalidEpoch(str(error)) from None

    @property
    def number(self) -> int:
        """Return the number of the epoch that the object stands for."""
        return self.spec.first_epoch - 1 + self.metadata.generation

    def epoch(self) -> Epoch:
        """Return the epoch. Raises InvalidEpoch.

        Who, why and when are those of the note, if it is the note to this change; else the field manager that wrote the spec
        last, and the API server's time.
        """
        writers = [each for each in self.metadata.managed_fields if "f:spec" in each.fields_v1 and not each.subresource]
        unknown = ManagedFields("unknown", self.metadata.creation_timestamp)
        # Times are whole seconds: of one second's writers the one of fewer fields came later, as who makes an object has most.
        last = max(writers, key=lambda each: (each.time, -len(each.fields_v1["f:spec"])), default=unknown)
        note = self.spec.change
        if note is None or note.epoch != self.number:
            note = Change(self.number)
        return self.spec.epoch(
            self.metadata.name,
            self.number,
            actor=note.actor or last.manager.removeprefix(MANAGER),
            reason=note.reason,
            at=note.at or last.time,
        )


def basis_points(text: str, field: str = "share") -> int:
    """Parse a share such as "25%" or "0.5%". Raises ValueError; steps are 0.01 %, as there are 10,000 buckets."""
    match = re.fullmatch(r"(\d{1,3})(?:\.(\d{1,2}))?%", text, re.ASCII)
    points = int(match[1]) * 100 + int((match[2] or "").ljust(2, "0")) if match else -1
    if not 0 <= points <= BUCKETS:
        raise ValueError(f"{field} is {text!r}; a percentage from 0% to 100% in steps of 0.01% is expected, such as 25%")
    return points


def percent(points: int) -> str:
    """Write basis points as a share: 2500 is "25%", 50 is "0.5%"."""
    return f"{points / 100:g}%" if points % 100 else f"{points // 100}%"
