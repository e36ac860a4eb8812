"""What Prometheus is told of requests and of calls of nodes: the series that every engine has, whatever its graph.

Invariant: label values are bounded: routes that are served, nodes of one graph, status codes; never a value a client chose.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.multiprocess import MultiProcessCollector

from serving import stock_series
from serving.distribution import Distribution, Histograms
from serving.stock_series import StockLabels

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
MULTIPROCESS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"

Observe = Callable[[float], None]


class CallMetrics:
    """The series of one process. With several workers each writes its own file, and any of them renders the sum."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._distributions: list[Distribution] = []
        self.requests = Counter(
            "contender_requests", "HTTP requests answered, by route and status code.", ["route", "code"], registry=registry
        )
        self.node_errors = Counter(
            "contender_node_errors", "Calls of a node that failed.", ["node", "method"], registry=registry
        )
        self.request_seconds = self._distribution("contender_request_seconds", "Time to answer a request.", ["route"])
        self.node_seconds = self._distribution("contender_node_seconds", "Time of one call of a node.", ["node", "method"])
        self.stock_server = self._distribution(
            stock_series.SERVER, "Time to answer a request, as Seldon's executor names it.", stock_series.SERVER_LABELS
        )
        self.stock_client = self._distribution(
            stock_series.CLIENT, "Time of one call of a node, as Seldon's executor names it.", stock_series.CLIENT_LABELS
        )
        self._stock: StockLabels | None = None
        self._node_children: dict[tuple[str, str, int], list[Observe]] = {}
        self._request_children: dict[tuple[str, int], tuple[Callable[[float], None], list[Observe]]] = {}

    def _distribution(self, name: str, documentation: str, labels: Sequence[str]) -> Distribution:
        made = Distribution(name, documentation, labels, self._registry)
        self._distributions.append(made)
        return made

    def serves(self, labels: StockLabels) -> None:
        """Expose the stock executor's series too, under these labels."""
        self._stock = labels

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count one HTTP request. `route` is one of the served routes, or "other"."""
        count, observers = self._request_children.get((route, status)) or self._resolve_request(route, status)
        count(1)
        for observe in observers:
            observe(seconds)

    def node(self, node: str, method: str, status: int, seconds: float) -> None:
        """Count one call of a node; `status` is 200 or what it failed with."""
        for observe in self._node_children.get((node, method, status)) or self._resolve_node(node, method, status):
            observe(seconds)
        if status != 200:
            self.node_errors.labels(node, method).inc()

    def flush(self) -> None:
        """Add to the exposed figures what is kept aside for speed. To be called now and then: others' scrapes need it."""
        for distribution in self._distributions:
            distribution.flush()

    def render(self) -> tuple[bytes, str]:
        """Return the exposition text and its content type, summed over the workers where there are several."""
        self.flush()
        several = MULTIPROCESS_VARIABLE in os.environ
        source = MultiProcessCollector(None) if several else self._registry  # type: ignore[no-untyped-call]
        exposed = CollectorRegistry()
        exposed.register(Histograms(source, [each.name for each in self._distributions]))
        return generate_latest(exposed), CONTENT_TYPE_PLAIN_0_0_4

    def _resolve_request(self, route: str, status: int) -> tuple[Callable[[float], None], list[Observe]]:
        observers: list[Observe] = [self.request_seconds.child((route,), SECONDS).observe]
        stock = None if self._stock is None else self._stock.server(route, status)
        if stock is not None:
            observers.append(self.stock_server.child(stock, stock_series.BUCKETS).observe)
        children = self._request_children[route, status] = self.requests.labels(route, str(status)).inc, observers
        return children

    def _resolve_node(self, node: str, method: str, status: int) -> list[Observe]:
        children: list[Observe] = [self.node_seconds.child((node, method), SECONDS).observe]
        if self._stock is not None:
            labels = self._stock.client(node, method, status)
            children.append(self.stock_client.child(labels, stock_series.BUCKETS).observe)
        self.node_errors.labels(node, method)
        self._node_children[node, method, status] = children
        return children
