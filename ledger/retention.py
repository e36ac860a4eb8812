"""How long records are kept, and the look once a day for those that are older.

Invariant: only whole days go, counted by UTC from the ids, and never what a younger record needs: a test's epochs stay.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from ledger.errors import StoreUnavailable

if TYPE_CHECKING:
    from ledger.store import Store

log = logging.getLogger("contender.retention")

LOOK_SECONDS = 24 * 3600.0
AGAIN_SECONDS = 900.0
"""When a look that failed is taken again."""


class Retention(NamedTuple):
    """Whole days beside today for which inputs, and exposures with their pairs, are kept; 0: for ever."""

    inputs: int = 0
    exposures: int = 0


FOR_EVER = Retention()


class Housekeeping:
    """Prunes a store once a day, a second at a time, so that whoever ships beside it is hardly kept waiting."""

    def __init__(self, retention: Retention, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` counts seconds."""
        self._retention = retention
        self._clock = clock
        self._due = float("-inf")

    def tend(self, store: Store) -> None:
        """Prune if it is time. A store that can't now is left for later, with a line in the log."""
        if not any(self._retention) or self._clock() < self._due:
            return
        try:
            done = store.prune(self._retention)
        except StoreUnavailable as error:
            log.warning("old records stay for now: %s", error)
            self._due = self._clock() + AGAIN_SECONDS
            return
        if done.rows or done.partitions:
            log.info("removed %d rows and %d daily partitions that are older than they are kept", done.rows, done.partitions)
        if not done.more:
            self._due = self._clock() + LOOK_SECONDS
