"""The parent process of `contender serve`: it starts the workers, follows the epoch, and ships the spool to the store.

Invariant: it alone writes the epoch file and deletes segments; requests never wait for it, and it never answers one.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import queue
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
from ledger.records import EpochRecord
from ledger.spool import Spool
from router.epoch import Epoch
from router.errors import InvalidEpoch
from router.sources import EpochKeeper
from serving.following import ExperimentSource, LedgerSource, Source
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
        self._accepted: queue.SimpleQueue[Epoch] = queue.SimpleQueue()
        self._spawn = multiprocessing.get_context("spawn")

    def run(self) -> None:
        """Serve. Raises OSError if the address is taken, WorkerFailedError if a worker can't start."""
        settings = self._settings
        metrics = self._new_metrics()
        metrics.spool_limit.set(settings.spool_max_bytes)
        keeper, source = self._follow(metrics)
        listener = listen(settings.host, settings.port)
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._stop)
        shipping = threading.Thread(target=self._ship, args=(metrics, keeper), name="shipper")
        try:
            for _ in range(settings.workers):
                self._start(listener)
            self._await_ready()
            shipping.start()
            self._ready()
            while not self._stopping.is_set():
                self._replace_dead(listener, metrics)
                source.look()
            self._drain(listener)
        finally:
            self._stopping.set()
            listener.close()
            self._end_workers()
            if shipping.ident is not None:
                shipping.join()
            source.close()

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        (self._hurry if self._stopping.is_set() else self._stopping).set()

    def _follow(self, metrics: Metrics) -> tuple[EpochKeeper, Source]:
        """Begin to follow the Experiment, or the ledger where none is named. Raises StoreUnavailable for the latter."""
        settings = self._settings

        def refused(error: InvalidEpoch) -> None:
            metrics.refused.labels("epoch").inc()
            log.error("an epoch is refused, the last good one stays: %s", error)

        if settings.experiment_resource:
            keeper = EpochKeeper(settings.epoch_file, settings.test, accepted=self._accepted.put, refused=refused)
            return keeper, ExperimentSource(settings.experiment_resource, keeper, refused)
        keeper = EpochKeeper(settings.epoch_file, settings.test, refused=refused)
        return keeper, LedgerSource(self._open_store(), settings.test, keeper, refused)

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

    def _replace_dead(self, listener: socket.socket, metrics: Metrics) -> None:
        for sentinel in wait(list(self._workers), timeout=POLL_SECONDS):
            assert isinstance(sentinel, int)  # noqa: S101
            process, connection = self._workers.pop(sentinel)
            connection.close()
            process.join()
            if self._stopping.is_set():
                continue
            log.error("worker %s ended with exit code %s; a new one starts", process.pid, process.exitcode)
            metrics.worker_restarts.inc()
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

    def _ship(self, metrics: Metrics, keeper: EpochKeeper) -> None:
        """Ship until told to stop, then once more: by then the workers have ended and their segments are whole."""
        store: Store | None = None
        shipper: Shipper | None = None
        epochs = EpochSpool(self._open_spool, self._accepted)
        compared = failing = False
        while True:
            last = self._stopping.is_set() and not self._workers
            epochs.write()
            try:
                if store is None or shipper is None:
                    store = store or self._open_store()
                    shipper = self._open_shipper(store)
                if not compared:
                    self._compare(keeper, store)
                    compared = True
                report = shipper.ship()
                metrics.rows_shipped.inc(report.rows)
                metrics.lines_skipped.inc(report.skipped_lines)
                failing = False
            except LedgerError as error:
                metrics.shipping_errors.inc()
                if not failing:
                    log.error("shipping failed, the spool keeps the records until it succeeds: %s", error)
                failing = True
            if shipper is not None:
                with contextlib.suppress(SpoolError):
                    lag = shipper.lag()
                    metrics.lag_bytes.set(lag.bytes)
                    metrics.lag_seconds.set(lag.seconds)
            if last:
                break
            if self._stopping.wait(SHIP_SECONDS):
                time.sleep(POLL_SECONDS)
        if store is not None:
            store.close()

    def _open_spool(self) -> Spool:
        settings = self._settings
        return Spool(
            settings.spool, fsync=settings.fsync, max_bytes=settings.spool_max_bytes, segment_bytes=settings.segment_bytes
        )

    def _compare(self, keeper: EpochKeeper, store: Store) -> None:
        """Hold what the Experiment shows against what the ledger knows of this test, which may be older than the Experiment."""
        if not self._settings.experiment_resource:
            return
        document = store.current_epoch(self._settings.test)
        if document is not None:
            with contextlib.suppress(InvalidEpoch):
                keeper.at_least(Epoch.from_json(document))


class EpochSpool:
    """The accepted epochs' way to the ledger: one line each, in a segment that is left to the shipper at once."""

    def __init__(self, open_spool: Callable[[], Spool], accepted: queue.SimpleQueue[Epoch]) -> None:
        """`open_spool` is called when there is something to write; it raises SpoolError where no segment can be made."""
        self._open_spool = open_spool
        self._accepted = accepted
        self._spool: Spool | None = None
        self._waiting: list[Epoch] = []
        self._failing = False

    def write(self) -> None:
        """Spool what was accepted; what the spool doesn't take now is tried again by the next call."""
        while not self._accepted.empty():
            self._waiting.append(self._accepted.get())
        if not self._waiting:
            return
        try:
            self._append()
            self._failing = False
        except SpoolError as error:
            if not self._failing:
                log.error("epoch %d is in use and not in the spool yet: %s", self._waiting[0].epoch, error)
            self._failing = True

    def _append(self) -> None:
        if self._spool is None:
            self._spool = self._open_spool()
        while self._waiting:
            epoch = self._waiting[0]
            record = EpochRecord(
                test=epoch.test,
                epoch=epoch.epoch,
                actor=epoch.actor,
                reason=epoch.reason,
                at=epoch.at,
                document=epoch.to_json().decode(),
            )
            self._spool.append(record.encode())
            del self._waiting[0]
        self._spool.close()
