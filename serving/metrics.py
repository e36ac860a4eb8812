"""What Prometheus is told. Every series is declared here once, with its labels, and its children are resolved before traffic.

Invariant: label values are bounded: arms, reasons and nodes of one graph, status codes; never a value that a client chose.
"""

from __future__ import annotations

import os
from collections import Counter as Tally
from collections.abc import Callable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.multiprocess import MultiProcessCollector

from router.assignment import BUCKETS
from router.breaker import CLOSED, HALF_OPEN, OPEN
from router.epoch import CHAMPION, Epoch

if TYPE_CHECKING:
    from ledger.records import ExposureBatch

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
BREAKER_STATES = (CLOSED, HALF_OPEN, OPEN)
MULTIPROCESS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"


class Metrics:
    """The series of one process. With several workers each writes its own file, and any of them renders the sum."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self.requests = Counter(
            "contender_requests", "HTTP requests answered, by route and status code.", ["route", "code"], registry=registry
        )
        self.request_seconds = Histogram(
            "contender_request_seconds", "Time to answer a request.", ["route"], buckets=SECONDS, registry=registry
        )
        self.node_seconds = Histogram(
            "contender_node_seconds", "Time of one call of a node.", ["node", "method"], buckets=SECONDS, registry=registry
        )
        self.node_errors = Counter(
            "contender_node_errors", "Calls of a node that failed.", ["node", "method"], registry=registry
        )
        self.rows_answered = Counter(
            "contender_rows",
            "Rows answered and recorded, by the arm assigned, the arm that served, and the reason.",
            ["assigned", "served", "reason"],
            registry=registry,
        )
        self.rows_unrecorded = Counter(
            "contender_unrecorded_rows", "Rows the champion answered while the spool took nothing.", registry=registry
        )
        self.epoch = Gauge(
            "contender_epoch",
            "Number of the epoch in use; over workers the lowest. 0: none.",
            ["test"],
            multiprocess_mode="livemin",
            registry=registry,
        )
        self.share = Gauge(
            "contender_share_ratio",
            "Declared share of the customers of each arm, 0 to 1; over workers the latest.",
            ["test", "arm"],
            multiprocess_mode="livemostrecent",
            registry=registry,
        )
        self.refused = Counter(
            "contender_refused", "Epoch records and rules files refused; the last good one stays.", ["what"], registry=registry
        )
        self.breaker_state = Gauge(
            "contender_breaker_state",
            "Breaker before each challenger: 0 closed, 1 half-open, 2 open; over workers the worst.",
            ["arm"],
            multiprocess_mode="livemax",
            registry=registry,
        )
        self.spool_bytes = Gauge(
            "contender_spool_bytes", "Bytes in the spool's segments.", multiprocess_mode="livemax", registry=registry
        )
        self.lag_bytes = Gauge(
            "contender_ledger_lag_bytes", "Bytes not shipped to the store.", multiprocess_mode="livemax", registry=registry
        )
        self.lag_seconds = Gauge(
            "contender_ledger_lag_seconds",
            "Age of the oldest record not shipped to the store.",
            multiprocess_mode="livemax",
            registry=registry,
        )
        self.rows_shipped = Counter("contender_ledger_rows", "Rows shipped to the store.", registry=registry)
        self.lines_skipped = Counter(
            "contender_ledger_skipped_lines", "Spool lines that could not be read, such as a torn last one.", registry=registry
        )
        self.shipping_errors = Counter(
            "contender_ledger_errors", "Shipping passes that failed; they are tried again.", registry=registry
        )
        self._breakers: dict[str, str] = {}
        self._row_children: dict[tuple[str, str, str], Callable[[float], None]] = {}
        self._node_children: dict[tuple[str, str], tuple[Callable[[float], None], Callable[[float], None]]] = {}
        self._request_children: dict[tuple[str, int], tuple[Callable[[float], None], Callable[[float], None]]] = {}

    def rows(self, batch: ExposureBatch) -> None:
        """Count the rows of one answered request."""
        assigned, served, reasons = batch.assigned, batch.served, batch.reasons
        if len(served) == 1:
            self._row((assigned[0], served[0], reasons[0]))(1)
            return
        for key, count in Tally(zip(assigned, served, reasons, strict=True)).items():
            self._row(key)(count)

    def unrecorded(self, rows: int) -> None:
        """Count rows that the champion answered while nothing could be recorded."""
        self.rows_unrecorded.inc(rows)

    def _row(self, key: tuple[str, str, str]) -> Callable[[float], None]:
        child = self._row_children.get(key)
        if child is None:
            child = self._row_children[key] = self.rows_answered.labels(*key).inc
        return child

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count one HTTP request. `route` is one of the served routes, or "other"."""
        key = route, status
        children = self._request_children.get(key)
        if children is None:
            children = self.requests.labels(route, str(status)).inc, self.request_seconds.labels(route).observe
            self._request_children[key] = children
        children[0](1)
        children[1](seconds)

    def node(self, node: str, method: str, status: int, seconds: float) -> None:
        """Count one call of a node; `status` is 200 or what it failed with."""
        key = node, method
        children = self._node_children.get(key)
        if children is None:
            children = self.node_seconds.labels(*key).observe, self.node_errors.labels(*key).inc
            self._node_children[key] = children
        children[0](seconds)
        if status != 200:
            children[1](1)

    def breaker(self, arm: str, state: str) -> None:
        """Show the state of a challenger's breaker."""
        if self._breakers.get(arm) != state:
            self._breakers[arm] = state
            self.breaker_state.labels(arm).set(BREAKER_STATES.index(state))

    def epoch_in_use(self, epoch: Epoch) -> None:
        """Show the epoch and its shares."""
        self.epoch.labels(epoch.test).set(epoch.epoch)
        for arm in (CHAMPION, *epoch.arms):
            self.share.labels(epoch.test, arm).set(epoch.share(arm) / BUCKETS)

    def render(self) -> tuple[bytes, str]:
        """Return the exposition text and its content type, summed over the workers where there are several."""
        registry = self._registry
        if MULTIPROCESS_VARIABLE in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry), CONTENT_TYPE_PLAIN_0_0_4
