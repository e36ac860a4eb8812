"""The way of exposures into the spool, and what happens while the spool takes none: a gap, which is recorded afterwards.

Invariant: a row that is not recorded lies within a recorded gap, so that the judge can leave the gap out.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime

from ledger.errors import SpoolError
from ledger.records import Gap, timestamp, uuid7

log = logging.getLogger("contender.recorder")

PAUSE_SECONDS = 1.0
"""How long after a refusal the spool is left alone. Meanwhile the champion serves everybody."""


class Recorder:
    """Appends lines. Closed for a while after the spool refused one; the first line that it takes again ends the gap."""

    def __init__(
        self,
        append: Callable[[bytes], None],
        test: str,
        clock: Callable[[], float] = time.monotonic,
        *,
        hand_over: Callable[[], None] = lambda: None,
    ) -> None:
        """`append` writes a line, or several by one write; it returns when they are there, and raises SpoolError if none is.

        `hand_over` is called when a gap begins: it leaves to the shipper what was written, whose deletion makes room again.
        """
        self._append = append
        self._test = test
        self._clock = clock
        self._hand_over = hand_over
        self._closed_until = float("-inf")
        self._gap: tuple[str, int] | None = None

    def open(self) -> bool:
        """Return whether a line may be tried."""
        return self._gap is None or self._clock() >= self._closed_until

    def record(self, line: bytes) -> bool:
        """Write one request's line; return False if it was not written."""
        if not self.open():
            return False
        try:
            # Together or not at all: where there is room for the gap's record only, the gap goes on.
            self._append(line if self._gap is None else self._ended(*self._gap) + b"\n" + line)
        except SpoolError as error:
            self._closed_until = self._clock() + PAUSE_SECONDS
            if self._gap is None:
                log.error("exposures can't be recorded, the champion alone serves until they can: %s", error)
                self._gap = timestamp(datetime.now(UTC)), 0
                self._hand_over()
            return False
        if self._gap is not None:
            log.warning("the spool takes lines again; the champion answered %d row(s) unrecorded", self._gap[1])
            self._gap = None
        return True

    def offer(self, line: bytes) -> bool:
        """Write a line that may as well be lost, such as a shadow's; return False if it was. It begins no gap, nor ends one."""
        if self._gap is not None:
            return False
        try:
            self._append(line)
        except SpoolError:
            return False
        return True

    def missed(self, rows: int) -> None:
        """Count rows that were answered without a record."""
        if self._gap is not None:
            self._gap = self._gap[0], self._gap[1] + rows

    def close(self) -> None:
        """Record a gap that is still open, if the spool takes it now."""
        if self._gap is not None:
            try:
                self._append(self._ended(*self._gap))
            except SpoolError as error:
                log.error("a gap since %s with %d row(s) stays unrecorded: %s", *self._gap, error)

    def _ended(self, start: str, rows: int) -> bytes:
        return Gap(id=uuid7(), test=self._test, start=start, end=timestamp(datetime.now(UTC)), rows=rows).encode()
