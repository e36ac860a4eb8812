"""One serving process: the graph's nodes, the HTTP server, and its own spool segment.

Invariant: it ends when its supervisor does, after the requests under way were answered and recorded.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

from prometheus_client import CollectorRegistry

from ledger.spool import Spool
from router.errors import InvalidEpoch, InvalidSecret
from router.sources import EpochFile
from serving.app import App
from serving.bundle import BundleError
from serving.campaigns import CampaignsError
from serving.errors import ServingError
from serving.metrics import Metrics
from serving.recorder import Recorder
from serving.server import Server
from serving.service import Service
from serving.settings import Settings

log = logging.getLogger("contender.worker")

FIRST_EPOCH_SECONDS = 5.0
"""How long a worker that follows an Experiment isn't ready for want of an epoch. Then it serves as the champion alone: an API
server that is away must not keep pods from starting."""

COLLECT_AFTER = 20_000
"""New objects after which cycles are looked for. A request makes a few thousand and leaves none behind in a cycle; Python's
own 700 would have a large one looked through while it is answered."""

READY = "ready"
DRAIN = "drain"


def run_worker(settings: Settings, listener: socket.socket, supervisor: Connection) -> None:
    """Serve on the shared listener until the supervisor closes its end of the pipe."""
    # A signal to the whole process group, such as Ctrl-C, is the supervisor's: it drains before it closes the pipe.
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    metrics = Metrics(CollectorRegistry())
    spool = Spool(
        settings.spool, fsync=settings.fsync, max_bytes=settings.spool_max_bytes, segment_bytes=settings.segment_bytes
    )

    def refused(error: InvalidEpoch) -> None:
        metrics.refused.labels("epoch").inc()
        log.error("an epoch is refused, the last good one stays: %s", error)

    deployment = settings.deployment
    recorder = Recorder(spool.append, settings.test, hand_over=spool.close)
    try:
        secret = settings.key_secret()
        service = Service(deployment, settings, recorder=recorder, metrics=metrics, secret=secret)
    except (ServingError, BundleError, CampaignsError, InvalidSecret) as error:
        log.error("%s", error)
        raise SystemExit(1) from None
    epochs = EpochFile(
        settings.epoch_file,
        secret=secret,
        stale_after=settings.stale_after_seconds,
        accept=service.arms.accept,
        refused=refused,
    )
    follows = bool(settings.experiment_resource) and deployment.graph.splits
    if follows:
        metrics.no_epoch(settings.test)
    patience = time.monotonic() + (FIRST_EPOCH_SECONDS if follows else 0.0)
    service.follow(epochs)
    app = App(
        service.engine,
        json_only=True,
        max_body_bytes=settings.max_body_bytes,
        prometheus=metrics.render,
        prometheus_path=settings.prometheus_path,
        observer=metrics,
        ready_hooks=[
            lambda: not server.leaving,
            lambda: epochs.current is not None or time.monotonic() >= patience,
        ],
        deployment=deployment.name,
        namespace=deployment.namespace,
        predictor=deployment.predictors[0].name,
    )
    server = _Worker(app, service, settings, supervisor, watch=lambda: metrics.spool_bytes.set(spool.size))
    # What is here now stays: later looks for cycles pass it over.
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, *gc.get_threshold()[1:])
    try:
        server.run(sockets=[listener])
    finally:
        service.close()
        recorder.close()
        spool.close()


class _Worker(Server):
    """The server, which also follows epochs and rules, drains when the supervisor says so, and leaves when its pipe closes."""

    def __init__(
        self, app: App, service: Service, settings: Settings, supervisor: Connection, *, watch: Callable[[], None]
    ) -> None:
        """`watch` is called whenever epochs and rules are looked at."""
        super().__init__(app, grace_seconds=settings.grace_seconds)
        self._service = service
        self._refresh_seconds = settings.refresh_seconds
        self._supervisor = supervisor
        self._watch = watch
        self._following: tuple[asyncio.Task[None], ...] = ()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        asyncio.get_running_loop().add_reader(self._supervisor.fileno(), self._told)
        await self._service.identify()
        self._following = asyncio.create_task(self._follow()), asyncio.create_task(self._identify())
        self._supervisor.send(READY)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def _told(self) -> None:
        try:
            self._supervisor.recv()
            self.announce()
        except (EOFError, OSError):
            asyncio.get_running_loop().remove_reader(self._supervisor.fileno())
            self.leave()

    async def _follow(self) -> None:
        while not self.should_exit:
            self._service.refresh()
            self._watch()
            await asyncio.sleep(self._refresh_seconds)

    async def _identify(self) -> None:
        while not self.should_exit:
            await self._service.identify()
            await asyncio.sleep(self._refresh_seconds)
