"""Reference histograms: how each input was distributed at training, without anything that points at a customer.

Invariant: no count of fewer than MIN_CUSTOMERS customers, no value that fewer than that share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from itertools import pairwise
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from serving.bundle import Histogram
from serving.signature import Input, Matrix
from training.devices import MIN_CUSTOMERS

Key = TypeVar("Key", bound=Hashable)

MAX_BINS = 10
POINT_SHARE = 0.05
"""A number that at least this share of customers has stands alone (the latitude 0 of hidden positions)."""


def histograms(inputs: Sequence[Input], rows: Sequence[Sequence[str]], matrix: Matrix) -> dict[str, Histogram]:
    """Return a histogram for each input, from the rows as text and as encoded."""
    places = {each.name: place for place, each in enumerate(inputs)}
    found = {}
    for place, each in enumerate(inputs):
        if each.type == "category":
            parent = places[each.within] if each.within else None
            found[each.name] = _categories(rows, place, parent)
        else:
            found[each.name] = _numbers(matrix[:, place])
    return found


def _categories(rows: Sequence[Sequence[str]], place: int, parent: int | None) -> Histogram:
    counts = Counter(row[place] for row in rows)
    missing = counts.pop("", 0)
    known = _frequent(counts)
    within: dict[str, dict[str, int]] = {}
    if parent is not None:
        for (above, name), count in _frequent(Counter((row[parent], row[place]) for row in rows)).items():
            within.setdefault(above, {})[name] = count
    return Histogram(
        missing=_enough(missing), categories=known, other=_enough(counts.total() - sum(known.values())), within=within
    )


def _numbers(column: NDArray[np.float32]) -> Histogram:
    present = column[~np.isnan(column)].astype(np.float64)
    values, counts = np.unique(present, return_counts=True)
    common = counts >= max(MIN_CUSTOMERS, POINT_SHARE * len(present))
    rest = np.sort(present[~np.isin(present, values[common])])
    bins = min(MAX_BINS, len(rest) // MIN_CUSTOMERS)
    quantiles = np.quantile(rest, np.arange(1, bins) / bins) if bins > 1 else np.array([])
    edges, inside = _merge(sorted({_rounded(edge) for edge in quantiles}), rest)
    return Histogram(
        missing=_enough(len(column) - len(present)),
        points=[(_rounded(value), int(count)) for value, count in zip(values[common], counts[common], strict=True)],
        edges=edges,
        counts=inside,
    )


def _merge(edges: Sequence[float], ordered: NDArray[np.float64]) -> tuple[list[float], list[int]]:
    """Drop edges until each bin holds MIN_CUSTOMERS values; nothing at all where all of them together don't."""
    if len(ordered) < MIN_CUSTOMERS:
        return [], []
    kept: list[float] = []
    start = 0
    for edge in edges:
        end = int(np.searchsorted(ordered, edge, side="left"))
        if end - start >= MIN_CUSTOMERS and len(ordered) - end >= MIN_CUSTOMERS:
            kept.append(edge)
            start = end
    places = [0, *(int(np.searchsorted(ordered, edge, side="left")) for edge in kept), len(ordered)]
    return kept, [after - before for before, after in pairwise(places)]


def _frequent(counts: Counter[Key]) -> dict[Key, int]:
    return {key: count for key, count in counts.most_common() if count >= MIN_CUSTOMERS}


def _enough(count: int) -> int:
    return count if count >= MIN_CUSTOMERS else 0


def _rounded(value: float) -> float:
    """Return the value to four significant digits, which is plenty for a bin and less than an exact position."""
    return float(f"{value:.4g}")
