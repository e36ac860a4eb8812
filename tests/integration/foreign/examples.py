"""Small classes of the shape that Seldon documents, to be run in `contender serve` and under Seldon's own wrapper.

Invariant: nothing but numpy and the standard library is imported, so both environments can load them.
"""

from __future__ import annotations

from typing import Any

import numpy as np


class MeanClassifier:
    """Seldon's documented first example, rewritten: the probability grows with the mean of the features."""

    def __init__(self, intercept: float = 0.0, label: str = "proba") -> None:
        self.intercept = intercept
        self.label = label
        self.loaded = False
        self.rewards: list[float] = []

    def load(self) -> None:
        self.loaded = True

    def predict(self, X: Any, features_names: list[str]) -> Any:
        if not self.loaded:
            raise RuntimeError("load was not called")
        if X.shape[1] > 3:
            raise ValueError(f"{X.shape[1]} features; at most 3 are expected")
        positive = 1 / (1 + np.exp(-np.mean(X, axis=1) - self.intercept))
        return np.column_stack([positive, 1 - positive])

    def class_names(self) -> list[str]:
        return [self.label, "other"]

    def tags(self) -> dict[str, Any]:
        return {"label": self.label, "rewards": len(self.rewards)}

    def metrics(self) -> list[dict[str, Any]]:
        return [
            {"type": "COUNTER", "key": "calls_total", "value": 1},
            {"type": "GAUGE", "key": "rewards", "value": sum(self.rewards)},
            {"type": "TIMER", "key": "took_ms", "value": 20.2, "tags": {"part": "all"}},
        ]

    def send_feedback(self, features: Any, names: list[str], reward: float, truth: Any, routing: int | None = None) -> Any:
        self.rewards.append(reward)
        return [float(features.sum()), reward, float(len(truth)), -1 if routing is None else routing]

    def health_status(self) -> Any:
        return [1, 0]

    def init_metadata(self) -> dict[str, Any]:
        return {"name": "mean", "versions": ["v1"], "platform": "test", "inputs": [], "outputs": []}


class Spend:
    """A model for Contender's router: it takes its column by name, because the customer key is among the columns too."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def predict(self, X: Any, names: list[str]) -> Any:
        return X[:, [names.index("spend")]] * self.factor

    def class_names(self) -> list[str]:
        return ["score"]


class Echo:
    """Answers what it is given, of whatever kind, and what it saw of it as tags."""

    def predict(self, X: Any, names: list[str], meta: dict[str, Any] | None = None) -> Any:
        self.seen = {"kind": type(X).__name__, "names": list(names), "meta": bool(meta)}
        return X

    def tags(self) -> dict[str, Any]:
        return self.seen


class Words:
    """Answers text, a list of text, JSON or a list of one dimension, as its request asks."""

    class_names = ["word"]  # noqa: RUF012 - Seldon's deprecated way of naming them is to be supported

    def predict(self, X: Any, names: list[str]) -> Any:
        answers = {"text": "one", "list": [["one"], ["two"]], "json": {"one": 1}, "flat": [1, 2.5], "bytes": b"\x00\xff"}
        return answers.get(X, 17)


class Scaler:
    """A TRANSFORMER and OUTPUT_TRANSFORMER: an outlier score as a tag, the input scaled, the output rounded."""

    def __init__(self, factor: int = 2) -> None:
        self.factor = factor

    def transform_input(self, X: Any, names: list[str], meta: dict[str, Any]) -> Any:
        self.outlier = float(np.abs(X).max())
        return X * self.factor

    def transform_output(self, X: Any, names: list[str]) -> Any:
        return np.round(X, 3)

    def tags(self) -> dict[str, Any]:
        return {"outlier": getattr(self, "outlier", 0.0)}


class Greedy:
    """A ROUTER: the arm with the greatest sum of rewards, the first while nothing is known."""

    def __init__(self, arms: int = 2) -> None:
        self.totals = [0.0] * arms

    def route(self, features: Any, names: list[str]) -> int:
        return self.totals.index(max(self.totals))

    def send_feedback(self, features: Any, names: list[str], reward: float, truth: Any, routing: int | None = None) -> None:
        if routing is not None:
            self.totals[routing] += reward

    def tags(self) -> dict[str, Any]:
        return {"totals": self.totals}


class Average:
    """A COMBINER: the mean of its children's answers."""

    def aggregate(self, features_list: list[Any], names_list: list[list[str]]) -> Any:
        return np.mean(np.array(features_list), axis=0)

    def metrics(self) -> list[dict[str, Any]]:
        return [{"type": "GAUGE", "key": "averaged", "value": 1}]


class Raw:
    """Everything by `*_raw`: parsed messages in and out. A body without data is refused with a status of its own."""

    def predict_raw(self, message: dict[str, Any]) -> dict[str, Any]:
        if "data" not in message:
            return {"status": {"code": 418, "info": "no data", "reason": "RAW", "status": "FAILURE"}}
        return {"data": message["data"], "meta": {"tags": {"raw": True}}}

    def transform_input_raw(self, message: dict[str, Any]) -> dict[str, Any]:
        return {**message, "meta": {"tags": {"in": 1}}}

    def transform_output_raw(self, message: dict[str, Any]) -> dict[str, Any]:
        return {**message, "meta": {"tags": {"out": 1}}}

    def route_raw(self, message: dict[str, Any]) -> dict[str, Any]:
        return {"data": {"ndarray": [[1]]}}

    def aggregate_raw(self, messages: dict[str, Any]) -> dict[str, Any]:
        last: dict[str, Any] = messages["seldonMessages"][-1]
        return last

    def health_status_raw(self) -> dict[str, Any]:
        return {"strData": "raw and healthy"}


class Nothing:
    """Has no method at all."""


class BadMetrics(Echo):
    """Tells a metric without a value."""

    def metrics(self) -> list[dict[str, Any]]:
        return [{"type": "COUNTER", "key": "calls"}]
