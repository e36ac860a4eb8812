"""Histograms that are counted aside: whatever the order and the moments of the flushes, the figures are those of the values."""

from __future__ import annotations

from collections import Counter
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.distribution import WAITING, Buckets, Times

BOUNDS = [0.001, 0.01, 0.1]


class Shown:
    """Buckets with what they expose: for each bound, the sum, and above all bounds."""

    def __init__(self) -> None:
        self.figures: Counter[int] = Counter()
        self.sum = 0.0
        self.buckets = Buckets(BOUNDS, [partial(self.add, place) for place in (0, 1, 2, "sum", 3)])

    def add(self, place: int | str, more: float) -> None:
        if isinstance(place, str):
            self.sum += more
        else:
            self.figures[place] += round(more)


@given(st.lists(st.one_of(st.floats(0, 1), st.sampled_from(BOUNDS)), max_size=40), st.sets(st.integers(0, 40)))
def test_durations_are_counted_in_every_distribution(seconds: list[float], flushes: set[int]) -> None:
    shown = [Shown(), Shown()]
    times = Times([each.buckets for each in shown])
    for place, value in enumerate(seconds):
        times.observe(value)
        if place in flushes:
            times.flush()
            shown[0].buckets.flush()
    times.flush()
    for each in shown:
        each.buckets.flush()
        assert each.sum == pytest.approx(sum(seconds))
        expected = Counter(sum(value > bound for bound in BOUNDS) for value in seconds)
        assert +each.figures == expected


def test_nobody_has_to_flush() -> None:
    shown = Shown()
    times = Times([shown.buckets])
    for _ in range(3 * WAITING):
        times.observe(0.5)
    shown.buckets.flush()
    assert 2 * WAITING <= shown.figures.total() <= 3 * WAITING
