"""Pipelines over an encoded matrix, made of steps that convert to ONNX exactly.

Invariant: a pipeline takes the whole float32 matrix, picks its columns by the declared inputs, and leaves out those without a
single value; nothing here sees anything but the part of the data that it is fitted on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler, TargetEncoder

from serving.signature import Input, Matrix

ENCODER_FOLDS = 5

Make = Callable[[Sequence[Input], Matrix, int], Pipeline]
"""Makes an unfitted pipeline from the declared inputs, the matrix it will be fitted on, and a seed."""


def linear(final: Any) -> Make:
    """Return the maker of a linear pipeline: categories one-hot, counts logged, numbers standardised, missing ones at the mean.

    A category's levels include unknown (learned from the rare ones) and missing, which is also how usage is told from none.
    """

    def make(inputs: Sequence[Input], matrix: Matrix, seed: int) -> Pipeline:
        del seed  # the solvers are deterministic
        present = [i for i, each in enumerate(inputs) if each.type != "category" and not np.isnan(matrix[:, i]).all()]
        unbounded = [i for i in present if inputs[i].maximum is None]
        bounded = [i for i in present if inputs[i].maximum is not None]
        categories = [i for i, each in enumerate(inputs) if each.type == "category"]
        steps = [("categories", OneHotEncoder(handle_unknown="ignore", dtype=np.float32), categories)]
        if unbounded:
            steps.append(("counts", _scaled(FunctionTransformer(np.log1p)), unbounded))
        if bounded:
            steps.append(("numbers", _scaled(), bounded))
        return Pipeline([("features", ColumnTransformer(steps, sparse_threshold=1.0)), ("model", clone(final))])

    return make


def boosted(encode: Literal["present", "all"] = "present", **settings: Any) -> Make:
    """Return the maker of a gradient-boosting classifier over numbers as they are, missing ones included.

    A category that is always there (brand, model) becomes its customers' mean target, smoothed, and cross-fitted within the
    training part by scikit-learn's TargetEncoder. The others, with few values, stay codes in the order of their frequency,
    unless `encode` is "all".
    """

    def make(inputs: Sequence[Input], matrix: Matrix, seed: int) -> Pipeline:
        present = [i for i in range(len(inputs)) if not np.isnan(matrix[:, i]).all()]
        many = [i for i in present if inputs[i].type == "category" and (encode == "all" or not inputs[i].missing)]
        encoder = TargetEncoder(cv=StratifiedKFold(ENCODER_FOLDS, shuffle=True, random_state=seed))
        rest = [i for i in present if i not in many]
        steps = [("encoded", encoder, many), *([("rest", "passthrough", rest)] if rest else [])]
        model = HistGradientBoostingClassifier(early_stopping=False, random_state=seed, **settings)
        return Pipeline([("features", ColumnTransformer(steps)), ("model", model)])

    return make


def _scaled(*before: Any) -> Pipeline:
    # Scaling comes first, so that the constant 0 stands for the mean of those that have the value.
    return Pipeline(
        [
            *((type(step).__name__, step) for step in before),
            ("scale", StandardScaler()),
            ("fill", SimpleImputer(strategy="constant", fill_value=0.0)),
        ]
    )
