"""A bundle's heads: what its models say, and the arithmetic from raw model outputs to answer columns.

Invariant: a row's columns depend on that row's outputs and the bundle's fixed edges only, so a customer gets the same decile
and band alone as in any batch.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

Output = NDArray[np.floating[Any]]


class BinaryHead(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="binary", tag_field="kind"):
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
        if len(scores) == 1:
            # What `decisions` does, without numpy's overhead, which is ten times the work of one row.
            return {self.score: scores, self.decile: [1 + sum([edge > scores[0] for edge in self.edges])]}
        return {self.score: scores, self.decile: self.decisions(output).tolist()}

    def decisions(self, output: Output) -> NDArray[np.intp]:
        """Return the decile, 1 to 10, of each row."""
        # Edges at or below the score lie left of its place among the ascending edges; compared as doubles.
        ascending = np.array(self.edges[::-1])
        return 10 - np.searchsorted(ascending, output.astype(np.float64), side="right")

    def margins(self, output: Output) -> NDArray[np.float64]:
        """Return how far each row's score is from the nearest edge."""
        return _distances(output, self.edges)


class RegressionHead(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="regression", tag_field="kind"):
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
        if len(values) == 1:
            # As `decisions`: NaN lies beyond the last edge.
            return {self.value: values, self.band: [self.labels[sum([not edge >= values[0] for edge in self.edges])]]}
        return {self.value: values, self.band: _named(self.labels, self.decisions(output))}

    def decisions(self, output: Output) -> NDArray[np.intp]:
        """Return the band's index of each row."""
        return np.searchsorted(np.array(self.edges), output.astype(np.float64), side="left")

    def margins(self, output: Output) -> NDArray[np.float64]:
        """Return how far each row's value is from the nearest edge."""
        return _distances(output, self.edges)


class MulticlassHead(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="multiclass", tag_field="kind"):
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
        return {self.value: [None] * len(output), self.band: _named(self.labels, self.decisions(output))}

    def decisions(self, output: Output) -> NDArray[np.intp]:
        """Return the band's index of each row."""
        best: NDArray[np.intp] = np.argmax(output * np.array(self.weights), axis=1)
        return best

    def margins(self, output: Output) -> NDArray[np.float64]:
        """Return by how much each row's best weighted probability leads the second."""
        ordered: NDArray[np.float64] = np.sort(output * np.array(self.weights), axis=1)
        return ordered[:, -1] - ordered[:, -2]


Head = BinaryHead | RegressionHead | MulticlassHead


def _distances(output: Output, edges: list[float]) -> NDArray[np.float64]:
    distances: NDArray[np.float64] = np.min(np.abs(output[:, None] - np.array(edges)), axis=1)
    return distances


def _named(labels: list[str], decisions: NDArray[np.intp]) -> list[str]:
    return [labels[i] for i in decisions.tolist()]
