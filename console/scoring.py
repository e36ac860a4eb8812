"""Scoring without a server: the same graph, epoch and rules as `contender serve`, in this process, batch by batch.

Invariant: one epoch for all that one scorer answers, and each answer comes with the record of its exposures.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import NamedTuple

from prometheus_client import CollectorRegistry

from console.home import Home
from console.serve import declaration_for, prepare
from router.epoch import Epoch
from router.split import Splitter
from serving.bundle import load_manifest
from serving.graph import Deployment, load_deployment
from serving.messages import Message
from serving.metrics import Metrics
from serving.nodes import Call
from serving.recorder import Recorder
from serving.service import Service
from serving.settings import Settings
from serving.table import Table


class _Fixed:
    """An epoch that doesn't change while a file is scored: one file, one epoch."""

    def __init__(self, epoch: Epoch, secret: bytes) -> None:
        self.current: Splitter | None = None
        self.age = 0.0
        self._splitter = Splitter(epoch, secret=secret)

    def refresh(self) -> bool:
        self.current, fresh = self._splitter, self.current is None
        return fresh


class Scored(NamedTuple):
    """The answer to a table, row by row, and the spool line of its exposures."""

    answer: Table
    exposures: bytes


class Scorer:
    """Answers tables of devices. What to do with the exposures is the caller's affair."""

    def __init__(self, graph: Path, home: Home, *, keep_inputs: bool | None = None) -> None:
        deployment = load_deployment(graph)
        declared = declaration_for(graph, deployment, None)
        self.epoch = prepare(home, deployment, declared)
        self.settings = Settings.from_environment(
            os.environ, deployment=deployment, home=home.path, test=declared.test, keep_inputs=keep_inputs
        )
        self.key = _key(deployment)
        self._lines: list[bytes] = []
        recorder = Recorder(self._lines.append, declared.test)
        secret = self.settings.key_secret()
        metrics = Metrics(CollectorRegistry())
        self._service = Service(deployment, self.settings, recorder=recorder, metrics=metrics, secret=secret)
        self._service.follow(_Fixed(self.epoch, secret))
        self._loop = asyncio.new_event_loop()

    def score(self, table: Table, *, record: bool = True) -> Scored:
        """Return the answer to each row, in order; without `record` there are no exposures. Raises BadRequest."""
        self._lines.clear()
        call = Call()
        ask = self._service.engine.predict if record else self._service.engine.walk
        message = self._loop.run_until_complete(ask(Message.of(table), call))
        # Finishers know the call that knows them: taken apart here, or batches would wait for the collector of cycles.
        call.finishers.clear()
        call.followers.clear()
        return Scored(message.table(), b"\n".join(self._lines))

    def close(self) -> None:
        self._loop.close()


def _key(deployment: Deployment) -> str:
    """Return the column of the customer key: what the champion's bundle says, else the router."""
    for node in deployment.graph.walk():
        if node.is_contender_router:
            bundle = node.children[0].parameter_values.get("bundle")
            return load_manifest(Path(str(bundle))).key if bundle else str(node.parameter_values.get("key", "device_id"))
    return "device_id"
