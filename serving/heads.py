"""A bundle's heads: what its models say, and the arithmetic from raw model outputs to answer columns.

Invariant: a row's columns depend on that row's outputs and the bundle's fixed edges only, so a customer gets the same decile
and band alone as in any batch.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import cached_property
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

Output = NDArray[np.floating[Any]]

FEW_ROWS = 8
"""Up to so many rows, what `decisions` does is done without numpy, whose overhead is ten times the work of one row."""


class BinaryHead(msgspec.Struct, frozen=True, dict=True, forbid_unknown_fields=True, tag="binary", tag_field="kind"):
    """A yes-or-no question. `name` is its model output: the probability of `positive`, shape (rows,).

    Fills the columns `score` (that probability) and `decile`. `edges` are nine scores, descending; a row's decile is 1 + the
    number of edges strictly above its score, so that decile 1 holds the highest scores.
    """

    name: str
    positive: str
    label: str
    score: str
    decile: str
    edges: list[float]

    def __post_init__(self) -> None:
        if len(self.edges) != 9 or sorted(self.edges, reverse=True) != self.edges:
            raise ValueError(f"head {self.name!r}: edges are {self.edges}; nine descending scores are expected")

    def columns(self, output: Output) -> dict[str, list[Any]]:
        """Return the score and decile of each row."""
        scores = output.tolist()
        if len(scores) <= FEW_ROWS:
            ascending = self._ascending[1]
            return {self.score: scores, self.decile: [10 - bisect_right(ascending, score) for score in scores]}
        return {self.score: scores, self.decile: self.decisions(output).tolist()}

    @cached_property
    def _ascending(self) -> tuple[NDArray[np.float64], list[float]]:
        return np.array(self.edges[::-1]), self.edges[::-1]

    def decisions(self, output: Output) -> NDArray[np.intp]:
        """Return the decile, 1 to 10, of each row."""
        # Edges at or below the score lie left of its place among the ascending edges; compared as doubles.
        return 10 - self._ascending[0].searchsorted(output.astype(np.float64), side="right")

    def margins(self, output: Output) -> NDArray[np.float64]:
        """Return how far each row's score is from the nearest edge."""
        return _distances(output, self.edges)


class RegressionHead(msgspec.Struct, frozen=True, dict=True, forbid_unknown_fields=True, tag="regression", tag_field="kind"):
    """A number, put into bands on its unrounded value. `name` is its model output, shape (rows,).

    Fills the columns `value` and `band`. Band i ends at `edges[i]`, inclusive; the last has no end.
    """

    name: str
    value: str
    unit: str
    band: str
    edges: list[float]
    labels: list[str]

    def __post_init__(self) -> None:
        if sorted(self.edges) != self.edges or len(self.labels) != len(self.edges) + 1:
            raise ValueError(
                f"head {self.name!r}: edges {self.edges}, labels {self.labels}; ascending edges and one label more are expected"
            )

    def columns(self, output: Output) -> dict[str, list[Any]]:
        """Return the value and band of each row."""
        values = output.tolist()
        if len(values) <= FEW_ROWS:
            # As `decisions`: NaN lies beyond the last edge.
            bands = [self.labels[sum([not edge >= value for edge in self.edges])] for value in values]
            return {self.value: values, self.band: bands}
        return {self.value: values, self.band: _named(self.labels, self.decisions(output))}

    def decisions(self, output: Output) -> NDArray[np.intp]:
        """Return the band's index of each row."""
        return self._edges.searchsorted(output.astype(np.float64), side="left")

    @cached_property
    def _edges(self) -> NDArray[np.float64]:
        return np.array(self.edges)

    def margins(self, output: Output) -> NDArray[np.float64]:
        """Return how far each row's value is from the nearest edge."""
        return _distances(output, self.edges)


class MulticlassHead(msgspec.Struct, frozen=True, dict=True, forbid_unknown_fields=True, tag="multiclass", tag_field="kind"):
    """A choice among bands. `name` is its model output: the bands' probabilities, shape (rows, bands).

    Fills the column `band` with the label of the greatest probability × weight, and the column `value` with nulls (a classifier
    has no number to give). Weights above 1 favour a band that plain probability would hardly ever choose.
    """

    name: str
    value: str
    band: str
    labels: list[str]
    weights: list[float]

    def __post_init__(self) -> None:
        if len(self.weights) != len(self.labels) or min(self.weights, default=0) <= 0:
            raise ValueError(
                f"head {self.name!r}: weights are {self.weights}; one above 0 for each of {self.labels} is expected"
            )

    def columns(self, output: Output) -> dict[str, list[Any]]:
        """Return nulls and the band of each row."""
        if len(output) <= FEW_ROWS:
            weighted = [[each * weight for each, weight in zip(row, self.weights, strict=True)] for row in output.tolist()]
            if all(each == each for row in weighted for each in row):  # noqa: PLR0124 - no NaN, which is numpy's affair
                return {self.value: [None] * len(output), self.band: [self.labels[row.index(max(row))] for row in weighted]}
        return {self.value: [None] * len(output), self.band: _named(self.labels, self.decisions(output))}

    def decisions(self, output: Output) -> NDArray[np.intp]:
        """Return the band's index of each row."""
        best: NDArray[np.intp] = (output * self._weights).argmax(axis=1)
        return best

    @cached_property
    def _weights(self) -> NDArray[np.float64]:
        return np.array(self.weights)

    def margins(self, output: Output) -> NDArray[np.float64]:
        """Return by how much each row's best weighted probability leads the second."""
        ordered: NDArray[np.float64] = np.sort(output * self._weights, axis=1)
        return ordered[:, -1] - ordered[:, -2]


Head = BinaryHead | RegressionHead | MulticlassHead


def _distances(output: Output, edges: list[float]) -> NDArray[np.float64]:
    distances: NDArray[np.float64] = np.min(np.abs(output[:, None] - np.array(edges)), axis=1)
    return distances


def _named(labels: list[str], decisions: NDArray[np.intp]) -> list[str]:
    return [labels[i] for i in decisions.tolist()]
