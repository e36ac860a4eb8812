"""The campaigns decision unit: a model's deciles and age bands become a gender and the campaigns a device is put into.

Invariant: a rules file that doesn't parse, or names a gender, band or decile that nothing can have, is never used.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any, Literal

import msgspec
import yaml

from serving.table import Table

Channel = Literal["sms", "push", "email"]
AGE_BANDS = ("<=24", "<=32", ">32")


class CampaignsError(ValueError):
    """The rules file can't be used; the message names the file, the line, the value and what would be right."""


class When(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The condition of a campaign: all that is given must hold."""

    gender: str | None = None
    age_band: str | None = None


class Campaign(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: int
    name: str
    when: When
    channels: list[Channel]


class GenderRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    deciles: list[int]


class Rules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The analyst's file, parsed: which score deciles make a gender, and what each campaign asks for."""

    gender: dict[str, GenderRule]
    campaigns: list[Campaign]

    def digest(self) -> str:
        """Return the SHA-256 of what decides (ids and conditions), so that wording and channels may change during a test."""
        deciding = {
            "gender": {name: sorted(rule.deciles) for name, rule in sorted(self.gender.items())},
            "campaigns": sorted((c.id, c.when.gender, c.when.age_band) for c in self.campaigns),
        }
        return hashlib.sha256(msgspec.json.encode(deciding)).hexdigest()

    def changes(self, other: Rules) -> list[str]:
        """Return a sentence for each deciding difference from `self` to `other`."""
        told = []
        for name in sorted(self.gender.keys() | other.gender.keys()):
            before, after = (sorted(r.gender[name].deciles) if name in r.gender else None for r in (self, other))
            if before != after:
                told.append(f"gender {name}: deciles {before} -> {after}")
        mine, theirs = ({c.id: (c.when.gender, c.when.age_band) for c in r.campaigns} for r in (self, other))
        return told + [
            f"campaign {number}: {_words(mine.get(number))} -> {_words(theirs.get(number))}"
            for number in sorted(mine.keys() | theirs.keys())
            if mine.get(number) != theirs.get(number)
        ]


def load_rules(path: Path) -> Rules:
    """Read and check the analyst's file. Raises CampaignsError naming the line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CampaignsError(f"{path}: {error}") from None
    return parse_rules(text, str(path))


def parse_rules(text: str, source: str) -> Rules:
    """Parse the text of a rules file; `source` names it in messages. Raises CampaignsError naming the line."""
    root: yaml.Node | None = None
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is None:
            raise CampaignsError(f"{source}:1: the file is empty; gender and campaigns are expected")
        _refuse_duplicates(root, source)
        rules = msgspec.convert(yaml.safe_load(text), Rules)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise CampaignsError(f"{source}:{line}: {error.problem}") from None
    except yaml.YAMLError as error:
        raise CampaignsError(f"{source}: {error}") from None
    except msgspec.ValidationError as error:
        message, _, where = str(error).partition(" - at `$")
        path = _steps(where.rstrip("`"))
        if unknown := re.search(r"unknown field `(.*)`", message):
            path.append(unknown[1])
        raise CampaignsError(f"{source}:{_line(root, path)}: {'.'.join(map(str, path)) or 'file'}: {message}") from None
    for path, problem in _faults(rules):
        raise CampaignsError(f"{source}:{_line(root, path)}: {'.'.join(map(str, path))}: {problem}")
    return rules


class _Campaigns(dict[tuple[str, str | None], str]):
    """The campaigns' ids as text for each (gender, band); made when first asked for, and kept for the bands that there are."""

    def __init__(self, campaigns: Sequence[Campaign]) -> None:
        super().__init__()
        self._rules = campaigns

    def __missing__(self, key: tuple[str, str | None]) -> str:
        gender, age_band = key
        found = ",".join(map(str, sorted(each.id for each in self._rules if _applies(each.when, gender, age_band))))
        if age_band is None or age_band in AGE_BANDS:
            self[key] = found
        return found


class Decider:
    """Rules prepared for serving: for each decile its gender, for each (gender, band) the campaigns as text."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.digest = rules.digest()
        self._gender: dict[Any, str] = {decile: name for name, rule in rules.gender.items() for decile in rule.deciles}
        self._campaigns = _Campaigns(rules.campaigns)

    def gender(self, decile: object) -> str:
        """Return the gender of a score decile, "" where none is assigned."""
        return self._gender.get(decile, "")

    def campaigns(self, gender: str, age_band: str | None) -> str:
        """Return the campaigns' ids in ascending order, such as "1,2,5"; "" where none applies."""
        return self._campaigns[gender, age_band]

    def decide(self, table: Table) -> Table:
        """Return the table with `gender` after `gender_decile`, and `campaigns` last.

        Raises CampaignsError if the table lacks a column that the rules need.
        """
        for name in ("gender_decile", "age_band"):
            if name not in table.names:
                raise CampaignsError(f"the model's answer has no column {name!r}; it has {', '.join(table.names)}")
        names, columns = table.names, table.columns
        at = names.index("gender_decile") + 1
        genders = list(map(self._gender.get, columns[at - 1], repeat("")))
        pairs: Iterable[tuple[str, str | None]] = zip(genders, columns[names.index("age_band")], strict=True)
        campaigns = list(map(self._campaigns.__getitem__, pairs))
        return Table(
            [*names[:at], "gender", *names[at:], "campaigns"],
            columns=[*columns[:at], genders, *columns[at:], campaigns],
        )


class RulesFile:
    """The rules in use, followed while the file changes.

    A change of wording or channels is taken over at once. A file that doesn't parse, and a change of what decides while
    `expected` (the epoch's decision digest) says otherwise, is refused: the rules in use stay, and `refused` holds why.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = self._mark()
        self.decider = Decider(load_rules(path))
        self._pending: Decider | None = None
        self.refused: str | None = None

    def refresh(self, expected: str | None = None) -> bool:
        """Look at the file again; return whether the rules in use changed. `expected` None takes any valid rules."""
        mark = self._mark()
        if mark != self._seen:
            self._seen = mark
            try:
                self._pending = Decider(load_rules(self._path))
            except CampaignsError as error:
                self._pending, self.refused = None, str(error)
                return False
        if self._pending is None:
            return False
        if expected and self._pending.digest != expected and self.decider.digest == expected:
            changes = "; ".join(self.decider.rules.changes(self._pending.rules))
            self.refused = f"{self._path}: a test runs under the rules in use, which this file changes ({changes})"
            return False
        self.decider, self._pending, self.refused = self._pending, None, None
        return True

    def _mark(self) -> tuple[int, int, int] | None:
        try:
            state = self._path.stat()
        except OSError:
            return None
        return state.st_ino, state.st_mtime_ns, state.st_size


def _applies(when: When, gender: str, age_band: str | None) -> bool:
    return (when.gender is None or when.gender == gender) and (when.age_band is None or when.age_band == age_band)


def _faults(rules: Rules) -> list[tuple[list[str | int], str]]:
    faults: list[tuple[list[str | int], str]] = []
    owner: dict[int, str] = {}
    for name, rule in rules.gender.items():
        for i, decile in enumerate(rule.deciles):
            where: list[str | int] = ["gender", name, "deciles", i]
            if not 1 <= decile <= 10:
                faults.append((where, f"{decile} is no decile; 1 (highest scores) to 10 are"))
            elif decile in owner:
                faults.append((where, f"decile {decile} is already {owner[decile]}'s; a decile has one gender or none"))
            owner[decile] = name
    ids: set[int] = set()
    for i, campaign in enumerate(rules.campaigns):
        if campaign.id < 1:
            faults.append((["campaigns", i, "id"], f"{campaign.id} is no campaign id; positive integers are"))
        if campaign.id in ids:
            faults.append((["campaigns", i, "id"], f"id {campaign.id} is used twice"))
        ids.add(campaign.id)
        when = campaign.when
        if when.gender is None and when.age_band is None:
            faults.append((["campaigns", i, "when"], "says nothing; give gender, age_band or both"))
        if when.gender is not None and when.gender not in rules.gender:
            known = ", ".join(rules.gender) or "none"
            faults.append((["campaigns", i, "when", "gender"], f"{when.gender!r} is no gender of this file; known: {known}"))
        if when.age_band is not None and when.age_band not in AGE_BANDS:
            bands = ", ".join(map(repr, AGE_BANDS))
            faults.append((["campaigns", i, "when", "age_band"], f"{when.age_band!r} is no age band; bands are {bands}"))
        if not campaign.channels:
            faults.append((["campaigns", i, "channels"], "is empty; give at least one of sms, push, email"))
    return faults


def _words(condition: tuple[str | None, str | None] | None) -> str:
    if condition is None:
        return "absent"
    gender, band = condition
    return " and ".join([*([f"gender {gender}"] if gender else []), *([f"age {band}"] if band else [])])


def _steps(path: str) -> list[str | int]:
    """Turn msgspec's `.campaigns[3].when` into ["campaigns", 3, "when"]."""
    parts = path.replace("[", ".[").split(".")
    return [int(part[1:-1]) if part[1:-1].isdigit() else part for part in parts if part]


def _line(node: yaml.Node | None, path: Sequence[str | int]) -> int:
    """Return the 1-based line of the deepest node that `path` reaches."""
    line = 1 if node is None else node.start_mark.line + 1
    for step in path:
        if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
        elif isinstance(node, yaml.MappingNode):
            values = {key.value: (key, value) for key, value in node.value}
            if step not in values:
                # msgspec writes "[...]" for the key of any mapping: stay on the mapping itself.
                break
            key, node = values[step]
            line = key.start_mark.line + 1
            continue
        else:
            break
        line = node.start_mark.line + 1
    return line


def _refuse_duplicates(node: yaml.Node, source: str) -> None:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                raise CampaignsError(f"{source}:{key.start_mark.line + 1}: {key.value!r} is given twice")
            seen.add(key.value)
            _refuse_duplicates(value, source)
    elif isinstance(node, yaml.SequenceNode):
        for child in node.value:
            _refuse_duplicates(child, source)
