"""A deployment brought to life: its classes loaded, its engine built, its router given epochs and a spool.

A node with an endpoint runs behind HTTP, every other one in this process. Invariant: everything that can be wrong here with a
graph, a bundle or a rules file is found before the first request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from router.pseudonyms import pseudonyms
from router.split import Splitter
from serving import metadata
from serving.arms import Arms, Challengers
from serving.batched_node import BatchedNode
from serving.bundle import MANIFEST, Manifest, load_manifest
from serving.components import Campaigns, Model
from serving.engine import Engine
from serving.errors import GraphError, NodeUnreachable, ServingError
from serving.graph import RANDOM_ABTEST, Deployment, GraphNode
from serving.http_client import HttpClient
from serving.http_node import PROBE_SECONDS, HttpNode
from serving.local_node import LocalNode, component_class
from serving.metrics import Metrics
from serving.nodes import Call, Node
from serving.recorder import Recorder
from serving.row_router import RowRouter
from serving.seldon_node import SeldonNode
from serving.settings import Settings
from serving.shadow import Shadow
from serving.signature import Signature
from serving.stock_series import StockLabels
from serving.table import Table

log = logging.getLogger("contender.service")

PLATFORM = "contender"
"""What the metadata of our own model units calls their platform; the first of its versions is the bundle's digest."""


class EpochSource(Protocol):
    """An epoch that may change: `refresh` looks again and tells whether it did."""

    @property
    def current(self) -> Splitter | None: ...

    @property
    def age(self) -> float: ...

    def refresh(self) -> bool: ...


class NoEpochs:
    """The source of a graph without Contender's router, and of a service that follows nobody yet."""

    current: Splitter | None = None
    age = 0.0

    def refresh(self) -> bool:
        return False


