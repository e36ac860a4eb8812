"""The spool: what an engine answered, on the local disk before the answer leaves. Each worker has a segment file of its own.

Invariant: a line is in its segment whole or not at all, and a segment whose lock is free is never written again.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from pathlib import Path

from ledger.errors import SpoolError, SpoolFull
from ledger.records import uuid7

SUFFIX = ".jsonl"

LOOK_SECONDS = 1.0
"""How old the known size of the folder may be. The bound can be passed by what other workers write meanwhile."""

LOOK_AGAIN_SECONDS = 0.1
"""The same once the bound is reached, so that a worker soon sees that the store has taken something."""


def segments(folder: Path) -> list[Path]:
    """Return the folder's segments, oldest first: their names begin with the time of creation."""
    try:
        return sorted(path for path in folder.iterdir() if path.suffix == SUFFIX)
    except FileNotFoundError:
        return []


def lock_segment(fd: int) -> bool:
    """Take a segment's lock until `fd` is closed; return False if its writer, or another shipper, has it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class Spool:
    """One worker's way to append. Not for several threads, and not to be kept by a forked child, which would hold the lock."""

    def __init__(
        self,
        folder: Path,
        *,
        fsync: bool = False,
        max_bytes: int = 1024 * 1024 * 1024,
        segment_bytes: int = 32 * 1024 * 1024,
    ) -> None:
        """With `fsync` each append waits for the disk. `max_bytes` bounds all segments in the folder together.

        Raises SpoolFull or SpoolError if no segment can be made.
        """
        self._folder = folder
        self._fsync = fsync
        self._max_bytes = max_bytes
        self._segment_bytes = segment_bytes
        self._fd = -1
        self._path = folder
        self._length = 0
        self._known_size = 0
        self._looked_at = float("-inf")
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise _refusal(folder, error) from error
        self._begin_segment()

    @property
    def size(self) -> int:
        """Bytes of all segments in the folder, known to within a second."""
        self._look(LOOK_SECONDS)
        return self._known_size

    def append(self, line: bytes) -> None:
        """Write one line, given without its newline, by one write(2); return when the operating system has it.

        Raises SpoolFull at the bound or when the disk is full, SpoolError if writing fails. Nothing of the line stays then.
        """
        data = line + b"\n"
        self._look(LOOK_SECONDS)
        if self._known_size + len(data) > self._max_bytes:
            self._check_bound(len(data))
        if self._fd < 0 or (self._length and self._length + len(data) > self._segment_bytes):
            self._begin_segment()
        try:
            written = os.write(self._fd, data)
        except OSError as error:
            self._undo()
            raise _refusal(self._path, error) from error
        if written != len(data):
            self._undo()
            raise SpoolFull(f"{self._path}: only {written} of {len(data)} bytes could be written; the disk is full")
        if self._fsync:
            self._sync()
        self._length += written
        self._known_size += written

    def close(self) -> None:
        """Leave the segment to the shipper. A later append begins a new one."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _look(self, seconds: float) -> None:
        now = time.monotonic()
        if now - self._looked_at >= seconds:
            self._looked_at = now
            self._known_size = sum(_size(path) for path in segments(self._folder))

    def _check_bound(self, wanted: int) -> None:
        self._look(LOOK_AGAIN_SECONDS)
        if self._known_size + wanted > self._max_bytes:
            raise SpoolFull(
                f"{self._folder}: {self._known_size} bytes wait to be shipped; {wanted} more would pass the bound of "
                f"{self._max_bytes}"
            )

    def _begin_segment(self) -> None:
        while True:
            path = self._folder / f"{uuid7()}{SUFFIX}"
            try:
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
            except OSError as error:
                raise _refusal(path, error) from error
            # A shipper that sees the file before it is locked takes it for a dead worker's, and deletes it.
            if lock_segment(fd) and os.fstat(fd).st_nlink:
                break
            os.close(fd)
        self.close()
        self._fd, self._path, self._length = fd, path, 0
        if self._fsync:
            self._sync_folder()

    def _sync(self) -> None:
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            # The line may have been shipped, so nothing may ever follow it at an offset that the shipper has passed.
            self._undo()
            self.close()
            raise _refusal(self._path, error) from error

    def _sync_folder(self) -> None:
        """Make the new segment's name survive a power cut, as its lines will."""
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        except OSError as error:
            self.close()
            raise _refusal(self._folder, error) from error
        finally:
            os.close(folder)

    def _undo(self) -> None:
        """Cut off what a failed write has left; where even that fails, leave the segment, so that the torn line is its last."""
        try:
            os.ftruncate(self._fd, self._length)
        except OSError:
            self.close()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _refusal(path: Path, error: OSError) -> SpoolError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return (SpoolFull if full else SpoolError)(f"{path}: {error.strerror}; nothing was written")
