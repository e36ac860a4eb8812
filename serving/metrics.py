"""What Prometheus is told. Every series is declared here once, with its labels, and its children are resolved before traffic.

Invariant: label values are bounded: arms, reasons and nodes of one graph, status codes; never a value that a client chose.
"""

from __future__ import annotations

import os
import time
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.multiprocess import MultiProcessCollector

from router.assignment import BUCKETS
from router.breaker import CLOSED, HALF_OPEN, OPEN
from router.epoch import CHAMPION, Epoch
from router.split import HASH, NO_KEY
from serving import stock_series
from serving.arms import DIGEST, ERROR, REFUSED, TIMEOUT
from serving.distribution import Distribution, Histograms
from serving.stock_series import StockLabels

if TYPE_CHECKING:
    from ledger.records import ExposureBatch
    from serving.heads import Head

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
BREAKER_STATES = (CLOSED, HALF_OPEN, OPEN)
FALLBACKS = (ERROR, TIMEOUT, DIGEST, REFUSED)
PROBABILITIES = tuple(step / 20 for step in range(1, 21))
NO_CAMPAIGN, UNKNOWN_CAMPAIGN = "none", "other"
DECISIONS = 4096
"""How many different decisions are remembered with their series; rules make a few dozen, a foreign node may make any."""
MULTIPROCESS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"

