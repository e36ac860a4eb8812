"""A deployment brought to life in one process: its classes loaded, its engine built, its router given epochs and a spool.

Invariant: everything that can be wrong with a graph, a bundle or a rules file is found here, before the first request.
"""

from __future__ import annotations

import logging
from typing import Protocol

from router.split import Splitter
from serving.arms import Arms, Challengers
from serving.components import Campaigns, Model
from serving.engine import Engine
from serving.errors import GraphError
from serving.graph import Deployment, GraphNode
from serving.local_node import LocalNode, component_class
from serving.metrics import Metrics
from serving.recorder import Recorder
from serving.row_router import RowRouter
from serving.settings import Settings
from serving.table import Table

log = logging.getLogger("contender.service")


class EpochSource(Protocol):
    """An epoch that may change: `refresh` looks again and tells whether it did."""

    @property
    def current(self) -> Splitter | None: ...

    def refresh(self) -> bool: ...


class NoEpochs:
    """The source of a graph without Contender's router, and of a service that follows nobody yet."""

    current: Splitter | None = None

    def refresh(self) -> bool:
        return False


class Service:
    """The engine of one deployment with every node in this process.

    Raises GraphError, BundleError or CampaignsError if the deployment can't be served.
    """

    def __init__(self, deployment: Deployment, settings: Settings, *, recorder: Recorder, metrics: Metrics) -> None:
        self._metrics = metrics
        self._epochs: EpochSource = NoEpochs()
        self._rules: list[Campaigns] = []
        self._models: dict[str, Model] = {}
        root = deployment.graph
        nodes = {node.key: self._node(deployment, node) for node in root.walk() if not node.is_contender_router}
        routers = [node for node in root.walk() if node.is_contender_router]
        if len(routers) > 1:
            raise GraphError(f"{deployment.name}: {len(routers)} routers with contender=v1; one test at a time is supported")
        self.arms = Arms([], {})
        splits = {}
        if routers:
            router = routers[0]
            names = [child.name for child in router.children]
            self.arms = Arms(names, {name: self._models[name].digest for name in names if name in self._models})
            champion = self._models.get(names[0])
            splits[router.name] = RowRouter(
                name=router.name,
                test=settings.test,
                key="device_id" if champion is None else champion.bundle.key,
                arms=self.arms,
                epochs=self,
                recorder=recorder,
                challengers=Challengers(metrics, budget_s=settings.challenger_budget_seconds),
                check=(lambda table: None) if champion is None else champion.check,
                observer=metrics,
                key_header=settings.key_header,
                max_rows=settings.max_rows,
                keep_inputs=settings.keep_inputs,
            )
        self.engine = Engine(root, nodes, splits)

    @property
    def current(self) -> Splitter | None:
        """Return the epoch in use, for the router."""
        return self._epochs.current

    def follow(self, epochs: EpochSource) -> None:
        """Take epochs from this source from now on."""
        self._epochs = epochs
        self.refresh()

    def refresh(self) -> None:
        """Look for a new epoch and new rules. Called between requests, so that a request sees one of each."""
        if self._epochs.refresh() and self._epochs.current is not None:
            self._metrics.epoch_in_use(self._epochs.current.epoch)
        splitter = self._epochs.current
        for node in self._rules:
            told = node.rules.refused
            if node.rules.refresh(None if splitter is None else splitter.epoch.decision):
                log.info("the campaign rules were read anew")
            elif node.rules.refused not in (None, told):
                self._metrics.refused.labels("rules").inc()
                log.error("the campaign rules are refused, the old ones stay: %s", node.rules.refused)

    def warm(self, table: Table) -> None:
        """Score a table once, so that the first client doesn't wait for what is loaded late."""
        for model in self._models.values():
            model.answer(table)

    def _node(self, deployment: Deployment, node: GraphNode) -> LocalNode:
        path = deployment.environment(node.name).get("MODEL_NAME")
        if path is None:
            raise GraphError(f"{node.name}: its container has no MODEL_NAME, so there is no class to run in this process")
        component = component_class(path)(**node.parameter_values)
        tags = None
        if isinstance(component, Model):
            self._models[node.name] = component
            tags = {"digest": component.digest}
        if isinstance(component, Campaigns):
            self._rules.append(component)
        return LocalNode(node.name, component, self._metrics, tags)
