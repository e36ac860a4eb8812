"""A synthetic sample population for demos, docs and tests, drawn from what a bundle's `model.json` says about its inputs.

Invariant: the same manifest, count and seed give the same customers, and a smaller count gives the first of them; no real
customer is in it, because histograms of at least 20 are all it knows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from serving.bundle import Histogram, Manifest
from serving.signature import Input

CHUNK = 10_000
_GOLDEN, _MASK = 0x9E3779B97F4A7C15, 2**64 - 1

Rows = list[list[Any]]


def population(manifest: Manifest, count: int, seed: int = 1) -> tuple[list[str], Rows]:
    """Return the columns (key first) and `count` rows of JSON values, as a request has them."""
    rows: Rows = []
    names = [manifest.key, *(each.name for each in manifest.inputs)]
    for _, chunk in stream(manifest, count, seed):
        rows += chunk
    return names, rows


def stream(manifest: Manifest, count: int, seed: int = 1) -> Iterator[tuple[list[str], Rows]]:
    """Yield the same population in chunks of CHUNK rows, for counts that shouldn't be held at once."""
    names = [manifest.key, *(each.name for each in manifest.inputs)]
    for start in range(0, count, CHUNK):
        # A whole chunk is drawn even if less is wanted, so that a customer doesn't depend on the count.
        columns = _draw(manifest, np.random.default_rng([seed, start // CHUNK]))
        rows = [[key_of(start + i, seed), *values] for i, values in enumerate(zip(*columns, strict=True))]
        yield names, rows[: count - start]


def key_of(number: int, seed: int) -> str:
    """Return the customer key of the `number`-th customer: distinct for each number, a 64-bit integer in text.

    The finaliser of SplitMix64 (Steele, Lea and Flood 2014), which maps 64 bits one to one.
    """
    z = (number + 1 + seed * 2**32) * _GOLDEN & _MASK
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & _MASK
    return str((z ^ z >> 31) - 2**63)


def _draw(manifest: Manifest, random: np.random.Generator) -> list[list[Any]]:
    """Return CHUNK values for each input. Inputs of one group are there or missing together."""
    drawn: dict[str, list[Any]] = {}
    groups: dict[str, list[bool]] = {}
    for each in manifest.inputs:
        histogram = manifest.reference[each.name]
        if each.within:
            values = _within(each, histogram, manifest.reference[each.within], drawn[each.within], random)
        elif each.type == "category":
            values = _categories(each, histogram.categories, histogram.other, CHUNK, random)
        else:
            values = _numbers(each, histogram, random)
        there = (random.random(CHUNK) < _present(histogram)).tolist()
        if each.group:
            there = groups.setdefault(each.group, there)
        drawn[each.name] = [value if is_there else None for value, is_there in zip(values, there, strict=True)]
    return list(drawn.values())


def _present(histogram: Histogram) -> float:
    counted = sum(histogram.categories.values()) + histogram.other + sum(n for _, n in histogram.points) + sum(histogram.counts)
    return counted / max(counted + histogram.missing, 1)


def _within(each: Input, own: Histogram, parent: Histogram, above: list[Any], random: np.random.Generator) -> list[Any]:
    """Draw, for each value above (a brand), from what goes with it (its models); what is rare there gets a made-up name."""
    places: dict[Any, list[int]] = {}
    for place, value in enumerate(above):
        places.setdefault(value, []).append(place)
    values: list[Any] = [None] * CHUNK
    for value, at in places.items():
        known = own.within.get(value, {})
        rare = max(parent.categories.get(value, 0) - sum(known.values()), 0 if known else 1)
        for place, name in zip(at, _categories(each, known, rare, len(at), random), strict=True):
            values[place] = name
    return values


def _categories(each: Input, known: dict[str, int], rare: int, size: int, random: np.random.Generator) -> list[Any]:
    """Draw categories; the rare ones, whose names nobody kept, become one of twenty made-up names."""
    invented = 20 if rare and each.enum is None else 0
    names = [*known, *(f"{each.name} {number}" for number in range(1, invented + 1))]
    weights = np.array([*known.values(), *([rare / invented] * invented if invented else [])], dtype=np.float64)
    if not names:
        return [each.example] * size
    picked = random.choice(len(names), size=size, p=weights / weights.sum())
    return [names[i] for i in picked.tolist()]


def _numbers(each: Input, histogram: Histogram, random: np.random.Generator) -> list[Any]:
    """Draw points and, evenly within their bins, other numbers; the open outer bins are as wide as their neighbours."""
    edges = histogram.edges
    weights = np.array([*(count for _, count in histogram.points), *histogram.counts], dtype=np.float64)
    if not len(weights):
        return [each.example] * CHUNK
    low, high = (edges[0], edges[-1]) if edges else (_number(each.example), _number(each.example))
    width = (edges[1] - edges[0], edges[-1] - edges[-2]) if len(edges) > 1 else (0.0, 0.0)
    floor = low - width[0] if each.minimum is None else max(each.minimum, low - width[0])
    ceiling = high + width[1] if each.maximum is None else min(each.maximum, high + width[1])
    starts = np.array([*(value for value, _ in histogram.points), *([floor, *edges] if histogram.counts else [])])
    ends = np.array([*(value for value, _ in histogram.points), *([*edges, ceiling] if histogram.counts else [])])
    picked = random.choice(len(weights), size=CHUNK, p=weights / weights.sum())
    values = starts[picked] + random.random(CHUNK) * (ends[picked] - starts[picked])
    if each.type == "integer":
        return [int(value) for value in np.floor(values).tolist()]
    return [round(value, 4) for value in values.tolist()]


def _number(example: Any) -> float:
    return float(example) if isinstance(example, int | float) else 0.0
