"""The shadow: the arms that did not serve a row score it too, after its answer has left, and both scores are kept as a pair.

Invariant: no client waits for a shadow or sees its faults; what would not fit the bound, or the spool, is dropped and counted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from ledger.records import PairBatch
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

    def __init__(
        self, record: Callable[[bytes], bool], observer: ShadowObserver, *, key: str, budget_s: float, limit: int
    ) -> None:
        """`record` writes one spool line and tells whether it did; `key` is the column that is no score.

        At most `limit` scorings are under way at a time, and each may take `budget_s` seconds.
        """
        self._record = record
        self._observer = observer
        self._key = key
        self._budget_s = budget_s
        self._limit = limit
        self._tasks: set[asyncio.Task[None]] = set()
        self._failing: set[str] = set()

    def follow(
        self,
        batch: str,
        served: Sequence[str],
        arms: Mapping[str, tuple[Child | None, str]],
        part: Callable[[list[int]], Message],
        call: Call,
    ) -> None:
        """Let every arm score the rows it did not serve. To be called in the loop, once the answer has left.

        `batch` is the id of the request's exposures, `served` the arm of each row; `arms` gives each arm's child and the
        digest it must serve ("": any), and `part` makes the message of some rows.
        """
        for arm, (child, digest) in arms.items():
            rows = [row for row, each in enumerate(served) if each != arm]
            if not rows:
                continue
            if child is None:
                self._failed(arm, rows, f"no node serves the bundle {digest[:12]}")
            elif len(self._tasks) >= self._limit:
                self._observer.shadow(arm, DROPPED, len(rows))
            else:
                again = Call(headers=call.headers, puid=call.puid, path=call.path)
                task = asyncio.get_running_loop().create_task(self._score(batch, arm, digest, rows, child, part, again))
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
        try:
            async with asyncio.timeout(self._budget_s):
                answer = await ask(child, part(rows), len(rows), call)
            if digest and answer.digest and answer.digest != digest:
                raise ValueError(f"it serves the bundle {answer.digest[:12]}, the epoch names {digest[:12]}")
            table = answer.table
            scores = {name: column for name, column in zip(table.names, table.columns, strict=True) if name != self._key}
            kept = self._record(PairBatch(id=batch, arm=arm, digest=answer.digest, row=rows, scores=scores).encode())
        except Exception as error:  # noqa: BLE001 - nobody waits for a shadow, so there is nobody to raise to
            self._failed(arm, rows, str(error) or type(error).__name__)
        else:
            self._failing.discard(arm)
            self._observer.shadow(arm, SCORED if kept else DROPPED, len(rows))

    def _failed(self, arm: str, rows: list[int], why: str) -> None:
        self._observer.shadow(arm, FAILED, len(rows))
        if arm not in self._failing:
            self._failing.add(arm)
            log.warning("%s can't score as a shadow, told once until it can: %s", arm, why)
