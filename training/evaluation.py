"""Honest figures: out-of-fold outputs, what they are worth by split, and the edges and weights that are fixed from them.

Invariant: whatever is fitted (vocabularies, encodings, models) is fitted inside the fold; an output is only ever judged for a
customer whom its model hasn't seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, log_loss, mean_absolute_error, roc_auc_score
from sklearn.model_selection import StratifiedKFold

from serving.heads import BinaryHead, Head, MulticlassHead, Output, RegressionHead

FOLDS = 5
DECILES = np.arange(9, 0, -1) / 10
GAP = 2e-5
"""An edge stands in a gap between scores that is at least this wide, so that rounding can't carry a crowd over it."""

Target = NDArray[Any]
Decile = tuple[int, int, float, float]
"""A decile's number, customers, share of positives, and lift over everybody's share."""


def folds(strata: NDArray[np.int64], seed: int) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Yield the indices of FOLDS shuffled train and test parts with the strata's shares kept."""
    yield from StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(strata, strata)


def metrics(head: Head, target: Target, output: Output, base: Output, decisions: NDArray[np.intp]) -> dict[str, int | float]:
    """Return the figures of one head on some customers, `<name>_<metric>`, to 6 digits.

    `target` is 1 for the positive class, the number, or the band's index; `base` is what a model without inputs would say
    (the training mean or shares); `decisions` are the deciles or bands, by edges and weights chosen on other customers.
    """
    if isinstance(head, BinaryHead):
        found = {
            "roc_auc": roc_auc_score(target, output),
            "log_loss": log_loss(target, output, labels=[0, 1]),
            "base_log_loss": log_loss(target, base, labels=[0, 1]),
        }
    elif isinstance(head, RegressionHead):
        found = {
            "mean_absolute_error": mean_absolute_error(target, output),
            "base_mean_absolute_error": mean_absolute_error(target, base),
            "band_accuracy": accuracy_score(true_bands(head, target), decisions),
        }
    else:
        labels = list(range(len(head.labels)))
        found = {
            "log_loss": log_loss(target, output, labels=labels),
            "base_log_loss": log_loss(target, base, labels=labels),
            "band_accuracy": accuracy_score(target, decisions),
            "most_probable_band_accuracy": accuracy_score(target, output.argmax(axis=1)),
        }
    return {f"{head.name}_{name}": round(float(value), 6) for name, value in found.items()}


def decile_edges(scores: Output, own: Output) -> list[float]:
    """Return nine descending edges at the deciles of `scores`, each moved into the nearest gap between the scores `own`.

    `scores` are out-of-fold, so they are spread as those of new customers; `own` are the shipped model's, many of them equal
    (one phone model, no usage): an edge that coincides with one would make a crowd's decile hang on the last bit.
    """
    values = np.unique(own.astype(np.float64))
    wide = np.flatnonzero(np.diff(values) >= GAP)
    middles = (values[wide] + values[wide + 1]) / 2
    edges = [float(middles[np.abs(middles - t).argmin()]) if len(middles) else float(t) for t in np.quantile(scores, DECILES)]
    return [round(edge, 6) for edge in sorted(edges, reverse=True)]


def band_weights(outputs: Output, target: Target, rounds: int = 200) -> list[float]:
    """Return the weights under which greatest probability × weight chooses each band about as often as it is true.

    Plain probability would hardly ever choose a band that is seldom the most probable one. The first weight is 1.
    """
    shares = np.bincount(target, minlength=outputs.shape[1]) / len(target)
    weights, best, least = np.ones(outputs.shape[1]), np.ones(outputs.shape[1]), np.inf
    for step in range(rounds):
        chosen = np.bincount((outputs * weights).argmax(axis=1), minlength=len(shares)) / len(target)
        distance = np.abs(chosen - shares).sum()
        if distance < least:
            best, least = weights, distance
        # Shrinking steps: crowds of equal outputs change sides together, so there needn't be a fixed point.
        weights = weights * ((shares + 0.01) / (chosen + 0.01)) ** (0.5 / (1 + step / 20))
        weights = weights / weights[0]
    return [round(float(weight), 4) for weight in best]


def decile_table(deciles: NDArray[np.intp], target: Target) -> list[Decile]:
    """Return for each decile its number, customers, share of positives and lift over all customers' share."""
    share = target.mean()
    rows = []
    for decile in range(1, 11):
        inside = target[deciles == decile]
        positive = float(inside.mean()) if len(inside) else 0.0
        rows.append((decile, len(inside), positive, positive / share))
    return rows


def confusion(true: NDArray[np.intp], answered: NDArray[np.intp], width: int) -> NDArray[np.int64]:
    """Return counts (true band, answered band), `width` × `width`."""
    counts = np.zeros((width, width), dtype=np.int64)
    np.add.at(counts, (true, answered), 1)
    return counts


def true_bands(head: RegressionHead | MulticlassHead, target: Target) -> NDArray[np.intp]:
    """Return the index of the band that each customer's target falls into."""
    return head.decisions(target.astype(np.float64)) if isinstance(head, RegressionHead) else target
