"""Scorers turn a feature matrix into a bundle's raw outputs, by ONNX or by scikit-learn.

Invariant: both give the same outputs (training's parity gate holds them to it), and only the library that is used is imported.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from serving.heads import BinaryHead, Head, Output, RegressionHead
from serving.signature import Matrix

INPUT = "features"
"""Name of the ONNX graph's one input, float32 (rows, inputs). Its outputs are named by the heads."""


class Scorer(Protocol):
    """What a bundle needs: the raw output of each head for a float32 matrix (rows, inputs)."""

    def scores(self, matrix: Matrix) -> list[Output]:
        """Return an array for each head, in their order: (rows,), for a multiclass head (rows, classes)."""
        ...


class OnnxScorer:
    """Runs the one graph of `model.onnx` in one thread: batches are small, and workers are what uses the other cores."""

    def __init__(self, model: bytes, heads: Sequence[Head]) -> None:
        """Make the session. Raises ValueError if a head has no output, onnxruntime's own errors if these bytes are no model."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._names = [head.name for head in heads]
        self._binary = [isinstance(head, BinaryHead) for head in heads]
        outputs = [output.name for output in self._session.get_outputs()]
        if set(self._names) - set(outputs):
            raise ValueError(f"the graph's outputs are {outputs}; the heads need {self._names}")

    def scores(self, matrix: Matrix) -> list[Output]:
        """Return each head's output, float32."""
        outputs: list[NDArray[np.float32]] = self._session.run(self._names, {INPUT: matrix})
        # A classifier gives (rows, 2), a regression (rows, 1).
        return [
            output[:, 1] if binary else output[:, 0] if output.shape[1] == 1 else output
            for output, binary in zip(outputs, self._binary, strict=True)
        ]


class SklearnScorer:
    """Runs the fitted pipelines of `model.joblib`, {head's name: pipeline}."""

    def __init__(self, pipelines: dict[str, Any], heads: Sequence[Head]) -> None:
        """Raise KeyError naming a head without a pipeline."""
        self._methods = [
            pipelines[head.name].predict if isinstance(head, RegressionHead) else pipelines[head.name].predict_proba
            for head in heads
        ]
        self._binary = [isinstance(head, BinaryHead) for head in heads]

    @classmethod
    def load(cls, model: bytes, heads: Sequence[Head]) -> SklearnScorer:
        """Unpickle the pipelines. The caller has checked the bytes' digest, for unpickling runs code."""
        import joblib
        from threadpoolctl import threadpool_limits

        scorer = cls(joblib.load(io.BytesIO(model)), heads)
        # For the rest of the process, as the ONNX session does: on small batches a second thread waits more than it works.
        threadpool_limits(1)
        return scorer

    def scores(self, matrix: Matrix) -> list[Output]:
        """Return each head's output, float64."""
        outputs = (method(matrix) for method in self._methods)
        return [output[:, 1] if binary else output for output, binary in zip(outputs, self._binary, strict=True)]
