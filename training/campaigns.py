"""The campaigns use case: gender and age of devices, by a linear champion and a gradient-boosting challenger.

Invariant: one model over all devices; usage events, known for a few, are missing for the rest, so that both kinds are served.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import Pipeline
from threadpoolctl import threadpool_limits

from serving.bundle import FORMAT, Bundle, Manifest
from serving.heads import BinaryHead, Head, MulticlassHead, Output, RegressionHead
from serving.scorer import SklearnScorer
from serving.signature import Input, Matrix, Signature
from training.devices import KEY, Devices, declare, read_devices
from training.evaluation import FOLDS, Target, band_weights, decile_edges, folds, metrics, true_bands
from training.evidence import Evidence, crossfitted, segments, split, tiers
from training.pipelines import Make, boosted, linear
from training.reference import histograms
from training.report import pages
from training.writer import write_bundle

USE_CASE = "campaigns"
BAND_EDGES, BANDS = [24.0, 32.0], ["<=24", "<=32", ">32"]

Progress = Callable[[str, float], None]

_GENDER = BinaryHead("gender", "F", "female", "gender_score", "gender_decile", edges=[0.5] * 9)
_AGE = RegressionHead("age", "age", "years", "age_band", BAND_EDGES, BANDS)
_BAND = MulticlassHead("age", "age", "age_band", BANDS, weights=[1.0] * len(BANDS))


@dataclass(frozen=True)
class Arm:
    """What an arm trains: its heads (edges and weights still to be fixed) and, for each, how to make its pipeline."""

    name: str
    model: str
    heads: tuple[Head, ...]
    pipelines: Mapping[str, Make]

    def fit(self, inputs: Sequence[Input], matrix: Matrix, targets: Sequence[Target], seed: int) -> dict[str, Pipeline]:
        """Return the heads' fitted pipelines; `targets` has one array for each head."""
        return {
            head.name: self.pipelines[head.name](inputs, matrix, seed).fit(matrix, target)
            for head, target in zip(self.heads, targets, strict=True)
        }


def train(data: Path, out: Path, *, seed: int = 1, progress: Progress = lambda _stage, _done: None) -> dict[str, Bundle]:
    """Train both arms on the devices in `data` and write `out`/<arm>/campaigns; return the bundles by arm.

    `progress` is called with what is being done and the share (0 to 1) that is done. The same data, seed and machine give the
    same figures. Raises TrainingError for data that can't be used, or without the training group's libraries.
    """
    progress("reading the devices", 0.0)
    devices = read_devices(data, seed)
    # One thread: the data is small, waiting for a busy second core costs more than it gives, and sums keep their order.
    with threadpool_limits(1):
        outputs = cross_validate(ARMS, devices, seed, progress)
        progress("judging on the given split", 0.6)
        split = _given_split(ARMS, devices, seed)
        bundles = {}
        for place, arm in enumerate(ARMS):
            progress(f"fitting the {arm.name} on all devices", 0.7 + 0.15 * place)
            bundles[arm.name] = _finish(arm, devices, outputs[arm.name], split[arm.name], out / arm.name / USE_CASE)
    progress("done", 1.0)
    return bundles


def _finish(arm: Arm, devices: Devices, outputs: Sequence[Output], split: Sequence[Output], folder: Path) -> Bundle:
    """Fit an arm on all devices and write its bundle; out-of-fold `outputs` fix its edges and weights and fill its card."""
    seed = devices.source.seed
    inputs = declare(devices.rows)
    matrix = Signature(inputs).parse_text(devices.names, devices.rows)
    targets = _targets(arm, devices)
    pipelines = arm.fit(inputs, matrix, targets, seed)
    own = SklearnScorer(pipelines, arm.heads).scores(matrix)
    heads = [_fixed(*each) for each in zip(arm.heads, targets, outputs, own, strict=True)]
    evidence = _evidence(arm.heads, targets, outputs, split, devices)
    manifest = Manifest(
        format=FORMAT,
        name=f"{USE_CASE} {arm.name}",
        use_case=USE_CASE,
        model=arm.model,
        key=KEY,
        runtime="sklearn",
        heads=heads,
        parity=None,
        libraries={},
        training=devices.source,
        metrics={name: dict(each.figures) for name, each in evidence.splits.items()},
        files={},
        inputs=inputs,
        reference=histograms(inputs, devices.rows, matrix),
    )
    return write_bundle(folder, manifest, pipelines, matrix, partial(pages, evidence=evidence))


def cross_validate(arms: Sequence[Arm], devices: Devices, seed: int, progress: Progress) -> dict[str, list[Output]]:
    """Return out-of-fold outputs of each arm's heads for all devices; vocabularies and models are fitted inside the folds."""
    outputs: dict[str, list[Output]] = {}
    for fold, (train_part, test_part) in enumerate(_folds(devices, seed)):
        inputs = declare([devices.rows[i] for i in train_part])
        matrix = Signature(inputs).parse_text(devices.names, devices.rows)
        for place, arm in enumerate(arms):
            done = (fold + place / len(arms)) / FOLDS
            progress(f"cross-validating the {arm.name}, fold {fold + 1} of {FOLDS}", 0.05 + 0.55 * done)
            targets = [target[train_part] for target in _targets(arm, devices)]
            scorer = SklearnScorer(arm.fit(inputs, matrix[train_part], targets, seed), arm.heads)
            found = scorer.scores(matrix[test_part])
            whole = outputs.setdefault(arm.name, [np.empty((len(matrix), *each.shape[1:])) for each in found])
            for output, each in zip(whole, found, strict=True):
                output[test_part] = each
    return outputs


