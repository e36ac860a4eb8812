"""Raw outputs become deciles and bands by the arithmetic of DESIGN §3, for one row as for many."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.heads import BinaryHead, Head, MulticlassHead, RegressionHead
from training.evaluation import GAP, band_weights, confusion, decile_edges, decile_table, metrics, true_bands

BANDS = ["<=24", "<=32", ">32"]
EDGES = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]

scores = st.floats(0, 1, width=32)


def gender(edges: list[float] = EDGES) -> BinaryHead:
    return BinaryHead("gender", "F", "female", "gender_score", "gender_decile", edges)


def age() -> RegressionHead:
    return RegressionHead("age", "age", "years", "age_band", [24.0, 32.0], BANDS)


def band(weights: list[float]) -> MulticlassHead:
    return MulticlassHead("age", "age", "age_band", BANDS, weights)


@given(st.lists(scores, min_size=9, max_size=9), st.lists(scores, min_size=1, max_size=30))
def test_decile_is_one_plus_the_edges_strictly_above(edges: list[float], given_scores: list[float]) -> None:
    edges = sorted(edges, reverse=True)
    # Edges themselves are among the scores, so that ties are met.
    values = [*given_scores, *edges]
    columns = gender(edges).columns(np.array(values, dtype=np.float64))
    assert columns["gender_decile"] == [1 + sum(edge > value for edge in edges) for value in values]
    assert columns["gender_score"] == values


def test_a_score_on_an_edge_belongs_above_it() -> None:
    assert gender().columns(np.array([1.0, 0.9, 0.89, 0.1, 0.09]))["gender_decile"] == [1, 1, 2, 9, 10]


@pytest.mark.parametrize(
    ("years", "label"),
    [
        (-1, "<=24"),
        (24, "<=24"),
        (24.0001, "<=32"),
        (32, "<=32"),
        (32.0001, ">32"),
        (np.nextafter(np.float32(32), np.float32(99)), ">32"),
    ],
)
def test_bands_are_of_the_unrounded_value(years: float, label: str) -> None:
    for dtype in (np.float32, np.float64):
        assert age().columns(np.array([years], dtype=dtype))["age_band"] == [label]


def test_a_classifier_gives_bands_and_no_age() -> None:
    outputs = np.array([[0.2, 0.5, 0.3], [0.5, 0.3, 0.2], [0.3, 0.3, 0.4]])
    assert band([1, 1, 1]).columns(outputs) == {"age": [None] * 3, "age_band": ["<=32", "<=24", ">32"]}
    assert band([2.6, 1, 1]).columns(outputs)["age_band"] == ["<=24", "<=24", "<=24"]


@given(st.lists(st.tuples(scores, st.floats(10, 90, width=32), scores, scores), min_size=2, max_size=20))
def test_a_row_gets_the_same_alone_as_in_a_batch(rows: list[tuple[float, float, float, float]]) -> None:
    matrix = np.array(rows, dtype=np.float32)
    cases: list[tuple[Head, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]] = [
        (gender(), matrix[:, 0]),
        (age(), matrix[:, 1]),
        (band([1.5, 1, 0.7]), matrix[:, [0, 2, 3]]),
    ]
    for head, output in cases:
        whole = head.columns(output)
        for i in range(len(rows)):
            assert head.columns(output[i : i + 1]) == {name: [values[i]] for name, values in whole.items()}


@given(st.floats(0, 1), st.floats(0, 1e-3))
def test_a_score_beyond_its_margin_of_the_edges_keeps_its_decile(score: float, step: float) -> None:
    head = gender()
    margin = head.margins(np.array([score]))[0]
    if step < margin:
        assert head.decisions(np.array([score + step]))[0] == head.decisions(np.array([score]))[0]


@pytest.mark.parametrize("edges", [EDGES[:8], EDGES[::-1], []])
def test_edges_must_be_nine_and_descending(edges: list[float]) -> None:
    with pytest.raises(ValueError, match="nine descending scores"):
        gender(edges)


def test_bands_and_weights_must_fit_each_other() -> None:
    with pytest.raises(ValueError, match="one label more"):
        RegressionHead("age", "age", "years", "age_band", [24.0], BANDS)
    with pytest.raises(ValueError, match="one above 0 for each"):
        band([1, 0, 1])


def test_edges_cut_the_population_into_tenths_and_keep_off_the_scores() -> None:
    random = np.random.default_rng(1)
    crowds = random.choice(random.random(300), size=20_000)  # 300 phone models, each with one score
    out_of_fold = crowds + random.normal(0, 1e-3, size=len(crowds))
    edges = decile_edges(out_of_fold, crowds)
    counts = np.bincount(gender(edges).decisions(crowds), minlength=11)[1:]
    assert counts.sum() == len(crowds)
    assert (np.abs(counts - 2000) < 250).all()
    assert np.abs(crowds[:, None] - np.array(edges)).min() >= GAP / 2 - 1e-6


def test_edges_of_a_constant_score_put_everybody_into_one_decile() -> None:
    edges = decile_edges(np.full(100, 0.3), np.full(100, 0.3))
    assert set(gender(edges).decisions(np.full(5, 0.3)).tolist()) == {1}


def test_weights_answer_each_band_about_as_often_as_it_is_true() -> None:
    random = np.random.default_rng(2)
    target = random.choice(3, size=20_000, p=[0.24, 0.41, 0.35])
    outputs = random.dirichlet([24, 41, 35], size=len(target))
    outputs[np.arange(len(target)), target] += 0.03
    outputs /= outputs.sum(axis=1, keepdims=True)
    plain = np.bincount(outputs.argmax(axis=1), minlength=3) / len(target)
    weighted = np.bincount(band(band_weights(outputs, target)).decisions(outputs), minlength=3) / len(target)
    assert plain[0] < 0.1
    assert np.abs(weighted - [0.24, 0.41, 0.35]).max() < 0.01


def test_figures_on_a_case_worked_by_hand() -> None:
    target = np.array([1, 0, 1, 0])
    output = np.array([0.95, 0.85, 0.05, 0.01])
    found = metrics(gender(), target, output, np.full(4, 0.5), gender().decisions(output))
    assert found["gender_roc_auc"] == 0.75  # of four pairs, the positive leads in three
    assert found["gender_base_log_loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert decile_table(gender().decisions(output), target)[0] == (1, 1, 1.0, 2.0)
    real, guessed = np.array([20.0, 40.0]), np.array([30.0, 36.0])
    years = metrics(age(), real, guessed, np.array([30.0, 30.0]), age().decisions(guessed))
    assert years == {"age_mean_absolute_error": 7.0, "age_base_mean_absolute_error": 10.0, "age_band_accuracy": 0.5}
    assert confusion(true_bands(age(), real), age().decisions(guessed), 3).tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 1]]
