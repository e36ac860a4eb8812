"""One serving process: the graph's nodes, the HTTP server, and its own spool segment.

Invariant: it ends when its supervisor does, after the requests under way were answered and recorded.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Iterator
from multiprocessing.connection import Connection

import uvicorn
from prometheus_client import CollectorRegistry

from ledger.spool import Spool
from router.errors import InvalidEpoch
from router.sources import EpochFile
from serving.app import App
from serving.graph import load_deployment
from serving.metrics import Metrics
from serving.service import Service
from serving.settings import Settings

log = logging.getLogger("contender.worker")

READY = "ready"


def run_worker(settings: Settings, listener: socket.socket, supervisor: Connection) -> None:
    """Serve on the shared listener until the supervisor closes its end of the pipe."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    metrics = Metrics(CollectorRegistry())
    spool = Spool(
        settings.spool, fsync=settings.fsync, max_bytes=settings.spool_max_bytes, segment_bytes=settings.spool_segment_bytes
    )

    def refused(error: InvalidEpoch) -> None:
        metrics.refused.labels("epoch").inc()
        log.error("an epoch is refused, the last good one stays: %s", error)

    service = Service(load_deployment(settings.graph), settings, record=spool.append, metrics=metrics)
    epochs = EpochFile(settings.epoch_file, accept=service.arms.accept, refused=refused)
    service.follow(epochs)
    app = App(
        service.engine,
        json_only=True,
        max_body_bytes=settings.max_body_bytes,
        prometheus=metrics.render,
        observer=metrics,
    )
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        log_level="warning",
        timeout_graceful_shutdown=settings.grace_seconds,
        timeout_keep_alive=75,
        server_header=False,
    )
    server = _Server(config, service, settings.refresh_seconds, supervisor)
    try:
        server.run(sockets=[listener])
    finally:
        spool.close()


class _Server(uvicorn.Server):
    """uvicorn's server, which also follows epochs and rules, and ends when the supervisor's pipe closes."""

    def __init__(self, config: uvicorn.Config, service: Service, refresh_seconds: float, supervisor: Connection) -> None:
        super().__init__(config)
        self._service = service
        self._refresh_seconds = refresh_seconds
        self._supervisor = supervisor
        self._following: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Drain on a signal, as uvicorn does, but end with code 0 instead of dying of the signal afterwards."""
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._leave)
        yield

    def _leave(self) -> None:
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        asyncio.get_running_loop().add_reader(self._supervisor.fileno(), self._supervisor_left)
        self._following = asyncio.create_task(self._follow())
        self._supervisor.send(READY)

    def _supervisor_left(self) -> None:
        asyncio.get_running_loop().remove_reader(self._supervisor.fileno())
        self._leave()

    async def _follow(self) -> None:
        while not self.should_exit:
            self._service.refresh()
            await asyncio.sleep(self._refresh_seconds)
