"""Where an engine's current epoch comes from. Workers read one small file that the supervisor replaces atomically, and whose
time of modification is when the epoch was last confirmed by the control plane.

Invariant: the last good epoch stays until a newer good one arrives; a record that is refused is counted and told, never used.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from router.epoch import Epoch
from router.errors import InvalidEpoch
from router.split import Splitter

CONFIRM_SECONDS = 1.0
"""The least time between two marks of confirmation on the file: each one makes every worker read it again."""


def write_epoch_file(path: Path, epoch: Epoch) -> None:
    """Replace `path` atomically, so that a reader sees the old record or the new one and nothing between."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(epoch.to_json())
        Path(name).replace(path)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise


class EpochFile:
    """The epoch in a file, as a worker sees it: re-read only when the file was replaced or marked as confirmed.

    `accept` may refuse an epoch by raising InvalidEpoch (an engine refuses a champion digest that it doesn't serve).
    An epoch that was not confirmed for `stale_after` seconds (0: for ever) is stale until it is again: everybody gets the
    champion meanwhile. A file that holds what was refused confirms nothing.
    """

    def __init__(
        self,
        path: Path,
        *,
        secret: bytes = b"",
        stale_after: float = 0.0,
        accept: Callable[[Epoch], None] = lambda epoch: None,
        refused: Callable[[InvalidEpoch], None] = lambda error: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._secret = secret
        self._stale_after = stale_after
        self._accept = accept
        self._refused = refused
        self._clock = clock
        self._seen: tuple[int, int] | None = None
        self._document: bytes | None = None
        self._in_use: bytes | None = None
        self._confirmed = clock()
        self.current: Splitter | None = None

    @property
    def age(self) -> float:
        """Seconds since the epoch in use was confirmed. Only the look at a new mark trusts the wall clock."""
        return max(0.0, self._clock() - self._confirmed)

    def refresh(self) -> bool:
        """Take over the file's epoch if it is new and acceptable; return whether the current epoch changed.

        A missing file leaves the last epoch in place: the control plane may be down.
        """
        changed = self._read()
        if self.current is not None:
            stale = 0 < self._stale_after < self.age
            if stale != self.current.stale:
                self.current = Splitter(self.current.epoch, secret=self._secret, stale=stale)
        return changed

    def _read(self) -> bool:
        try:
            state = self._path.stat()
            mark = (state.st_ino, state.st_mtime_ns)
            if mark == self._seen:
                return False
            document = self._path.read_bytes()
        except FileNotFoundError:
            return False
        self._seen = mark
        changed = document != self._document and self._take(document)
        self._document = document
        if document == self._in_use:
            self._confirmed = self._clock() - max(0.0, time.time() - state.st_mtime)
        return changed

    def _take(self, document: bytes) -> bool:
        try:
            epoch = Epoch.from_json(document)
            known = self.current is not None and epoch == self.current.epoch
            if not known:
                self._accept(epoch)
        except InvalidEpoch as error:
            self._refused(error)
            return False
        self._in_use = document
        if not known:
            self.current = Splitter(epoch, secret=self._secret)
        return not known


class EpochKeeper:
    """The epoch in a file, as the supervisor sees it: it decides which record is next, and marks the file as confirmed.

    Invariant: numbers only rise, and one number never stands for two contents. Any thread may call.
    """

    def __init__(
        self,
        path: Path,
        test: str,
        *,
        accepted: Callable[[Epoch], None] = lambda epoch: None,
        refused: Callable[[InvalidEpoch], None] = lambda error: None,
    ) -> None:
        """`accepted` is told each epoch once it is in the file, `refused` each one that is not, once."""
        self._path = path
        self._test = test
        self._accepted = accepted
        self._refused = refused
        self._lock = threading.Lock()
        self._told: Epoch | None = None
        self._least: Epoch | None = None
        self._outdated = False
        self._confirmed = float("-inf")
        self.current: Epoch | None = None

    def resume(self) -> None:
        """Take up the epoch that a former supervisor left in the file, with the time at which it was confirmed."""
        with contextlib.suppress(FileNotFoundError, InvalidEpoch):
            epoch = Epoch.from_json(self._path.read_bytes())
            if epoch.test == self._test:
                self.current = epoch
                self._accepted(epoch)
                return
        # Of another test, or unreadable: not for the workers' eyes.
        self._path.unlink(missing_ok=True)

    def take(self, epoch: Epoch) -> bool:
        """Take an epoch that the control plane shows as the current one; return False if it is refused."""
        with self._lock:
            try:
                self._check(epoch)
            except InvalidEpoch as error:
                self._outdated = True
                if epoch != self._told:
                    self._told = epoch
                    self._refused(error)
                return False
            self._outdated = False
            if self.current is None or epoch.epoch > self.current.epoch:
                write_epoch_file(self._path, epoch)
                self.current, self._confirmed = epoch, time.monotonic()
                self._accepted(epoch)
                return True
        self.confirm()
        return True

    def confirm(self) -> None:
        """Mark the file: the control plane stands by what it showed last. No mark where that was refused, or nothing."""
        now = time.monotonic()
        with self._lock:
            if self.current is None or self._outdated or now - self._confirmed < CONFIRM_SECONDS:
                return
            self._confirmed = now
            try:
                os.utime(self._path)
            except FileNotFoundError:
                write_epoch_file(self._path, self.current)

    def outdated(self) -> None:
        """The control plane no longer stands by the epoch in the file: it ages from now on."""
        with self._lock:
            self._outdated = True

    def at_least(self, known: Epoch) -> None:
        """Note the newest epoch that the ledger has of this test: older ones and other contents are refused from now on.

        If the file's epoch is one of those, it is stale at once: others have gone on without this replica, or the
        Experiment was made anew with numbers that were used before.
        """
        with self._lock:
            self._least = known
            if self.current is None:
                return
            try:
                self._check(self.current)
            except InvalidEpoch as error:
                self._outdated = True
                with contextlib.suppress(FileNotFoundError):
                    os.utime(self._path, (0, 0))
                self._refused(error)

    def _check(self, epoch: Epoch) -> None:
        if epoch.test != self._test:
            raise InvalidEpoch(f"test: {epoch.test!r}; {self._test!r} is expected")
        for known in filter(None, (self.current, self._least)):
            if epoch.epoch < known.epoch or (epoch.epoch == known.epoch and not _same(epoch, known)):
                raise InvalidEpoch(
                    f"epoch {epoch.epoch} of test {epoch.test}, made at {epoch.at}: epoch {known.epoch}, made at {known.at}, "
                    f"is known{'' if epoch.epoch < known.epoch else ' with other content'}, and no number may mean two things. "
                    f"If the Experiment was deleted and made again, set its spec.firstEpoch to {known.epoch + 1}"
                )


def _same(one: Epoch, other: Epoch) -> bool:
    """Tell whether two epochs do the same to customers, whoever made them and when."""
    return msgspec.structs.replace(one, actor="", reason="", at="") == msgspec.structs.replace(
        other, actor="", reason="", at=""
    )
