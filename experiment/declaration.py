"""The declaration of a test: what lives in Git and says how the test is to be run. Its state (shares, epochs) lives elsewhere.

Invariant: re-applying a declaration never changes a share: the share here is only what a test begins with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import yaml

from router.assignment import BUCKETS
from router.epoch import CHAMPION, ArmRange, Epoch

API_VERSION, KIND = "contender.dev/v1alpha1", "Experiment"


class DeclarationError(ValueError):
    """The declaration can't be used; the message names the file, the field and what would be right."""


class Metadata(msgspec.Struct, frozen=True):
    name: str


class Spec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`share` is in basis points and is the first epoch's only; manifests in Git leave it out."""

    salt: str
    arms: tuple[str, ...] = (CHAMPION, "challenger")
    share: int = 1000
    shadow: bool = False

    def __post_init__(self) -> None:
        if len(self.arms) != 2 or self.arms[0] != CHAMPION:
            raise ValueError(f"arms is {list(self.arms)}; [champion, NAME] is expected: one challenger at a time")
        if not 0 <= self.share <= BUCKETS:
            raise ValueError(f"share is {self.share}; basis points within 0 … {BUCKETS} are expected (1000 = 10 %)")


class Experiment(msgspec.Struct, frozen=True, rename={"api_version": "apiVersion"}):
    api_version: str
    kind: str
    metadata: Metadata
    spec: Spec

    @property
    def test(self) -> str:
        return self.metadata.name

    def first_epoch(self, *, digests: dict[str, str], decision: str, actor: str, reason: str, at: str) -> Epoch:
        """Return epoch 1 with the declared share. `digests` maps each arm's name to its bundle's digest."""
        challenger = self.spec.arms[1]
        return Epoch(
            test=self.test,
            epoch=1,
            salt=self.spec.salt,
            arms={challenger: ArmRange(0, self.spec.share, digests.get(challenger, ""))},
            champion=digests.get(CHAMPION, ""),
            decision=decision,
            shadow=self.spec.shadow,
            actor=actor,
            reason=reason,
            at=at,
        )


def load_declaration(path: Path) -> Experiment:
    """Read the one Experiment in a YAML file. Raises DeclarationError."""
    try:
        documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DeclarationError(f"{path}: {error}") from None
    found = [each for each in documents if isinstance(each, dict) and each.get("kind") == KIND]
    if len(found) != 1:
        raise DeclarationError(f"{path}: {len(found)} documents of kind {KIND}; one is expected")
    return parse_declaration(found[0], str(path))


def parse_declaration(document: dict[str, Any], source: str) -> Experiment:
    """Check one parsed Experiment. Raises DeclarationError naming `source` and the field."""
    try:
        declared = msgspec.convert(document, Experiment)
    except msgspec.ValidationError as error:
        raise DeclarationError(f"{source}: {error}") from None
    if declared.api_version != API_VERSION:
        raise DeclarationError(f"{source}: apiVersion is {declared.api_version!r}; {API_VERSION!r} is expected")
    return declared
