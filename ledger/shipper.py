"""The shipper: it moves the spool's lines into the store, and deletes the segments of workers that are gone.

Invariant: a segment is deleted only under its lock, which its writer has given up, and once all its records are durable.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from ledger.errors import BrokenRecord, SpoolError, StoreUnavailable
from ledger.records import Record, decode
from ledger.retention import FOR_EVER, Housekeeping, Retention
from ledger.spool import lock_segment, segments
from ledger.store import Store

log = logging.getLogger("contender.shipper")

BATCH_BYTES = 1024 * 1024
"""Spool bytes of one transaction: some 1,500 rows of one-row requests, 8,000 of large ones; 50 ms of the writer's lock."""

ID_TIME = re.compile(rb'"id":"([0-9a-f]{8})-([0-9a-f]{4})-7')


class Lag(msgspec.Struct, frozen=True):
    """What the store doesn't have yet: bytes of the spool, and the age of the oldest record in them, in seconds."""

    bytes: int
    seconds: float


class ShipReport(msgspec.Struct):
    """One pass: exposures new to the store, segments deleted, lines that could not be read, and what is behind after it."""

    rows: int = 0
    segments_done: int = 0
    skipped_lines: int = 0
    bytes_behind: int = 0
    seconds_behind: float = 0.0


class Shipper:
    """Ships one spool folder. Several may do so at once, in one process or many, because records are idempotent by id."""

    def __init__(self, folder: Path, store: Store, *, batch_bytes: int = BATCH_BYTES, retention: Retention = FOR_EVER) -> None:
        """Once a day, after a pass, what is older than `retention` is removed from the store."""
        self._folder = folder
        self._store = store
        self._batch_bytes = batch_bytes
        self._housekeeping = Housekeeping(retention)
        self._shipped: dict[str, int] = {}
        self._sure: set[str] = set()

    def ship(self) -> ShipReport:
        """Ship every line that is whole by now, and delete finished segments.

        Raises StoreUnavailable, or SpoolError for a segment that can't be read, after the others were shipped. Either way
        nothing is lost, and the next pass takes it up from there.
        """
        try:
            report = self._pass()
        except StoreUnavailable:
            # A server that comes back, maybe as its own replica, may have lost what it had confirmed: it is asked again.
            self._sure.clear()
            raise
        self._housekeeping.tend(self._store)
        return report

    def _pass(self) -> ShipReport:
        report = ShipReport()
        failed: SpoolError | None = None
        paths = segments(self._folder)
        for path in paths:
            try:
                with _opened(path) as fd:
                    if fd is not None:
                        self._ship_segment(path, fd, report)
            except SpoolError as error:
                failed = error
        self._shipped = {path.name: self._shipped[path.name] for path in paths if path.name in self._shipped}
        self._sure &= self._shipped.keys()
        if failed is not None:
            raise failed
        lag = self.lag()
        report.bytes_behind, report.seconds_behind = lag.bytes, lag.seconds
        return report

    def behind(self) -> Lag:
        """Return what is behind, as the store knows it. Raises SpoolError, StoreUnavailable."""
        self._shipped = {path.name: self._store.shipped(path.name) for path in segments(self._folder)}
        return self.lag()

    def lag(self) -> Lag:
        """Return what is behind, without asking the store. Raises SpoolError if a segment can't be read."""
        behind, now = 0, time.time()
        oldest = now
        for path in segments(self._folder):
            with _opened(path) as fd:
                if fd is None:
                    continue
                state, shipped = os.fstat(fd), self._shipped.get(path.name, 0)
                if state.st_size > shipped:
                    behind += state.st_size - shipped
                    oldest = min(oldest, _time_at(fd, shipped) or state.st_mtime)
        return Lag(behind, now - oldest)

    def _ship_segment(self, path: Path, fd: int, report: ShipReport) -> None:
        # Locked before it is read: whoever gets the lock knows that nothing will follow what is there.
        finished = lock_segment(fd)
        if os.fstat(fd).st_nlink == 0:
            return
        self._ship_lines(path.name, fd, report)
        if finished:
            torn = os.fstat(fd).st_size - self._shipped[path.name]
            if torn > 0:
                log.warning("%s: its last line was torn off after %d bytes and never answered for", path.name, torn)
                report.skipped_lines += 1
            self._store.finish_segment(path.name)
            path.unlink(missing_ok=True)
            del self._shipped[path.name]
            report.segments_done += 1
        elif os.fstat(fd).st_nlink == 0:
            # Another shipper has finished it meanwhile, maybe before this one noted its own progress.
            self._store.finish_segment(path.name)

    def _ship_lines(self, name: str, fd: int, report: ShipReport) -> None:
        if name not in self._sure:
            self._shipped[name] = self._store.shipped(name)
            self._sure.add(name)
        # Up to where it ends now: a live segment may grow faster than it is shipped, and others wait.
        size = os.fstat(fd).st_size
        while self._shipped[name] < size and (lines := _whole_lines(fd, self._shipped[name], self._batch_bytes)):
            end = self._shipped[name] + len(lines)
            broken: list[BrokenRecord] = []
            report.rows += self._store.write(_decoded(lines, broken), (name, end))
            if broken:
                log.warning("%s: %d lines before byte %d skipped; the first: %s", name, len(broken), end, broken[0])
            report.skipped_lines += len(broken)
            self._shipped[name] = end


@contextmanager
def _opened(path: Path) -> Iterator[int | None]:
    """Open a segment, None if it was finished meanwhile; closing it gives its lock back. Raises SpoolError."""
    fd = None
    try:
        with suppress(FileNotFoundError):
            # Writable, because some file systems lock nothing else.
            fd = os.open(path, os.O_RDWR)
        yield fd
    except OSError as error:
        raise SpoolError(f"{path}: {error.strerror}; its records stay in the spool") from error
    finally:
        if fd is not None:
            os.close(fd)


def _whole_lines(fd: int, offset: int, wanted: int) -> bytes:
    """Read about `wanted` bytes up to the end of a line; more where one line is longer."""
    while True:
        chunk = os.pread(fd, wanted, offset)
        end = chunk.rfind(b"\n") + 1
        if end or len(chunk) < wanted:
            return chunk[:end]
        wanted *= 2


def _decoded(lines: bytes, broken: list[BrokenRecord]) -> Iterator[Record]:
    """Yield records one by one, since thousands held at once would keep the garbage collector busy."""
    for line in lines[:-1].split(b"\n"):
        try:
            record = decode(line)
        except BrokenRecord as error:
            broken.append(error)
            continue
        yield record


def _time_at(fd: int, offset: int) -> float | None:
    """Return when the record at an offset was made, in seconds since 1970, from its id."""
    found = ID_TIME.search(os.pread(fd, 100, offset))
    return int(found[1] + found[2], 16) / 1000 if found else None
