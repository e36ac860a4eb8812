"""The engine in this process, as a worker of `contender serve` builds it, and requests handed to it without HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.load import PATH
from bench.variants import GRAPH, ROOT
from ledger.spool import Spool

WARM = 50


class Engine:
    """One application and what it writes to. `post` answers one request and raises AssertionError unless it is a 200."""

    def __init__(self, app: Any, spool: Spool) -> None:
        self.app = app
        self.spool = spool

    async def post(self, body: bytes) -> bytes:
        scope = {
            "type": "http",
            "method": "POST",
            "path": PATH,
            "headers": [(b"content-type", b"application/json")],
            "query_string": b"",
        }
        message = {"type": "http.request", "body": body, "more_body": False}
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return message

        async def send(part: Any) -> None:
            sent.append(part)

        await self.app(scope, receive, send)
        answer: bytes = sent[1]["body"]
        assert sent[0]["status"] == 200, answer
        return answer

    def seconds(
        self, bodies: Sequence[bytes], repeats: int, *, warm: int = WARM, before: Callable[[], None] = lambda: None
    ) -> float:
        """Return the least mean time of a request over `repeats` passes through the bodies.

        `before` is called after `warm` requests that don't count.
        """

        async def run() -> float:
            for place in range(warm):
                await self.post(bodies[place % len(bodies)])
            before()
            best = float("inf")
            for _ in range(repeats):
                started = time.perf_counter()
                for body in bodies:
                    await self.post(body)
                best = min(best, (time.perf_counter() - started) / len(bodies))
            return best

        return asyncio.run(run())


@contextmanager
def engine(folder: Path) -> Iterator[Engine]:
    """Build the shipped graph's engine with an epoch, a spool and metrics in files, as `contender serve` does."""
    # prometheus-client reads the variable when it is first imported.
    metrics_folder = folder / "metrics"
    metrics_folder.mkdir()
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(metrics_folder)
    from prometheus_client import CollectorRegistry

    from console.home import Home
    from console.serve import declaration_for, prepare
    from router.sources import EpochFile, write_epoch_file
    from serving.app import App
    from serving.graph import load_deployment
    from serving.metrics import Metrics
    from serving.recorder import Recorder
    from serving.service import Service
    from serving.settings import Settings

    logging.getLogger().setLevel(logging.WARNING)
    with contextlib.chdir(ROOT):
        deployment = load_deployment(GRAPH)
        declared = declaration_for(GRAPH, deployment, None)
        home = Home(folder)
        epoch = prepare(home, deployment, declared)
        settings = Settings(deployment=deployment, home=folder, test=declared.test)
        write_epoch_file(settings.epoch_file, epoch)
        metrics = Metrics(CollectorRegistry())
        spool = Spool(settings.spool)
        service = Service(deployment, settings, recorder=Recorder(spool.append, settings.test), metrics=metrics)
        service.follow(EpochFile(settings.epoch_file, accept=service.arms.accept))
        app = App(
            service.engine,
            json_only=True,
            max_body_bytes=settings.max_body_bytes,
            prometheus=metrics.render,
            observer=metrics,
            deployment=deployment.name,
        )
        gc.collect()
        gc.freeze()
        try:
            yield Engine(app, spool)
        finally:
            gc.unfreeze()
            service.close()
            spool.close()