def _folds(devices: Devices, seed: int) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    return folds(devices.female + 2 * devices.usage + 4 * _bands(devices), seed)


_BOOSTING: dict[str, Any] = {
    "max_iter": 100,
    "learning_rate": 0.08,
    "max_leaf_nodes": 4,
    "min_samples_leaf": 50,
    "l2_regularization": 10.0,
}

ARMS = (
    Arm(
        "champion",
        "Logistic regression for gender, ridge regression for age",
        (_GENDER, _AGE),
        {"gender": linear(LogisticRegression(C=0.05, max_iter=1000)), "age": linear(Ridge(alpha=30.0))},
    ),
    Arm(
        "challenger",
        "Gradient boosting for gender and for three age bands",
        (_GENDER, _BAND),
        {"gender": boosted(max_features=0.5, **_BOOSTING), "age": boosted(encode="all", max_features=0.5, **_BOOSTING)},
    ),
)


def _given_split(arms: Sequence[Arm], devices: Devices, seed: int) -> dict[str, list[Output]]:
    """Return each arm's outputs for the given test part, trained on the rest, by brand and model alone (no usage there)."""
    rows = [row[:2] for row in devices.rows]
    train_part = np.flatnonzero(~devices.test)
    inputs = declare([devices.rows[i] for i in train_part])
    matrix = Signature(inputs).parse_text(devices.names[:2], rows)
    found = {}
    for arm in arms:
        targets = [target[train_part] for target in _targets(arm, devices)]
        scorer = SklearnScorer(arm.fit(inputs, matrix[train_part], targets, seed), arm.heads)
        found[arm.name] = scorer.scores(matrix[devices.test])
    return found


def _targets(arm: Arm, devices: Devices) -> list[Target]:
    kinds: dict[type[Head], Target] = {BinaryHead: devices.female, RegressionHead: devices.age, MulticlassHead: _bands(devices)}
    return [kinds[type(head)] for head in arm.heads]


def _bands(devices: Devices) -> NDArray[np.intp]:
    return _AGE.decisions(devices.age)


def _fixed(head: Head, target: Target, output: Output, own: Output) -> Head:
    """Return the head with the edges or weights that the out-of-fold outputs suggest."""
    if isinstance(head, BinaryHead):
        return msgspec.structs.replace(head, edges=decile_edges(output, own))
    if isinstance(head, MulticlassHead):
        return msgspec.structs.replace(head, weights=band_weights(output, target))
    return head


def _evidence(
    heads: Sequence[Head], targets: Sequence[Target], outputs: Sequence[Output], given: Sequence[Output], devices: Devices
) -> Evidence:
    """Judge the heads by every split. `given` are the outputs for the given test part, the others are out-of-fold."""
    (_, age), (women, ages) = heads, targets
    assert not isinstance(age, BinaryHead)  # noqa: S101 - as both arms declare
    fold = np.empty(len(devices.rows), dtype=np.intp)
    for number, (_, inside) in enumerate(_folds(devices, devices.source.seed)):
        fold[inside] = number

    def fix(head: Head, target: Target, output: Output) -> Head:
        return _fixed(head, target, output, output)

    decisions = [crossfitted(*each, fold, fix) for each in zip(heads, targets, outputs, strict=True)]
    rest = ~devices.test
    on_given = [fix(h, t[rest], o[rest]).decisions(g) for h, t, o, g in zip(heads, targets, outputs, given, strict=True)]
    true, width = true_bands(age, ages), len(age.labels)
    parts = {
        "given_split_brand_and_model": (devices.test, "given split, brand and model only"),
        "cross_validation_with_usage": (devices.usage, "5-fold, devices with usage events"),
        "cross_validation_without_usage": (~devices.usage, "5-fold, devices without"),
        "cross_validation": (np.ones(len(devices.rows), dtype=bool), "5-fold, all devices"),
    }
    splits = {}
    for key, (part, name) in parts.items():
        is_given = key.startswith("given")
        said, decided = (given, on_given) if is_given else ([o[part] for o in outputs], [d[part] for d in decisions])
        figures: dict[str, int | float] = {"customers": int(part.sum())}
        for head, target, output, decision in zip(heads, targets, said, decided, strict=True):
            base = _base(head, target[rest] if is_given else target, int(part.sum()))
            figures |= metrics(head, target[part], output, base, decision)
        splits[key] = split(name, figures, women[part], said[0], decided[0], true[part], decided[1], width)
    groups = {
        "age": np.array(age.labels)[true],
        "gender": np.where(devices.female == 1, "F", "M"),
        "brand, by frequency": tiers([row[0] for row in devices.rows]),
        "usage events": np.where(devices.usage, "with", "without"),
    }
    naive = float((fix(age, ages, outputs[1]).decisions(outputs[1]) == true).mean())
    return Evidence(
        splits=splits,
        segments=segments(groups, women, outputs[0], decisions[0], true, decisions[1], width),
        optimism=naive - float((decisions[1] == true).mean()),
        labels=age.labels,
    )


def _base(head: Head, target: Target, count: int) -> Output:
    """Return what a model without inputs says to `count` customers: the mean, or the bands' shares."""
    if isinstance(head, MulticlassHead):
        return np.tile(np.bincount(target, minlength=len(head.labels)) / len(target), (count, 1))
    return np.full(count, target.mean())
