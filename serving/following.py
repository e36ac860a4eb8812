"""How the supervisor learns of epochs: from the ledger that it asks, or from the Experiment that it watches.

Invariant: whatever a source can't do, the supervisor goes on; the epoch in the file then ages until it is confirmed again.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from ledger.errors import LedgerError
from router.cluster import LONGEST_PAUSE, Cluster, follow
from router.epoch import Epoch
from router.errors import InvalidEpoch
from router.resource import Resource
from router.sources import EpochKeeper

if TYPE_CHECKING:
    from ledger.store import Store

log = logging.getLogger("contender.epochs")


class Source(Protocol):
    """Something that hands epochs to the keeper. `look` is called often, by one thread."""

    def look(self) -> None: ...

    def close(self) -> None: ...


class LedgerSource:
    """The newest epoch of a ledger, asked for only when somebody has written to it."""

    def __init__(self, store: Store, test: str, keeper: EpochKeeper, refused: Callable[[InvalidEpoch], None]) -> None:
        """Look for the first time. Raises StoreUnavailable."""
        self._store = store
        self._test = test
        self._keeper = keeper
        self._refused = refused
        self._counter = store.change_counter()
        self._take()

    def look(self) -> None:
        """Hand a new epoch to the keeper, and confirm the one there is; whatever fails is tried again by the next call."""
        # A full disk refuses the epoch's file too.
        with contextlib.suppress(LedgerError, OSError):
            counter = self._store.change_counter()
            if counter != self._counter:
                self._take()
                self._counter = counter
            self._keeper.confirm()

    def close(self) -> None:
        self._store.close()

    def _take(self) -> None:
        document = self._store.current_epoch(self._test)
        if document is None:
            return
        try:
            epoch = Epoch.from_json(document)
        except InvalidEpoch as error:
            self._keeper.outdated()
            self._refused(error)
            return
        new = epoch != self._keeper.current
        if self._keeper.take(epoch) and new:
            log.info("epoch %d by %s: %s", epoch.epoch, epoch.actor, epoch.reason)


class ExperimentSource:
    """An Experiment in a cluster, watched by a thread of its own (a `Listener` of router.cluster)."""

    def __init__(self, name: str, keeper: EpochKeeper, refused: Callable[[InvalidEpoch], None]) -> None:
        """Take up what a former supervisor left, and begin to watch."""
        self._name = name
        self._keeper = keeper
        self._refused = refused
        self._stopping = threading.Event()
        self._lost = ""
        keeper.resume()
        # A daemon: a watch may be silent for seconds, which nobody waits for at the end.
        threading.Thread(target=self._follow, name="experiment", daemon=True).start()

    def look(self) -> None:
        """Do nothing: the thread does."""

    def close(self) -> None:
        self._stopping.set()

    def shown(self, document: Mapping[str, Any] | None) -> None:
        """Hand the Experiment's epoch to the keeper."""
        self._found()
        if document is None:
            log.error("there is no experiment %s; the last epoch holds until it is stale", self._name)
            self._keeper.outdated()
            return
        try:
            epoch = Resource.read(document).epoch()
        except InvalidEpoch as error:
            self._keeper.outdated()
            self._refused(error)
            return
        known = self._keeper.current
        if self._keeper.take(epoch) and (known is None or known.epoch != epoch.epoch):
            log.info("epoch %d by %s: %s", epoch.epoch, epoch.actor, epoch.reason or "no reason given")

    def confirmed(self) -> None:
        """Mark the epoch as confirmed."""
        self._found()
        self._keeper.confirm()

    def lost(self, reason: str) -> None:
        """Say once why the epoch ages."""
        if reason != self._lost:
            self._lost = reason
            log.warning("the experiment can't be followed, the last epoch holds until it is stale: %s", reason)

    def _found(self) -> None:
        if self._lost:
            self._lost = ""
            log.info("the experiment is followed again")

    def _follow(self) -> None:
        while not self._stopping.is_set():
            try:
                follow(self._name, Cluster, self, self._stopping)
            except Exception:
                log.exception("following the experiment failed unexpectedly; it begins again")
                self._stopping.wait(LONGEST_PAUSE)
