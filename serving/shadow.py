"""The shadow: the arms that did not serve a row score it too, after its answer has left, and both scores are kept as a pair.

Invariant: no client waits for a shadow or sees its faults; what would not fit the bound, or the spool, is dropped and counted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from ledger.records import PairBatch
from router.epoch import CHAMPION, Epoch
from serving.arms import ask
from serving.engine import Child
from serving.messages import Message
from serving.nodes import Call

log = logging.getLogger("contender.shadow")

SCORED, DROPPED, FAILED = "scored", "dropped", "failed"


class ShadowObserver(Protocol):
    """Who is told what became of a shadow's rows: "scored" and kept, "dropped", or "failed"."""

    def shadow(self, arm: str, outcome: str, rows: int) -> None: ...


class Shadow:
    """Scores rows a second time. Live breakers are neither asked nor told: a shadow must not change who serves."""

    def __init__(self, record: Callable[[bytes], bool], observer: ShadowObserver, *, budget_s: float, limit: int) -> None:
        """`record` writes one spool line and tells whether it did; at most `limit` scorings are under way, each for `budget_s`."""
        self._record = record
        self._observer = observer
        self._budget_s = budget_s
        self._limit = limit
        self._tasks: set[asyncio.Task[None]] = set()

    def follow(
        self,
        batch: str,
        epoch: Epoch,
        served: Sequence[str],
        roles: Mapping[str, int | None],
        children: Sequence[Child],
        part: Callable[[list[int]], Message],
        call: Call,
    ) -> None:
        """Let every arm of the epoch score the rows it did not serve. To be called in the loop, once the answer has left.

        `batch` is the id of the request's exposures, `served` the arm of each row, `part` makes the message of some rows.
        """
        for arm, index in roles.items():
            rows = [row for row, each in enumerate(served) if each != arm]
            if not rows:
                continue
            if index is None:
                self._observer.shadow(arm, FAILED, len(rows))
            elif len(self._tasks) >= self._limit:
                self._observer.shadow(arm, DROPPED, len(rows))
            else:
                digest = epoch.champion if arm == CHAMPION else epoch.arms[arm].digest
                again = Call(headers=call.headers, puid=call.puid, path=call.path)
                work = self._score(batch, arm, digest, rows, children[index], part, again)
                task = asyncio.get_running_loop().create_task(work)
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _score(
        self,
        batch: str,
        arm: str,
        digest: str,
        rows: list[int],
        child: Child,
        part: Callable[[list[int]], Message],
        call: Call,
    ) -> None:
        outcome = DROPPED
        try:
            async with asyncio.timeout(self._budget_s):
                answer = await ask(child, part(rows), len(rows), call)
            if digest and answer.digest and answer.digest != digest:
                raise ValueError(f"it serves the bundle {answer.digest[:12]}, the epoch names {digest[:12]}")
            scores = {
                name: column
                for name, column in zip(answer.table.names[1:], answer.table.columns[1:], strict=True)
            }
            if self._record(PairBatch(id=batch, arm=arm, digest=answer.digest, row=rows, scores=scores).encode()):
                outcome = SCORED
        except Exception as error:  # noqa: BLE001 - nobody waits for a shadow, so there is nobody to raise to
            outcome = FAILED
            log.warning("%s could not score %d row(s) as a shadow: %s", arm, len(rows), error or type(error).__name__)
        finally:
            self._observer.shadow(arm, outcome, len(rows))
