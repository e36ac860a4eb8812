"""What the commands change: each change makes the next epoch, by compare-and-set, and nothing else is ever written.

Invariant: two writers never make one number; whoever comes second is told and changes nothing.
"""

from __future__ import annotations

import getpass
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from console.errors import CommandError
from ledger.records import timestamp
from router import resource
from router.epoch import CHAMPION, Epoch

if TYPE_CHECKING:
    from experiment.declaration import Experiment
    from ledger.store import Store


def now() -> str:
    """Return the time as RFC 3339 in UTC."""
    return timestamp(datetime.now(UTC))


def actor() -> str:
    """Return who runs this command, as the operating system knows it."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"


def current(store: Store, test: str) -> Epoch:
    """Return the newest epoch. Raises CommandError if the test has none."""
    document = store.current_epoch(test)
    if document is None:
        raise CommandError(f"test {test!r} has no epoch yet; start `contender serve` once")
    return Epoch.from_json(document)


def change(store: Store, epoch: Epoch, reason: str, **changes: Any) -> Epoch:
    """Make the next epoch after `epoch`. Raises EpochConflict if somebody else made it first, InvalidEpoch."""
    following = epoch.next(actor=actor(), reason=reason, at=now(), **changes)
    record(store, following)
    return following


def record(store: Store, epoch: Epoch) -> None:
    store.set_epoch(epoch.test, epoch.epoch, epoch.to_json(), epoch.actor, epoch.reason, epoch.at)


def basis_points(text: str) -> int:
    """Parse a share such as "25%" or "0.5%". Raises CommandError; steps are 0.01 %, as there are 10,000 buckets."""
    try:
        return resource.basis_points(text.strip().replace(" %", "%"))
    except ValueError:
        raise CommandError(f"{text!r} is no share; write a percentage from 0% to 100% in steps of 0.01%, such as 25%") from None


def begin(store: Store, declared: Experiment, digests: Mapping[str, str], decision: str) -> tuple[Epoch, str | None]:
    """Return the epoch to serve, and what was begun, if anything.

    The first start makes epoch 1. A start with other bundles or rules than the last epoch's is a new test, because
    evidence belongs to one triple of digests: it keeps the share and takes a new salt. So does a salt declared anew.
    A bundle counts as changed once no node serves it; an A/A test stays one until a person begins another test.
    """
    challenger = declared.spec.arms[1]
    document = store.current_epoch(declared.test)
    if document is None:
        first = declared.first_epoch(digests=dict(digests), decision=decision, actor=actor(), reason="first start", at=now())
        record(store, first)
        return first, "the test begins"
    last = Epoch.from_json(document)
    served = {"", *digests.values()}
    changed = [
        *(["the champion's bundle"] if last.champion not in served else []),
        *(["the challenger's bundle"] if last.arms[challenger].digest not in served and not is_aa(last, challenger) else []),
        *(["the rules"] if last.decision != decision else []),
    ]
    used = {Epoch.from_json(each).salt for each in store.epochs(declared.test)}
    if declared.spec.salt not in used:
        changed.append("the declared salt")
    if not changed:
        return last, None
    reason = "new test: changed " + ", ".join(changed)
    return new_test(store, last, declared, digests, decision, reason, used, aa=is_aa(last, challenger)), reason


def is_aa(epoch: Epoch, challenger: str) -> bool:
    """Tell whether both arms of an epoch are the same bundle."""
    return bool(epoch.champion) and epoch.arms[challenger].digest == epoch.champion


def new_test(
    store: Store,
    last: Epoch,
    declared: Experiment,
    digests: Mapping[str, str],
    decision: str,
    reason: str,
    used: set[str],
    *,
    aa: bool = False,
) -> Epoch:
    """Make the epoch that begins a new test on what is served now: same share, fresh salt, no evidence from before.

    Raises CommandError if an A/A test can't be told by digest, EpochConflict.
    """
    challenger = declared.spec.arms[1]
    salt = declared.spec.salt
    while salt in used:
        salt = next_salt(salt)
    champion, against = roles(last, digests, challenger, aa=aa)
    arm = last.arms[challenger]
    arms = {challenger: type(arm)(arm.start, arm.stop, against)}
    return change(store, last, reason, salt=salt, arms=arms, champion=champion, decision=decision)


def roles(last: Epoch, digests: Mapping[str, str], challenger: str, *, aa: bool) -> tuple[str, str]:
    """Return the digests of champion and challenger for a new test on what is served now.

    The champion stays the champion, wherever it was deployed, as long as some node serves it; the challenger is the other
    bundle. With `aa` the challenger arm is the champion's bundle too, so that whatever differs between the arms is chance.

    Raises CommandError if an A/A test can't be told by digest.
    """
    named, other = digests.get(CHAMPION, ""), digests.get(challenger, "")
    champion = last.champion if last.champion in digests.values() else named
    if aa and not champion:
        raise CommandError("an A/A test needs the digest of the champion's bundle; this graph's champion has no bundle")
    return champion, champion if aa else named if other == champion else other


def next_salt(salt: str) -> str:
    """Return "campaigns-2" for "campaigns-1", and "x-2" for "x"."""
    match = re.fullmatch(r"(.*-)(\d+)", salt)
    return f"{match[1]}{int(match[2]) + 1}" if match else f"{salt}-2"
