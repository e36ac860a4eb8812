"""Seldon's documented first example, rewritten: a class with `predict`, and nothing of Seldon imported."""

from __future__ import annotations

from typing import Any

import numpy as np


class MeanClassifier:
    """Answers a probability that grows with the mean of the features, shape (rows, 1)."""

    def __init__(self, intercept: float = 0.0) -> None:
        self.intercept = intercept
        self.calls = 0

    def predict(self, X: Any, names: list[str]) -> Any:  # noqa: N803 - Seldon's documented name
        self.calls += 1
        return 1 / (1 + np.exp(-np.mean(X, axis=1, keepdims=True) - self.intercept))

    def class_names(self) -> list[str]:
        return ["proba"]

    def tags(self) -> dict[str, Any]:
        return {"intercept": self.intercept}

    def metrics(self) -> list[dict[str, Any]]:
        return [{"type": "COUNTER", "key": "mean_calls_total", "value": 1}]
