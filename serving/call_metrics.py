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
from serving.distribution import Distribution, Histograms, Times
from serving.stock_series import StockLabels

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
MULTIPROCESS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"


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
        self._node_times: dict[tuple[str, str, int], Times] = {}
        self._requests: dict[tuple[str, int], tuple[Callable[[float], None], Times]] = {}

    def _distribution(self, name: str, documentation: str, labels: Sequence[str]) -> Distribution:
        made = Distribution(name, documentation, labels, self._registry)
        self._distributions.append(made)
        return made

    def serves(self, labels: StockLabels) -> None:
        """Expose the stock executor's series too, under these labels."""
        self._stock = labels

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count one HTTP request. `route` is one of the served routes, or "other"."""
        count, times = self._requests.get((route, status)) or self._resolve_request(route, status)
        count(1)
        times.observe(seconds)

    def node(self, node: str, method: str, status: int, seconds: float) -> None:
        """Count one call of a node; `status` is 200 or what it failed with."""
        times = self._node_times.get((node, method, status)) or self._resolve_node(node, method, status)
        times.observe(seconds)
        if status != 200:
            self.node_errors.labels(node, method).inc()

    def flush(self) -> None:
        """Add to the exposed figures what is kept aside for speed. To be called now and then: others' scrapes need it."""
        for times in (*(times for _, times in self._requests.values()), *self._node_times.values()):
            times.flush()
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

    def _resolve_request(self, route: str, status: int) -> tuple[Callable[[float], None], Times]:
        shown = [self.request_seconds.child((route,), SECONDS)]
        stock = None if self._stock is None else self._stock.server(route, status)
        if stock is not None:
            shown.append(self.stock_server.child(stock, stock_series.BUCKETS))
        found = self._requests[route, status] = self.requests.labels(route, str(status)).inc, Times(shown)
        return found

    def _resolve_node(self, node: str, method: str, status: int) -> Times:
        shown = [self.node_seconds.child((node, method), SECONDS)]
        if self._stock is not None:
            shown.append(self.stock_client.child(self._stock.client(node, method, status), stock_series.BUCKETS))
        self.node_errors.labels(node, method)
        times = self._node_times[node, method, status] = Times(shown)
        return times
