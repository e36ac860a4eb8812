"""What Prometheus is told of `contender serve`. Each series is declared once, and its children are resolved once.

Invariant: label values are bounded: arms, reasons, campaigns of the rules, columns of the bundles; never a client's value.
"""

from __future__ import annotations

import time
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Sequence
from itertools import compress
from typing import TYPE_CHECKING, Any, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge

from router.assignment import BUCKETS
from router.breaker import CLOSED, HALF_OPEN, OPEN
from router.epoch import CHAMPION, Epoch
from router.split import HASH, NO_KEY
from serving.arms import DIGEST, ERROR, REFUSED, TIMEOUT
from serving.call_metrics import CallMetrics
from serving.distribution import WAITING

if TYPE_CHECKING:
    from ledger.records import ExposureBatch
    from serving.heads import Head

BREAKER_STATES = (CLOSED, HALF_OPEN, OPEN)
FALLBACKS = (ERROR, TIMEOUT, DIGEST, REFUSED)
PROBABILITIES = tuple(step / 20 for step in range(1, 21))
NO_CAMPAIGN, UNKNOWN_CAMPAIGN = "none", "other"


class _Said(NamedTuple):
    """What an arm that served has said since the last flush: the values of the columns that are watched, and the decisions."""

    scores: list[tuple[str, list[Any]]]
    decisions: list[Any]


