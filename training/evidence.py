"""What a model is worth, by split and by segment of customers: the tables behind the card and the report.

Invariant: every figure is out of fold, and so is every edge and weight that a decision rests on: those of a fold are chosen on
the other folds. No segment has fewer than MIN_SEGMENT customers, and nothing names one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from serving.heads import Head, Output
from training.evaluation import Decile, Target, confusion, decile_table

MIN_SEGMENT = 200
BINS = 10
ASSIGNED_HIGH, ASSIGNED_LOW = 3, 8
"""Deciles up to 3 count as the positive class, from 8 on as the other, as in the shipped rules."""

Decisions = NDArray[np.intp]
Fix = Callable[[Head, Target, Output], Head]


@dataclass(frozen=True)
class Split:
    """One way of judging: figures, calibration bins (customers, mean predicted, share seen), deciles, and bands as counts."""

    name: str
    figures: Mapping[str, int | float]
    bins: Sequence[tuple[int, float, float]]
    deciles: Sequence[Decile]
    bands: NDArray[np.int64]

    @property
    def calibration_error(self) -> float:
        """Return the mean distance between predicted and seen, weighted by customers."""
        return sum(n * abs(predicted - seen) for n, predicted, seen in self.bins) / max(sum(n for n, _, _ in self.bins), 1)


@dataclass(frozen=True)
class Segment:
    """A group of customers: how it is scored and what it is assigned. Bands are shares. The AUC of one class alone is None."""

    kind: str
    name: str
    customers: int
    positives: float
    score: float
    roc_auc: float | None
    assigned_positive: float
    assigned_negative: float
    true_bands: Sequence[float]
    answered_bands: Sequence[float]


@dataclass(frozen=True)
class Evidence:
    """All splits by their key in the manifest's metrics, the segments of `cross_validation`, and the optimism avoided.

    `optimism`: by how much the band accuracy would be overstated if weights were judged where they were chosen.
    """

    splits: Mapping[str, Split]
    segments: Sequence[Segment]
    optimism: float
    labels: Sequence[str]


def crossfitted(head: Head, target: Target, output: Output, fold: NDArray[np.intp], fix: Fix) -> Decisions:
    """Return each customer's decile or band by edges or weights that `fix` chooses on the other folds."""
    decisions = np.empty(len(target), dtype=np.intp)
    for number in np.unique(fold):
        inside = fold == number
        decisions[inside] = fix(head, target[~inside], output[~inside]).decisions(output[inside])
    return decisions


def calibration(target: Target, output: Output) -> list[tuple[int, float, float]]:
    """Return BINS bins of about as many customers each: their number, mean output and share of positives."""
    edges = np.unique(np.quantile(output, np.arange(1, BINS) / BINS))
    place = np.searchsorted(edges, output, side="right")
    bins = [(place == number) for number in range(len(edges) + 1)]
    return [(int(b.sum()), float(output[b].mean()), float(target[b].mean())) for b in bins if b.any()]


def split(
    name: str,
    figures: Mapping[str, int | float],
    women: Target,
    scores: Output,
    deciles: Decisions,
    true: Decisions,
    bands: Decisions,
    width: int,
) -> Split:
    """Return the tables of one split."""
    return Split(name, figures, calibration(women, scores), decile_table(deciles, women), confusion(true, bands, width))


def segments(
    groups: Mapping[str, NDArray[np.str_]],
    women: Target,
    scores: Output,
    deciles: Decisions,
    true: Decisions,
    bands: Decisions,
    width: int,
) -> list[Segment]:
    """Return every group of every kind that is large enough, the kinds as given, the groups by name."""
    found = []
    for kind, names in groups.items():
        for name in np.unique(names):
            inside = names == name
            if inside.sum() < MIN_SEGMENT:
                continue
            both = 0 < women[inside].mean() < 1
            found.append(
                Segment(
                    kind=kind,
                    name=str(name),
                    customers=int(inside.sum()),
                    positives=float(women[inside].mean()),
                    score=float(scores[inside].mean()),
                    roc_auc=float(roc_auc_score(women[inside], scores[inside])) if both else None,
                    assigned_positive=float((deciles[inside] <= ASSIGNED_HIGH).mean()),
                    assigned_negative=float((deciles[inside] >= ASSIGNED_LOW).mean()),
                    true_bands=_shares(true[inside], width),
                    answered_bands=_shares(bands[inside], width),
                )
            )
    return found


def tiers(values: Sequence[str]) -> NDArray[np.str_]:
    """Return each value's tier: the most frequent values that together make half of all, the next 30 %, the rest."""
    names, inverse, counts = np.unique(np.array(values), return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    before = np.empty(len(names))
    before[order] = (np.cumsum(counts[order]) - counts[order]) / len(values)
    tier = np.where(before < 0.5, "1 frequent", np.where(before < 0.8, "2 less frequent", "3 rare"))
    return tier[inverse]


def _shares(decisions: Decisions, width: int) -> list[float]:
    shares: list[float] = (np.bincount(decisions, minlength=width) / len(decisions)).tolist()
    return shares
