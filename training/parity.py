"""The gate between scikit-learn and ONNX: a graph serves only if it says what the pipelines say.

Invariant: the gate looks at rows with unknown categories, missing values and values at the ends of their range, at single rows
and at batches; one decision that differs away from an edge closes it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from serving.bundle import Parity
from serving.heads import BinaryHead, Head, MulticlassHead, Output, RegressionHead
from serving.scorer import Scorer
from serving.signature import MISSING, UNKNOWN, Input, Matrix

PROBABILITY_TOLERANCE, VALUE_TOLERANCE = 1e-5, 1e-4
ROWS = 5_000
"""Rows as they are, and as many disturbed ones."""
SINGLE_ROWS = 200
FAR = 1e6
"""Stands for the end of a range that has none."""


def reference_rows(matrix: Matrix, inputs: Sequence[Input], random: np.random.Generator) -> Matrix:
    """Return ROWS rows drawn from an encoded matrix, and ROWS more with one cell in four made missing, unknown or extreme."""
    chosen = matrix[random.integers(len(matrix), size=ROWS)]
    disturbed = matrix[random.integers(len(matrix), size=ROWS)].copy()
    for column, each in enumerate(inputs):
        odd = [np.nan if each.type != "category" else MISSING] if each.missing else []
        if each.type == "category":
            odd += [UNKNOWN] if each.enum is None else []
        else:
            odd += [-FAR if each.minimum is None else each.minimum, FAR if each.maximum is None else each.maximum]
        if odd:
            hit = random.random(ROWS) < 0.25
            disturbed[hit, column] = random.choice(np.array(odd, dtype=np.float32), size=np.count_nonzero(hit))
    return np.concatenate([chosen, disturbed])


def compare(reference: Scorer, candidate: Scorer, heads: Sequence[Head], matrix: Matrix) -> Parity:
    """Return how far the candidate's outputs are from the reference's: all rows as one batch, and the first ones alone."""
    singles = [candidate.scores(matrix[i : i + 1]) for i in range(min(SINGLE_ROWS, len(matrix)))]
    far = {"probability": 0.0, "value": 0.0}
    decisions = at_an_edge = 0
    for place, (head, expected, found) in enumerate(
        zip(heads, reference.scores(matrix), candidate.scores(matrix), strict=True)
    ):
        kind = "value" if isinstance(head, RegressionHead) else "probability"
        alone = np.concatenate([outputs[place] for outputs in singles])
        far[kind] = max(far[kind], _largest(expected, found), _largest(found[: len(alone)], alone))
        differs = head.decisions(expected) != head.decisions(found)
        near = head.margins(expected) <= _tolerance(head)
        at_an_edge += int(np.count_nonzero(differs & near))
        decisions += int(np.count_nonzero(differs & ~near))
    passed = far["probability"] <= PROBABILITY_TOLERANCE and far["value"] <= VALUE_TOLERANCE and decisions == 0
    return Parity(rows=len(matrix), passed=passed, decisions=decisions, at_an_edge=at_an_edge, **far)


def _tolerance(head: Head) -> float:
    """Return the margin within which two allowed outputs may decide differently."""
    if isinstance(head, MulticlassHead):
        # Two probabilities may move towards each other, and each is multiplied by its weight.
        return 2 * max(head.weights) * PROBABILITY_TOLERANCE
    return PROBABILITY_TOLERANCE if isinstance(head, BinaryHead) else VALUE_TOLERANCE


def _largest(left: Output, right: Output) -> float:
    """Return the largest difference, infinity if the shapes differ or a number is missing."""
    if left.shape != right.shape:
        return float("inf")
    difference = float(np.abs(left - right).max())
    return difference if np.isfinite(difference) else float("inf")
