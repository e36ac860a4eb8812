"""The parent process of `contender serve`: it starts the workers, follows the epoch, and ships the spool to the store.

Invariant: it alone writes the epoch file and deletes segments; requests never wait for it, and it never answers one.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import signal
import socket
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import TYPE_CHECKING

from ledger.errors import LedgerError, SpoolError
from router.epoch import Epoch
from router.errors import InvalidEpoch
from router.sources import write_epoch_file
from serving.listener import admit_nobody, listen
from serving.metrics import Metrics
from serving.settings import Settings
from serving.worker import DRAIN, READY, run_worker

if TYPE_CHECKING:
    from ledger.shipper import Shipper
    from ledger.store import Store

log = logging.getLogger("contender.supervisor")

POLL_SECONDS = 0.05
"""How often the store is asked for a new epoch: one PRAGMA that reads a counter in shared memory."""
SHIP_SECONDS = 0.2
RESTART_SECONDS = 0.5
"""Pause before a dead worker is replaced, so that one that dies at once doesn't take the machine's time."""

SETTLE_SECONDS = 0.1
"""From the last connection that is let in to the port's end, so that a worker has accepted it and read its request."""


class WorkerFailedError(RuntimeError):
    """A worker ended before it was ready; its own message stands above on stderr."""


class Supervisor:
    """Runs until SIGTERM or SIGINT, drains, and ends; a second signal ends the draining.

    `ready` is called once, when every worker accepts requests.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        open_store: Callable[[], Store],
        open_shipper: Callable[[Store], Shipper],
        metrics: Callable[[], Metrics],
        ready: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._open_store = open_store
        self._open_shipper = open_shipper
        self._new_metrics = metrics
        self._ready = ready
        self._stopping = threading.Event()
        self._hurry = threading.Event()
        self._workers: dict[int, tuple[BaseProcess, Connection]] = {}
        self._spawn = multiprocessing.get_context("spawn")

    def run(self) -> None:
        """Serve. Raises OSError if the address is taken, WorkerFailedError if a worker can't start."""
        settings = self._settings
        metrics = self._new_metrics()
        store = self._open_store()
        counter = store.change_counter()
        epoch = self._follow(store, None)
        listener = listen(settings.host, settings.port)
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._stop)
        shipping = threading.Thread(target=self._ship, args=(metrics,), name="shipper")
        try:
            for _ in range(settings.workers):
                self._start(listener)
            self._await_ready()
            shipping.start()
            self._ready()
            while not self._stopping.is_set():
                self._replace_dead(listener)
                with contextlib.suppress(LedgerError):
                    changed = store.change_counter()
                    if changed != counter:
                        epoch = self._follow(store, epoch)
                        counter = changed
            self._drain(listener)
        finally:
            self._stopping.set()
            listener.close()
            self._end_workers()
            if shipping.ident is not None:
                shipping.join()
            store.close()

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        (self._hurry if self._stopping.is_set() else self._stopping).set()

    def _follow(self, store: Store, epoch: Epoch | None) -> Epoch | None:
        """Hand a new epoch to the workers."""
        document = store.current_epoch(self._settings.test)
        if document is None:
            return epoch
        try:
            current = Epoch.from_json(document)
        except InvalidEpoch as error:
            log.error("the newest epoch in the ledger is refused, the last good one stays: %s", error)
            return epoch
        if epoch is None or current.epoch != epoch.epoch:
            write_epoch_file(self._settings.epoch_file, current)
            log.info("epoch %d by %s: %s", current.epoch, current.actor, current.reason)
        return current

    def _start(self, listener: socket.socket) -> None:
        mine, theirs = self._spawn.Pipe()
        process = self._spawn.Process(target=run_worker, args=(self._settings, listener, theirs), name="worker")
        process.start()
        theirs.close()
        self._workers[process.sentinel] = process, mine

    def _await_ready(self) -> None:
        waiting = [connection for _, connection in self._workers.values()]
        while waiting and not self._stopping.is_set():
            for connection in wait(waiting, timeout=POLL_SECONDS):
                assert isinstance(connection, Connection)  # noqa: S101 - narrows what `wait` returns
                try:
                    if connection.recv() != READY:
                        continue
                except EOFError:
                    raise WorkerFailedError("a worker could not start; see its message above") from None
                waiting.remove(connection)

    def _replace_dead(self, listener: socket.socket) -> None:
        for sentinel in wait(list(self._workers), timeout=POLL_SECONDS):
            assert isinstance(sentinel, int)  # noqa: S101
            process, connection = self._workers.pop(sentinel)
            connection.close()
            process.join()
            if self._stopping.is_set():
                continue
            log.error("worker %s ended with exit code %s; a new one starts", process.pid, process.exitcode)
            self._forget_gauges(process.pid)
            if not self._stopping.wait(RESTART_SECONDS):
                self._start(listener)

    def _forget_gauges(self, pid: int | None) -> None:
        """Remove a dead worker's live gauges; its counters stay in the sum."""
        for file in self._settings.metrics.glob(f"gauge_live*_{pid}.db"):
            file.unlink(missing_ok=True)

    def _drain(self, listener: socket.socket) -> None:
        """Have every connection end with a complete answer, then let nobody new in; the listener stays open meanwhile."""
        for _, connection in self._workers.values():
            with contextlib.suppress(OSError):
                connection.send(DRAIN)
        self._hurry.wait(self._settings.drain_seconds)
        admit_nobody(listener)
        time.sleep(SETTLE_SECONDS)

    def _end_workers(self) -> None:
        """Closing a worker's pipe asks it to finish its requests and end; whoever overstays the grace period is killed."""
        for _, connection in self._workers.values():
            connection.close()
        end = time.monotonic() + self._settings.grace_seconds + 2
        for process, _ in self._workers.values():
            process.join(max(0.0, end - time.monotonic()))
            if process.is_alive():
                log.error("worker %s overstayed the grace period of %d s", process.pid, self._settings.grace_seconds)
                process.kill()
                process.join()
        self._workers.clear()

    def _ship(self, metrics: Metrics) -> None:
        """Ship until told to stop, then once more: by then the workers have ended and their segments are whole."""
        store = self._open_store()
        shipper = self._open_shipper(store)
        failing = False
        while True:
            last = self._stopping.is_set() and not self._workers
            try:
                report = shipper.ship()
                metrics.rows_shipped.inc(report.rows)
                metrics.lines_skipped.inc(report.skipped_lines)
                failing = False
            except LedgerError as error:
                metrics.shipping_errors.inc()
                if not failing:
                    log.error("shipping failed, the spool keeps the records until it succeeds: %s", error)
                failing = True
            with contextlib.suppress(SpoolError):
                lag = shipper.lag()
                metrics.lag_bytes.set(lag.bytes)
                metrics.lag_seconds.set(lag.seconds)
            if last:
                break
            if self._stopping.wait(SHIP_SECONDS):
                time.sleep(POLL_SECONDS)
        store.close()
