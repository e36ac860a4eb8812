"""The declaration of a test: what lives in Git and says how the test is to be run. Its state (shares, epochs) lives elsewhere.

Invariant: re-applying a declaration never changes a share: the share here is only what a test begins with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import yaml

from router.epoch import Epoch
from router.errors import InvalidEpoch
from router.resource import API_VERSION, KIND, Spec


class DeclarationError(ValueError):
    """The declaration can't be used; the message names the file, the field and what would be right."""


class Metadata(msgspec.Struct, frozen=True):
    name: str


class Experiment(msgspec.Struct, frozen=True, rename={"api_version": "apiVersion"}):
    """An Experiment as a file. Its share, switches, holdout and pins are the first epoch's only."""

    api_version: str
    kind: str
    metadata: Metadata
    spec: Spec

    @property
    def test(self) -> str:
        return self.metadata.name

    def first_epoch(self, *, digests: dict[str, str], decision: str, actor: str, reason: str, at: str) -> Epoch:
        """Return epoch 1 as declared, on what is served. `digests` maps each arm's name to its bundle's digest."""
        served = msgspec.structs.replace(self.spec, digests=digests, decision=decision)
        return served.epoch(self.test, 1, actor=actor, reason=reason, at=at)


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
        declared.first_epoch(digests={}, decision="", actor="", reason="", at="")
    except (msgspec.ValidationError, InvalidEpoch) as error:
        raise DeclarationError(f"{source}: {error}") from None
    if declared.api_version != API_VERSION:
        raise DeclarationError(f"{source}: apiVersion is {declared.api_version!r}; {API_VERSION!r} is expected")
    return declared
