"""A circuit breaker before an arm: after several failures in a row the arm is left alone, then probed one call at a time.

Invariant: while it is open no customer waits for the arm; while it is half-open at most one call is under way.
The pattern is that of M. Nygard, Release It!, 2nd ed. (2018), chapter 5.
"""

from __future__ import annotations

import time
from collections.abc import Callable

CLOSED, HALF_OPEN, OPEN = "closed", "half-open", "open"


class Breaker:
    """Opens after `failures` in a row, for `pause_s` seconds, doubled after each failed probe up to `longest_pause_s`.

    Closes after `successes` probes in a row. Every `allow` that returned True must be followed by `success` or `failure`.
    """

    def __init__(
        self,
        *,
        failures: int = 5,
        successes: int = 3,
        pause_s: float = 1.0,
        longest_pause_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._failures_to_open = failures
        self._successes_to_close = successes
        self._first_pause = pause_s
        self._longest_pause = longest_pause_s
        self._clock = clock
        self._pause = pause_s
        self._in_a_row = 0
        self._opened_at = 0.0
        self._probing = False
        self.state = CLOSED

    def allow(self) -> bool:
        """Return whether the arm may be asked now."""
        if self.state == CLOSED:
            return True
        if self.state == OPEN:
            if self._clock() - self._opened_at < self._pause:
                return False
            self.state, self._in_a_row = HALF_OPEN, 0
        if self._probing:
            return False
        self._probing = True
        return True

    def success(self) -> None:
        """The arm answered well."""
        self._probing = False
        if self.state == CLOSED:
            self._in_a_row = 0
            return
        self._in_a_row += 1
        if self.state == HALF_OPEN and self._in_a_row >= self._successes_to_close:
            self.state, self._in_a_row, self._pause = CLOSED, 0, self._first_pause

    def failure(self) -> None:
        """The arm failed, or took too long."""
        self._probing = False
        if self.state == HALF_OPEN:
            self._pause = min(2 * self._pause, self._longest_pause)
            self._open()
        elif self.state == CLOSED:
            self._in_a_row += 1
            if self._in_a_row >= self._failures_to_open:
                self._open()

    def _open(self) -> None:
        self.state, self._in_a_row, self._opened_at = OPEN, 0, self._clock()