class Service:
    """The engine of a deployment's first predictor.

    Raises GraphError, BundleError or CampaignsError if the deployment can't be served.
    """

    def __init__(
        self, deployment: Deployment, settings: Settings, *, recorder: Recorder, metrics: Metrics, secret: bytes = b""
    ) -> None:
        """`secret` hides the customer keys that are recorded; empty, they are recorded as they are."""
        self._deployment = deployment
        self._settings = settings
        self._pseudonym = pseudonyms(secret) if secret else None
        self._metrics = metrics
        self._epochs: EpochSource = NoEpochs()
        self._rules: list[Campaigns] = []
        self._models: dict[str, Model] = {}
        self._client = HttpClient(settings.node_timeout_seconds or None)
        root = deployment.graph
        units = [unit for unit in root.walk() if not unit.is_contender_router and unit.implementation != RANDOM_ABTEST]
        self._nodes = {unit.key: self._node(unit) for unit in units}
        manifests = {unit.name: manifest for unit in units if (manifest := self._manifest(unit)) is not None}
        routers = [unit for unit in root.walk() if unit.is_contender_router]
        if len(routers) > 1:
            raise GraphError(f"{deployment.name}: {len(routers)} routers with contender=v1; one test at a time is supported")
        self.arms = Arms([], {})
        splits = {}
        if routers:
            router = routers[0]
            names = [child.name for child in router.children]
            digests = {name: self._models[name].digest for name in names if name in self._models}
            self.arms = Arms(names, digests, [child.name for child in router.children if child.is_remote])
            splits[router.name] = self._row_router(router, manifests.get(names[0]), recorder)
        children = [child for router in routers for child in router.children]
        self._unidentified = {i: self._nodes[child.key] for i, child in enumerate(children) if child.is_remote}
        self.engine = Engine(root, self._nodes, splits)
        metrics.serves(StockLabels(deployment.name, deployment.predictors[0]))
        metrics.watch_scores(head for manifest in manifests.values() for head in manifest.heads)
        self._count_campaigns()

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
        before = self._epochs.current
        changed = self._epochs.refresh()
        splitter = self._epochs.current
        if splitter is not None:
            if changed:
                self._metrics.epoch_in_use(splitter.epoch)
            self._metrics.epoch_age_is(splitter.epoch.test, self._epochs.age)
            if splitter.stale != (before is not None and before.stale):
                self._tell_stale(splitter)
        for node in self._rules:
            told = node.rules.refused
            if node.rules.refresh(None if splitter is None else splitter.epoch.decision):
                log.info("the campaign rules were read anew")
                self._count_campaigns()
            elif node.rules.refused not in (None, told):
                self._metrics.refused.labels("rules").inc()
                log.error("the campaign rules are refused, the old ones stay: %s", node.rules.refused)
        self._metrics.flush()

    def _tell_stale(self, splitter: Splitter) -> None:
        number, age = splitter.epoch.epoch, self._epochs.age
        if splitter.stale:
            log.error("epoch %d was last confirmed %d s ago: everybody gets the champion until it is again", number, age)
        else:
            log.info("epoch %d is confirmed again", number)

    async def identify(self) -> None:
        """Ask the router's children behind HTTP which bundle they serve, until each has answered: roles follow from digests."""
        for index, node in list(self._unidentified.items()):
            try:
                async with asyncio.timeout(PROBE_SECONDS):
                    described = metadata.read(await node.metadata(Call()), node.name)
            except (NodeUnreachable, TimeoutError):
                continue
            except ServingError as error:
                log.warning("node %s does not tell its bundle: %s", node.name, error)
                described = {}
            del self._unidentified[index]
            if described.get("platform") == PLATFORM and described.get("versions"):
                self.arms.learn(index, described["versions"][0])

    def close(self) -> None:
        """Let go of the connections to nodes."""
        self._client.close()

    def _row_router(self, router: GraphNode, manifest: Manifest | None, recorder: Recorder) -> RowRouter:
        """Return the router. The champion's bundle, where it is here, names the key and validates rows; else the units do."""
        settings, metrics = self._settings, self._metrics
        key = manifest.key if manifest is not None else str(router.parameter_values.get("key", "device_id"))
        return RowRouter(
            name=router.name,
            test=settings.test,
            key=key,
            arms=self.arms,
            epochs=self,
            recorder=recorder,
            challengers=Challengers(metrics, budget_s=settings.challenger_budget_seconds),
            check=self._check(router.children[0], manifest),
            observer=metrics,
            key_header=settings.key_header,
            max_rows=settings.max_rows,
            keep_inputs=settings.keep_inputs,
            shadow=Shadow(
                recorder.offer,
                metrics,
                key=key,
                budget_s=settings.challenger_budget_seconds,
                limit=settings.shadow_limit,
            ),
            pseudonym=self._pseudonym,
        )

    def _check(self, champion: GraphNode, manifest: Manifest | None) -> Callable[[Table], None]:
        model = self._models.get(champion.name)
        if model is not None:
            return model.check
        if manifest is None:
            return lambda table: None
        key, signature = manifest.key, Signature(manifest.inputs)

        def check(table: Table) -> None:
            (signature.parse_text if table.text else signature.encode)(table.names, table.rows, ignore=key)

        return check

    def _manifest(self, unit: GraphNode) -> Manifest | None:
        """Return the model.json of a unit's bundle: of the one that was loaded, or of the folder, if it is here."""
        model = self._models.get(unit.name)
        if model is not None:
            return model.bundle.manifest
        folder = Path(str(unit.parameter_values.get("bundle", "")))
        return load_manifest(folder) if (folder / MANIFEST).exists() else None

    def _share_signature(self, model: Model) -> None:
        """Let bundles that declare the same inputs encode a request's rows once, by one signature."""
        for other in self._models.values():
            if other.bundle.signature.inputs == model.bundle.signature.inputs:
                model.bundle.signature = other.bundle.signature

    def _count_campaigns(self) -> None:
        """Have campaigns counted by the ids of the rules in use."""
        self._metrics.campaigns_in_use(each.id for node in self._rules for each in node.rules.decider.rules.campaigns)

    def _node(self, unit: GraphNode) -> Node:
        if unit.is_remote:
            assert unit.endpoint is not None  # noqa: S101 - is_remote says so
            return HttpNode(
                unit.name,
                unit.endpoint,
                self._client,
                full_health_checks=self._settings.full_health_checks,
                observer=self._metrics,
                patience_seconds=self._settings.node_patience_seconds,
            )
        path = self._deployment.environment(unit.name).get("MODEL_NAME")
        if path is None:
            raise GraphError(
                f"{unit.name}: neither an endpoint nor a container with MODEL_NAME; so nothing to call and no class to run"
            )
        try:
            component = component_class(path)(**unit.parameter_values)
        except TypeError as error:
            raise GraphError(f"{unit.name}: {path} can't be made with {unit.parameter_values}: {error}") from None
        if not callable(getattr(component, "answer", None)):
            image = self._deployment.predictors[0].images.get(unit.name, "")
            return SeldonNode(unit.name, component, self._metrics, image=image)
        tags = None
        if isinstance(component, Model):
            self._share_signature(component)
            self._models[unit.name] = component
            tags = {"digest": component.digest}
            if component.bundle.manifest.runtime == "sklearn":
                return BatchedNode(unit.name, component, self._metrics, tags)
        if isinstance(component, Campaigns):
            self._rules.append(component)
        return LocalNode(unit.name, component, self._metrics, tags)
