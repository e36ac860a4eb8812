"""Histograms that cost a request next to nothing: values are counted in plain lists, and added to what is exposed later.

Invariant: what is exposed is an ordinary Prometheus histogram, exact at each `flush`. It is held in one counter for each
bucket, because the library's own takes one value at a time and a lock for each; `Histograms` puts it together at the scrape.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

SUM = "sum"
"""The `le` of the counter that holds the sum of the values."""

LAST = "+Inf"
"""The `le` of the last bucket. It is made last, so that who reads another process' buckets knows when they are complete."""

WAITING = 4096
"""How many durations, or values of columns, may wait for the next flush."""


class Source(Protocol):
    """What has metrics to collect: a registry, or the collector of several processes."""

    def collect(self) -> Iterable[Metric]: ...


class Distribution:
    """A histogram with labels. Each combination of label values has buckets of its own."""

    def __init__(self, name: str, documentation: str, labels: Sequence[str], registry: CollectorRegistry) -> None:
        self.name = name
        self._counter = Counter(name, documentation, [*labels, "le"], registry=registry)
        self._children: dict[tuple[str, ...], Buckets] = {}

    def child(self, labels: tuple[str, ...], bounds: Sequence[float]) -> Buckets:
        """Return the buckets under these label values. `bounds` are their upper ends, ascending, without infinity."""
        found = self._children.get(labels)
        if found is None:
            ends = [*map(str, map(float, bounds)), SUM, LAST]
            found = self._children[labels] = Buckets(bounds, [self._counter.labels(*labels, end).inc for end in ends])
        return found

    def flush(self) -> None:
        """Add to the exposed figures what came since the last time."""
        for buckets in self._children.values():
            buckets.flush()


class Buckets:
    """The values under one combination of label values."""

    __slots__ = ("_add", "_bounds", "_counts", "_pending", "_sum", "_values")

    def __init__(self, bounds: Sequence[float], add: Sequence[Callable[[float], None]]) -> None:
        """`add` increments what is exposed: one for each bound, one for the sum, one for what is above all bounds."""
        self._bounds = list(bounds)
        self._add = add
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._pending = False
        self._values: list[Any] = []

    def add(self, ascending: Sequence[float]) -> None:
        """Count finite values of at least 0, in ascending order."""
        ends = [bisect_right(ascending, bound) for bound in self._bounds]
        for place, (begin, end) in enumerate(pairwise((0, *ends, len(ascending)))):
            self._counts[place] += end - begin
        self._sum += sum(ascending)
        self._pending = True

    def extend(self, values: Iterable[Any]) -> None:
        """Count the values of a column.

        Nulls and what is no number are passed over; NaN counts in the last bucket; the sum takes finite values above 0 only.
        """
        self._values.extend(values)
        if len(self._values) > WAITING:
            self.flush()

    def flush(self) -> None:
        """Add to the exposed figures what came since the last time."""
        if self._values:
            self._count_values()
        if self._pending:
            for add, count in zip(self._add, [*self._counts[:-1], self._sum, self._counts[-1]], strict=True):
                if count:
                    add(count)
            self._counts = [0] * len(self._counts)
            self._sum = 0.0
            self._pending = False

    def _count_values(self) -> None:
        import numpy as np  # an engine without models of its own does without

        values = [value for value in self._values if type(value) is float or type(value) is int]
        self._values.clear()
        numbers = np.array(values, dtype=np.float64)
        # NaN is sorted behind everything.
        found = np.bincount(np.searchsorted(self._bounds, numbers, side="left"), minlength=len(self._counts)).tolist()
        self._counts = [before + more for before, more in zip(self._counts, found, strict=True)]
        self._sum += float(numbers[np.isfinite(numbers) & (numbers > 0)].sum())
        self._pending = True


class Times:
    """Durations of one kind of event, which several distributions show."""

    __slots__ = ("_shown", "_waiting")

    def __init__(self, shown: Sequence[Buckets]) -> None:
        self._shown = shown
        self._waiting: list[float] = []

    def observe(self, seconds: float) -> None:
        """Count one event."""
        self._waiting.append(seconds)
        if len(self._waiting) > WAITING:
            self.flush()

    def flush(self) -> None:
        """Hand over what came since the last time."""
        if self._waiting:
            self._waiting.sort()
            for buckets in self._shown:
                buckets.add(self._waiting)
            self._waiting.clear()


class Histograms(Collector):
    """Collects from a source, with the distributions of these names turned into histograms.

    Times of creation are left out: several processes have none in common, and Prometheus does without.
    """

    def __init__(self, source: Source, names: Iterable[str]) -> None:
        self._source = source
        self._names = frozenset(names)

    def collect(self) -> Iterator[Metric]:
        """Yield every metric of the source."""
        for metric in self._source.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield _histogram(metric) if metric.name in self._names else metric


def _histogram(counters: Metric) -> HistogramMetricFamily:
    found: dict[tuple[tuple[str, str], ...], dict[str, float]] = {}
    for sample in counters.samples:
        labels = tuple((label, value) for label, value in sample.labels.items() if label != "le")
        found.setdefault(labels, {})[sample.labels["le"]] = sample.value
    names = [name for labels in list(found)[:1] for name, _ in labels]
    family = HistogramMetricFamily(counters.name, counters.documentation, labels=names)
    for labels, cells in found.items():
        if LAST not in cells:
            continue
        total = cells.pop(SUM)
        below = 0.0
        buckets = []
        for bound in sorted(cells, key=float):
            below += cells[bound]
            buckets.append((bound, below))
        family.add_metric([value for _, value in labels], buckets, total)
    return family
