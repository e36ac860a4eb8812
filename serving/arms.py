"""The arms below Contender's router: which child plays which role, and asking a challenger so that its faults stay its own.

Invariant: a challenger that fails, dawdles, answers nonsense or serves another bundle costs its customers nothing but time
up to the budget; the champion's failure is never hidden.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

from router.breaker import Breaker
from router.epoch import CHAMPION, Epoch
from router.errors import InvalidEpoch
from serving.engine import Child
from serving.errors import BadRequest, ServingError
from serving.messages import Message
from serving.nodes import Call
from serving.table import Table

log = logging.getLogger("contender.arms")

ERROR, TIMEOUT, DIGEST, REFUSED = "fallback:error", "fallback:timeout", "fallback:digest", "fallback:open"


class BreakerObserver(Protocol):
    """Who is told of a breaker's state after each call: "closed", "half-open" or "open"."""

    def breaker(self, arm: str, state: str) -> None: ...


class Answer(NamedTuple):
    """One arm's answer to its rows, and the digest of the bundle that gave it ("" where the node doesn't say)."""

    table: Table
    digest: str


class Arms:
    """The children of the router by name and by the digest they serve.

    A node in this process is known by its digest from the start. One behind HTTP is known once it has answered, and may be
    rolled to another bundle at any time: it is asked all the same, and its answer tells.
    """

    def __init__(self, names: Sequence[str], digests: Mapping[str, str], remote: Collection[str] = ()) -> None:
        """`remote` names the children behind HTTP."""
        self.names = list(names)
        self._remote = [name in remote for name in names]
        self._digests = [digests.get(name, "") for name in names]
        self._resolved: tuple[Epoch | None, dict[str, int | None]] | None = None

    def accept(self, epoch: Epoch) -> None:
        """Raise InvalidEpoch if every child's digest is known for good and none is the epoch's champion."""
        if epoch.champion and all(self._digests) and not any(self._remote) and epoch.champion not in self._digests:
            served = ", ".join(f"{name} {digest[:12]}" for name, digest in zip(self.names, self._digests, strict=True))
            raise InvalidEpoch(f"champion: no node serves {epoch.champion[:12]}; served are {served or 'none'}")

    def learn(self, index: int, digest: str) -> None:
        """Note which bundle a child serves now."""
        if digest and self._digests[index] != digest:
            self._digests[index] = digest
            self._resolved = None

    def resolve(self, epoch: Epoch | None) -> dict[str, int | None]:
        """Return the child's index for each arm; None for a challenger whose bundle no child serves."""
        if self._resolved is None or self._resolved[0] is not epoch:
            self._resolved = epoch, self._roles(epoch)
        return self._resolved[1]

    def _roles(self, epoch: Epoch | None) -> dict[str, int | None]:
        if epoch is None:
            return {CHAMPION: 0}
        found: dict[str, int | None] = {CHAMPION: self._child(CHAMPION, epoch.champion) or 0}
        return found | {name: self._child(name, arm.digest) for name, arm in epoch.arms.items()}

    def _child(self, name: str, digest: str) -> int | None:
        """Return the child with this digest; else the child of this name, unless it is known to serve another for good."""
        index = self.names.index(name) if name in self.names else None
        if digest in self._digests and digest:
            return index if index is not None and self._digests[index] == digest else self._digests.index(digest)
        if index is None or (digest and self._digests[index] and not self._remote[index]):
            return None
        return index


class Challengers:
    """Asks challengers within a time budget and behind one breaker each."""

    def __init__(self, observer: BreakerObserver, *, budget_s: float, new_breaker: Callable[[], Breaker] = Breaker) -> None:
        self._observer = observer
        self._budget_s = budget_s
        self._new_breaker = new_breaker
        self._breakers: dict[str, Breaker] = {}

    async def ask(self, arm: str, digest: str, child: Child, message: Message, count: int, call: Call) -> Answer | str:
        """Return the challenger's answer, or the reason of the fallback."""
        breaker = self._breakers.get(arm)
        if breaker is None:
            breaker = self._breakers[arm] = self._new_breaker()
        if not breaker.allow():
            return REFUSED
        outcome: Answer | str = ERROR
        healthy = False
        try:
            if child.immediate:
                # It can't be interrupted, and a timer would cost what a small model does.
                outcome = await ask(child, message, count, call)
            else:
                async with asyncio.timeout(self._budget_s):
                    outcome = await ask(child, message, count, call)
            healthy = True
        except TimeoutError:
            outcome = TIMEOUT
            log.warning("%s took longer than %g s for %d row(s); the champion answers them", arm, self._budget_s, count)
        except Exception as error:  # noqa: BLE001 - whatever a challenger does must not reach its customers
            # Rows that were refused say nothing about the arm: no client may open its breaker with bad requests.
            healthy = isinstance(error, ServingError) and error.status in (400, 413)
            log.warning("%s failed for %d row(s), the champion answers them: %s", arm, count, error)
        finally:
            (breaker.success if healthy else breaker.failure)()
            self._observer.breaker(arm, breaker.state)
        if isinstance(outcome, Answer) and digest and outcome.digest and outcome.digest != digest:
            return DIGEST
        return outcome


async def ask(child: Child, message: Message, count: int, call: Call) -> Answer:
    """Ask a child for `count` rows. Raises what its nodes raise, and ServingError if the answer is no table of `count` rows."""
    answer = await child.predict(message, call)
    try:
        table = answer.table(count)
    except BadRequest as error:
        raise ServingError(f"node {child.name} answered what is no table of {count} row(s): {error}") from None
    if table.count != count:
        raise ServingError(f"node {child.name} answered {table.count} row(s) for {count}")
    tags = answer.meta.get("tags")
    digest = tags.get("digest") if type(tags) is dict else None
    return Answer(table, digest if type(digest) is str else "")
