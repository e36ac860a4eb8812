"""Shipping while a command writes to the spool: a process of its own, so that the ledger's work takes another core.

Invariant: it ends after everything that its parent had appended is in the ledger, even if the parent was killed.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
from multiprocessing.connection import Connection
from pathlib import Path

from console.errors import CommandError
from ledger.errors import LedgerError

PAUSE_SECONDS = 0.2

log = logging.getLogger("contender.shipping")


class Shipping:
    """The process that ships one spool folder into one ledger, from its making to `finish`."""

    def __init__(self, spool: Path, ledger: str) -> None:
        spawn = multiprocessing.get_context("spawn")
        theirs, self._mine = spawn.Pipe(duplex=False)
        self._process = spawn.Process(target=_ship, args=(spool, ledger, theirs), name="shipping")
        self._process.start()
        theirs.close()

    def finish(self) -> None:
        """Return once all lines in finished segments are in the ledger. Raises CommandError if they could not be shipped."""
        self._mine.close()
        self._process.join()
        if self._process.exitcode:
            raise CommandError("the exposures could not all be shipped; they stay in the spool for the next `contender serve`")


def _ship(spool: Path, ledger: str, parent: Connection) -> None:
    """Ship until the parent's end of the pipe closes, by itself or by the parent's death, then once more."""
    from ledger.shipper import Shipper
    from ledger.store import Store

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    store = Store.open(ledger)
    shipper = Shipper(spool, store)
    try:
        ended = False
        while not ended:
            ended = parent.poll(PAUSE_SECONDS)
            try:
                shipper.ship()
            except LedgerError as error:
                log.warning("%s", error)
                if ended:
                    raise SystemExit(1) from None
    finally:
        store.close()