class Metrics(CallMetrics):
    """The series of one process of `contender serve`: those of calls, of rows, of the epoch and of the ledger."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry)
        self.rows_answered = Counter(
            "contender_rows",
            "Rows answered and recorded, by the arm assigned, the arm that served, and the reason.",
            ["assigned", "served", "reason"],
            registry=registry,
        )
        self.rows_unrecorded = Counter(
            "contender_unrecorded_rows", "Rows the champion answered while the spool took nothing.", registry=registry
        )
        self.scores = self._distribution(
            "contender_score", "Values of the models' score columns, by the arm that served.", ["arm", "column"]
        )
        self.campaigns = Counter(
            "contender_campaigns",
            "Rows given a campaign, by the arm that served and the campaign's id; none: rows without any.",
            ["arm", "campaign"],
            registry=registry,
        )
        self.epoch_age = Gauge(
            "contender_epoch_age_seconds",
            "Time since the epoch in use was confirmed by the ledger or the API server; over workers the longest.",
            ["test"],
            multiprocess_mode="livemax",
            registry=registry,
        )
        self.epoch_changed = Gauge(
            "contender_epoch_changed_timestamp_seconds",
            "Unix time at which the epoch was taken over; over workers the latest.",
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
        self.spool_limit = Gauge(
            "contender_spool_limit_bytes",
            "Bytes that the spool's segments may reach.",
            multiprocess_mode="livemax",
            registry=registry,
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
        self.worker_restarts = Counter("contender_worker_restarts", "Workers that died and were replaced.", registry=registry)
        for what in ("epoch", "rules"):
            self.refused.labels(what)
        self.shadow_rows = Counter(
            "contender_shadow_rows",
            "Rows for the shadow: scored and kept, dropped at a bound, or failed, by the arm that scores.",
            ["arm", "outcome"],
            registry=registry,
        )
        self._campaign_ids: frozenset[str] = frozenset()
        self._breakers: dict[str, str] = {}
        self._row_children: dict[tuple[str, str, str], Callable[[float], None]] = {}
        self._score_bounds: dict[str, Sequence[float]] = {}
        self._said: dict[str, _Said] = {}
        self._rows_waiting = 0

    def watch_scores(self, heads: Iterable[Head]) -> None:
        """Show the distribution of these heads' scores: a probability's in steps of 0.05, a value's around its bands."""
        from serving.heads import BinaryHead, RegressionHead

        for head in heads:
            if isinstance(head, BinaryHead):
                self._score_bounds.setdefault(head.score, PROBABILITIES)
            elif isinstance(head, RegressionHead):
                self._score_bounds.setdefault(head.value, _bounds(head.edges))

    def campaigns_in_use(self, ids: Iterable[int]) -> None:
        """Count these campaigns from now on. Those of former rules keep their series."""
        self._flush_rows()
        self._campaign_ids = frozenset(map(str, ids))

    def rows(self, batch: ExposureBatch) -> None:
        """Count the rows of one answered request, their scores and their campaigns."""
        assigned, served, reasons = batch.assigned, batch.served, batch.reasons
        arms = set(served)
        if assigned == served and reasons.count(reasons[0]) == len(served):
            for arm in arms:
                self._row((arm, arm, reasons[0]))(served.count(arm))
        else:
            for key, count in Tally(zip(assigned, served, reasons, strict=True)).items():
                self._row(key)(count)
        decided = batch.decision.get("campaigns")
        for arm in arms:
            chosen = None if len(arms) == 1 else [by == arm for by in served]
            said = self._said.get(arm) or self._said_by(arm)
            for column, values in said.scores:
                found = batch.scores.get(column, ())
                values.extend(found if chosen is None else compress(found, chosen))
            if decided is not None:
                said.decisions.extend(decided if chosen is None else compress(decided, chosen))
        self._rows_waiting += len(served)
        if self._rows_waiting > WAITING:
            self._flush_rows()

    def unrecorded(self, rows: int) -> None:
        """Count rows that the champion answered while nothing could be recorded."""
        self.rows_unrecorded.inc(rows)

    def shadow(self, arm: str, outcome: str, rows: int) -> None:
        """Count rows for the shadow: `outcome` is "scored", "dropped" or "failed"."""
        self.shadow_rows.labels(arm, outcome).inc(rows)

    def _row(self, key: tuple[str, str, str]) -> Callable[[float], None]:
        child = self._row_children.get(key)
        if child is None:
            child = self._row_children[key] = self.rows_answered.labels(*key).inc
        return child

    def _said_by(self, arm: str) -> _Said:
        found = self._said[arm] = _Said([(column, []) for column in self._score_bounds], [])
        return found

    def _flush_rows(self) -> None:
        for arm, said in self._said.items():
            for column, values in said.scores:
                self.scores.child((arm, column), self._score_bounds[column]).extend(values)
                values.clear()
            rows: Tally[str] = Tally()
            for text, count in Tally(map(str, said.decisions)).items():
                for campaign in set(text.split(",")) - {""} or {NO_CAMPAIGN}:
                    rows[campaign if self._known(campaign) else UNKNOWN_CAMPAIGN] += count
            said.decisions.clear()
            for campaign, count in rows.items():
                self.campaigns.labels(arm, campaign).inc(count)
        self._rows_waiting = 0

    def _known(self, campaign: str) -> bool:
        """Return whether this is a campaign's id; where the rules are in a container of their own, any of two digits may be."""
        if campaign == NO_CAMPAIGN or campaign in self._campaign_ids:
            return True
        return not self._campaign_ids and len(campaign) <= 2 and campaign.isascii() and campaign.isdigit()

    def breaker(self, arm: str, state: str) -> None:
        """Show the state of a challenger's breaker."""
        if self._breakers.get(arm) != state:
            self._breakers[arm] = state
            self.breaker_state.labels(arm).set(BREAKER_STATES.index(state))

    def no_epoch(self, test: str) -> None:
        """Show that there is none yet."""
        self.epoch.labels(test).set(0)

    def epoch_age_is(self, test: str, seconds: float) -> None:
        """Show how long ago the epoch was confirmed."""
        self.epoch_age.labels(test).set(seconds)

    def epoch_in_use(self, epoch: Epoch) -> None:
        """Show the epoch and its shares, and begin the series of its arms at 0, so that their first increase is seen."""
        self.epoch.labels(epoch.test).set(epoch.epoch)
        self.epoch_changed.labels(epoch.test).set(time.time())
        for arm in (CHAMPION, *epoch.arms):
            self.share.labels(epoch.test, arm).set(epoch.share(arm) / BUCKETS)
            self._row((arm, arm, HASH))
        self._row((CHAMPION, CHAMPION, NO_KEY))
        for arm in epoch.arms:
            self.breaker(arm, self._breakers.get(arm, CLOSED))
            for reason in FALLBACKS:
                self._row((arm, CHAMPION, reason))
        self.flush()

    def flush(self) -> None:
        """Bring up to date what is kept aside for speed."""
        self._flush_rows()
        super().flush()


def _bounds(edges: Sequence[float]) -> list[float]:
    """Return the buckets of a regression's value: its bands' edges, with quarters of their span between and beyond them."""
    first, last = edges[0], edges[-1]
    span = last - first or abs(first) or 1.0
    beyond = [first - span + step * span / 4 for step in range(13)]
    return sorted({*edges, *(round(each, 9) for each in beyond)})