Increment = Callable[[float], None]


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
        self.scores = Distribution(
            "contender_score", "Values of the models' score columns, by the arm that served.", registry=registry
        )
        self.campaigns = Counter(
            "contender_campaigns",
            "Rows given a campaign, by the arm that served and the campaign's id; none: rows without any.",
            ["arm", "campaign"],
            registry=registry,
        )
        self.stock_server = Histogram(
            stock_series.SERVER,
            "Time to answer a request, as Seldon's executor names it.",
            stock_series.SERVER_LABELS,
            buckets=stock_series.BUCKETS,
            registry=registry,
        )
        self.stock_client = Histogram(
            stock_series.CLIENT,
            "Time of one call of a node, as Seldon's executor names it.",
            stock_series.CLIENT_LABELS,
            buckets=stock_series.BUCKETS,
            registry=registry,
        )
        self.epoch_age = Gauge(
            "contender_epoch_age_seconds",
            "Time since the epoch in use was set; over workers the longest.",
            ["test"],
            multiprocess_mode="livemax",
            registry=registry,
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
        self.shadow_rows = Counter(
            "contender_shadow_rows",
            "Rows for the shadow: scored and kept, dropped at a bound, or failed, by the arm that scores.",
            ["arm", "outcome"],
            registry=registry,
        )
        self._stock: StockLabels | None = None
        self._campaign_ids: frozenset[str] = frozenset()
        self._epoch_set: tuple[Callable[[float], None], float] | None = None
        self._breakers: dict[str, str] = {}
        self._row_children: dict[tuple[str, str, str], Increment] = {}
        self._decision_children: dict[tuple[str, str], list[Increment]] = {}
        self._node_children: dict[tuple[str, str, int], list[Increment]] = {}
        self._request_children: dict[tuple[str, int], list[Increment]] = {}

    def serves(self, labels: StockLabels, heads: Sequence[Head] = ()) -> None:
        """Expose the stock executor's series under these labels, and the distribution of these heads' scores."""
        self._stock = labels
        if not heads:
            return
        from serving.heads import BinaryHead, RegressionHead

        for head in heads:
            if isinstance(head, BinaryHead):
                self.scores.declare(head.score, PROBABILITIES)
            elif isinstance(head, RegressionHead):
                self.scores.declare(head.value, _bounds(head.edges))

    def campaigns_in_use(self, ids: Iterable[int]) -> None:
        """Count these campaigns from now on. Those of former rules keep their series."""
        self._campaign_ids = frozenset(map(str, ids))
        self._decision_children.clear()

    def rows(self, batch: ExposureBatch) -> None:
        """Count the rows of one answered request, their scores and their campaigns."""
        assigned, served, reasons = batch.assigned, batch.served, batch.reasons
        decided = batch.decision.get("campaigns") if self._campaign_ids else None
        if len(served) == 1:
            arm = served[0]
            self._row((assigned[0], arm, reasons[0]))(1)
            for column in self.scores.columns:
                if column in batch.scores:
                    self.scores.observe(arm, column, batch.scores[column])
            if decided is not None:
                for add in self._decision((arm, decided[0])):
                    add(1)
            return
        for key, count in Tally(zip(assigned, served, reasons, strict=True)).items():
            self._row(key)(count)
        self._scores(served, batch.scores)
        if decided is not None:
            for decision, count in Tally(zip(served, decided, strict=True)).items():
                for add in self._decision(decision):
                    add(count)

    def unrecorded(self, rows: int) -> None:
        """Count rows that the champion answered while nothing could be recorded."""
        self.rows_unrecorded.inc(rows)

    def shadow(self, arm: str, outcome: str, rows: int) -> None:
        """Count rows for the shadow: `outcome` is "scored", "dropped" or "failed"."""
        self.shadow_rows.labels(arm, outcome).inc(rows)

    def _row(self, key: tuple[str, str, str]) -> Increment:
        child = self._row_children.get(key)
        if child is None:
            child = self._row_children[key] = self.rows_answered.labels(*key).inc
        return child

    def _scores(self, served: Sequence[str], scores: dict[str, list[Any]]) -> None:
        arms = set(served)
        for column in self.scores.columns:
            values = scores.get(column, [])
            for arm in arms if values else ():
                part = values if len(arms) == 1 else [value for value, by in zip(values, served, strict=True) if by == arm]
                self.scores.observe(arm, column, part)

    def _decision(self, key: tuple[str, str]) -> list[Increment]:
        """Return the counters of one decision, such as ("champion", "1,2,5")."""
        children = self._decision_children.get(key)
        if children is None:
            arm, text = key
            given = set(str(text).split(",")) - {""} or {NO_CAMPAIGN}
            known = {each if each in self._campaign_ids or each == NO_CAMPAIGN else UNKNOWN_CAMPAIGN for each in given}
            if len(self._decision_children) >= DECISIONS:
                self._decision_children.clear()
            children = self._decision_children[key] = [self.campaigns.labels(arm, each).inc for each in known]
        return children

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count one HTTP request. `route` is one of the served routes, or "other"."""
        key = route, status
        children = self._request_children.get(key)
        if children is None:
            stock = self._stock and self._stock.server(route, status)
            children = [
                self.request_seconds.labels(route).observe,
                *([self.stock_server.labels(*stock).observe] if stock else []),
            ]
            children.append(self.requests.labels(route, str(status)).inc)
            self._request_children[key] = children
        for observe in children[:-1]:
            observe(seconds)
        children[-1](1)

    def node(self, node: str, method: str, status: int, seconds: float) -> None:
        """Count one call of a node; `status` is 200 or what it failed with."""
        key = node, method, status
        children = self._node_children.get(key)
        if children is None:
            children = [self.node_seconds.labels(node, method).observe]
            if self._stock is not None:
                children.append(self.stock_client.labels(*self._stock.client(node, method, status)).observe)
            self.node_errors.labels(node, method)
            self._node_children[key] = children
        for observe in children:
            observe(seconds)
        if status != 200:
            self.node_errors.labels(node, method).inc()

    def breaker(self, arm: str, state: str) -> None:
        """Show the state of a challenger's breaker."""
        if self._breakers.get(arm) != state:
            self._breakers[arm] = state
            self.breaker_state.labels(arm).set(BREAKER_STATES.index(state))

    def epoch_in_use(self, epoch: Epoch) -> None:
        """Show the epoch and its shares, and begin the series of its arms at 0, so that their first increase is seen."""
        self.epoch.labels(epoch.test).set(epoch.epoch)
        self._epoch_set = self.epoch_age.labels(epoch.test).set, _instant(epoch.at)
        for arm in (CHAMPION, *epoch.arms):
            self.share.labels(epoch.test, arm).set(epoch.share(arm) / BUCKETS)
            self._row((arm, arm, HASH))
        self._row((CHAMPION, CHAMPION, NO_KEY))
        for arm in epoch.arms:
            self.breaker(arm, self._breakers.get(arm, CLOSED))
            for reason in FALLBACKS:
                self._row((arm, CHAMPION, reason))
        self.refresh()

    def refresh(self) -> None:
        """Bring the epoch's age up to date. To be called every second or so."""
        if self._epoch_set is not None:
            show, since = self._epoch_set
            show(max(0.0, time.time() - since))

    def render(self) -> tuple[bytes, str]:
        """Return the exposition text and its content type, summed over the workers where there are several."""
        several = MULTIPROCESS_VARIABLE in os.environ
        source = MultiProcessCollector(None) if several else self._registry  # type: ignore[no-untyped-call]
        exposed = CollectorRegistry()
        exposed.register(Histograms(source, [self.scores.name]))
        return generate_latest(exposed), CONTENT_TYPE_PLAIN_0_0_4


def _instant(text: str) -> float:
    """Return the Unix time of an epoch's `at`; the present where its writer put no RFC 3339 time there."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return time.time()


def _bounds(edges: Sequence[float]) -> list[float]:
    """Return the buckets of a regression's value: its bands' edges, with quarters of their span between and beyond them."""
    first, last = edges[0], edges[-1]
    span = last - first or abs(first) or 1.0
    beyond = [first - span + step * span / 4 for step in range(13)]
    return sorted({*edges, *(round(each, 9) for each in beyond)})
