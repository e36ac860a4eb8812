"""Histograms that take whole columns of values: a request's thousand scores are counted at once.

Invariant: what is exposed is an ordinary Prometheus histogram. It is held in one counter for each bucket, because the
library's own histogram takes one value at a time; `Histograms` turns the counters into a histogram at the scrape.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

SUM = "sum"
"""The `le` of the counter that holds the sum of the values."""

Increment = Callable[[float], None]


class Source(Protocol):
    """What has metrics to collect: a registry, or the collector of several processes."""

    def collect(self) -> Iterable[Metric]: ...


class Distribution:
    """The values of declared columns, by arm. Counts finite values in their buckets, all others in the last (+Inf)."""

    def __init__(self, name: str, documentation: str, registry: CollectorRegistry) -> None:
        self.name = name
        self._counter = Counter(name, documentation, ["arm", "column", "le"], registry=registry)
        self._bounds: dict[str, list[float]] = {}
        self._children: dict[tuple[str, str], tuple[list[Increment], Increment]] = {}

    @property
    def columns(self) -> Iterable[str]:
        return self._bounds

    def declare(self, column: str, bounds: Sequence[float]) -> None:
        """Watch a column. `bounds` are the buckets' upper ends, ascending, without infinity; the first declaration counts."""
        self._bounds.setdefault(column, list(bounds))

    def observe(self, arm: str, column: str, values: Sequence[Any]) -> None:
        """Count the values of a column. Nulls and what is no number are passed over; the sum takes nothing below 0."""
        bounds = self._bounds[column]
        buckets, total = self._children.get((arm, column)) or self._resolve(arm, column)
        if len(values) == 1:
            (value,) = values
            if type(value) is not float and type(value) is not int:
                return
            buckets[len(bounds) if math.isnan(value) else bisect_left(bounds, value)](1)
            total(value if 0 < value < math.inf else 0)
            return
        import numpy as np

        numbers = np.array([value for value in values if type(value) is float or type(value) is int], dtype=np.float64)
        # NaN is sorted behind everything.
        counts = np.bincount(np.searchsorted(bounds, numbers, side="left"), minlength=len(buckets)).tolist()
        for add, count in zip(buckets, counts, strict=True):
            if count:
                add(count)
        total(float(numbers[np.isfinite(numbers) & (numbers > 0)].sum()))

    def _resolve(self, arm: str, column: str) -> tuple[list[Increment], Increment]:
        labels = self._counter.labels
        buckets: list[Increment] = [labels(arm, column, str(bound)).inc for bound in (*self._bounds[column], "+Inf")]
        children = self._children[arm, column] = buckets, labels(arm, column, SUM).inc
        return children


class Histograms(Collector):
    """Collects from a source, with the distributions of these names turned into histograms.

    Times of creation are left out: several processes have none in common, and Prometheus does without.
    """

    def __init__(self, source: Source, names: Sequence[str]) -> None:
        self._source = source
        self._names = names

    def collect(self) -> Iterator[Metric]:
        """Yield every metric of the source."""
        for metric in self._source.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield _histogram(metric) if metric.name in self._names else metric


def _histogram(counters: Metric) -> HistogramMetricFamily:
    found: dict[tuple[str, str], dict[str, float]] = {}
    for sample in counters.samples:
        labels = sample.labels
        found.setdefault((labels["arm"], labels["column"]), {})[labels["le"]] = sample.value
    family = HistogramMetricFamily(counters.name, counters.documentation, labels=["arm", "column"])
    for labels_of, cells in found.items():
        total = cells.pop(SUM)
        below = 0.0
        buckets = []
        for bound in sorted(cells, key=float):
            below += cells[bound]
            buckets.append((bound, below))
        family.add_metric(labels_of, buckets, total)
    return family
