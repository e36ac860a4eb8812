"""Training on files of the real format: made-up ones always, the real ones where they are beside the repository."""

from __future__ import annotations

import csv
import lzma
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from serving.bundle import Bundle
from serving.heads import MulticlassHead
from training.campaigns import ARMS, cross_validate, train
from training.devices import INPUTS, WEEKDAYS, declare, read_devices
from training.errors import TrainingError
from training.evidence import crossfitted, segments, tiers
from training.population import population

REAL = Path(__file__).parents[3] / "shared" / "data"
HEADER = b"device_id,gender,age,split,phone_brand,device_model\n"
LIKES = np.linspace(-2, 2, 60)
"""How much each of the made-up phone models is liked by women, in log-odds."""


def made_up(folder: Path, count: int = 3000, seed: int = 1) -> Path:
    """Write devices.csv.xz and devices_with_events.csv.xz of made-up devices whose model says something about their owner."""
    random = np.random.default_rng(seed)
    models = random.integers(60, size=count)
    female = random.random(count) < 1 / (1 + np.exp(-LIKES[models]))
    age = np.round(random.normal(30 + 3 * LIKES[models], 8)).clip(14, 80)
    devices: list[list[Any]] = []
    usage: list[list[Any]] = []
    for i in range(count):
        key = str(i - count // 2)
        phone = [f"品牌{models[i] % 9}", f"Model {models[i]}" if i % 100 else f"Rare {i}"]
        person = ["F" if female[i] else "M", int(age[i])]
        with_usage = i % 6 == 0
        devices.append([key, *person, "group", *phone, "test" if with_usage or i % 5 == 0 else "train"])
        if with_usage:
            hour = float(random.integers(12) + 12 * female[i])
            used = [int(random.integers(1, 99)), hour, 0.0, 0.0, 35.5, "" if i % 60 == 0 else 12.0, 3, 1.5]
            usage.append([key, *person, *phone, *used, 49, 2.5, 0.4, WEEKDAYS[i % 7], "Cluster 1", "Noise"])
    names = [each.name for each in INPUTS]
    write(folder / "devices.csv.xz", ["device_id", "gender", "age", "group", *names[:2], "split"], devices)
    write(folder / "devices_with_events.csv.xz", ["device_id", "gender", "age", *names], usage)
    return folder


def write(path: Path, names: list[str], rows: list[list[Any]]) -> None:
    with lzma.open(path, "wt", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([names, *rows])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_up(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Bundle], list[tuple[str, float]]]:
    out = tmp_path_factory.mktemp("out")
    told: list[tuple[str, float]] = []
    return out, train(data, out, seed=3, progress=lambda what, share: told.append((what, share))), told


def test_training_twice_writes_the_same_bytes(trained: Any, data: Path, tmp_path: Path) -> None:
    out, bundles, _ = trained
    again = train(data, tmp_path, seed=3)
    for arm, bundle in bundles.items():
        assert again[arm].manifest.metrics == bundle.manifest.metrics
        assert again[arm].digest == bundle.digest
        folder = Path(arm) / "campaigns"
        for name in ("README.md", "REPORT.md", "report.html", "model.joblib", "model.json", "model.onnx"):
            assert (tmp_path / folder / name).read_bytes() == (out / folder / name).read_bytes()


def test_the_report_stands_alone_and_points_at_nobody(trained: Any) -> None:
    out, bundles, _ = trained
    for arm, bundle in bundles.items():
        folder = out / arm / "campaigns"
        page, report, card = ((folder / name).read_text("utf-8") for name in ("report.html", "REPORT.md", "README.md"))
        assert "(REPORT.md)" in card
        assert "(report.html)" in card
        assert len(page) < 300_000
        assert not re.search(r"<script|<link|https?:|url\(|src=", page)
        assert page.count("<svg") == 2 * len(bundle.manifest.metrics)
        for text in (page, report):
            assert "Model 7" not in text
            for segment in ("age: &gt;32" if text is page else "age: >32", "gender: F", "usage events: with"):
                assert segment in text
            figures = bundle.manifest.metrics["cross_validation_with_usage"]
            assert all(f"{value:.4f}" in text for value in figures.values() if isinstance(value, float))


def test_a_decision_is_judged_by_what_was_chosen_on_other_folds() -> None:
    head = MulticlassHead("band", "value", "band", ["a", "b"], [1.0, 1.0])
    target = np.array([0, 0, 1, 1])
    output = np.array([[0.4, 0.6], [0.3, 0.7], [0.4, 0.6], [0.3, 0.7]])
    seen: list[list[int]] = []

    def fix(head: Any, target: Any, output: Any) -> Any:
        seen.append(target.tolist())
        return msgspec.structs.replace(head, weights=[2.0 if target.mean() == 1 else 1.0, 1.0])

    decisions = crossfitted(head, target, output, np.array([0, 0, 1, 1]), fix)
    assert seen == [[1, 1], [0, 0]]
    assert decisions.tolist() == [0, 1, 1, 1]


def test_small_segments_are_left_out_and_tiers_follow_frequency() -> None:
    women, scores, whole = np.array([1, 0] * 210), np.linspace(0, 1, 420), np.zeros(420, dtype=np.intp)
    groups = {"kind": np.array(["large"] * 221 + ["small"] * 199)}
    found = segments(groups, women, scores, whole + 2, whole, whole, 3)
    assert [(each.name, each.customers, each.assigned_positive, each.answered_bands) for each in found] == [
        ("large", 221, 1.0, [1.0, 0.0, 0.0])
    ]
    assert tiers(["a"] * 6 + ["b"] * 3 + ["c"]).tolist() == ["1 frequent"] * 6 + ["2 less frequent"] * 3 + ["3 rare"]


def test_progress_is_told_and_grows_to_one(trained: Any) -> None:
    _, _, told = trained
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert "cross-validating the challenger, fold 5 of 5" in [what for what, _ in told]


def test_both_arms_learn_what_there_is_to_learn_and_serve_with_and_without_usage(trained: Any) -> None:
    _, bundles, _ = trained
    for bundle in bundles.values():
        metrics = bundle.manifest.metrics
        assert metrics["cross_validation_without_usage"]["gender_roc_auc"] > 0.7
        # The hour gives the gender away, for those whose hour is known.
        assert metrics["cross_validation_with_usage"]["gender_roc_auc"] > 0.9
        names = ["phone_brand", "device_model", "popular_hour"]
        rows = [["品牌0", "Model 0", None], ["品牌0", "Model 0", 3], ["品牌0", "Model 0", 20], ["new", "new", None]]
        scores = bundle.answer(bundle.signature.encode(names, rows))["gender_score"]
        assert scores[1] < scores[2]
        assert scores[0] < scores[3] - 0.03


def test_a_model_of_few_devices_is_neither_learned_nor_stored(trained: Any) -> None:
    for bundle in trained[1].values():
        stored = (trained[0] / bundle.manifest.name.split()[1] / "campaigns" / "model.json").read_text(encoding="utf-8")
        assert "Model 7" in stored
        assert "Rare" not in stored
        seldom = bundle.signature.encode(["phone_brand", "device_model"], [["品牌0", "Rare 100"], ["品牌0", "never seen"]])
        assert seldom[0].tolist() == pytest.approx(seldom[1].tolist(), nan_ok=True)


def test_another_population_can_be_drawn_and_answered(trained: Any) -> None:
    for bundle in trained[1].values():
        names, rows = population(bundle.manifest, 200, seed=1)
        assert len(bundle.answer(bundle.signature.encode(names, rows, ignore=bundle.key))["age_band"]) == 200


def test_shuffled_labels_are_predicted_by_chance(data: Path) -> None:
    devices = read_devices(data, seed=1)
    kept = devices.female.copy()
    order = np.random.default_rng(5).permutation(len(devices.rows))
    devices.female[:], devices.age[:] = devices.female[order], devices.age[order]
    outputs = cross_validate(ARMS, devices, 1, lambda _what, _share: None)
    for arm in ARMS:
        # High-cardinality encodings are where leakage would show: one model in fifty devices tells its owners' labels.
        assert abs(roc_auc_score(devices.female, outputs[arm.name][0]) - 0.5) < 0.04
    devices.female[:] = kept
    unshuffled = cross_validate(ARMS[:1], devices, 1, lambda _what, _share: None)
    assert roc_auc_score(devices.female, unshuffled["champion"][0]) > 0.7


def test_devices_are_joined_by_id_and_stay_text(data: Path) -> None:
    devices = read_devices(data, seed=1)
    assert (len(devices.rows), int(devices.usage.sum())) == (3000, 500)
    assert devices.source.rows == {"devices": 3000, "devices_with_events": 500}
    assert devices.source.span is None
    row = devices.rows[int(np.flatnonzero(devices.usage)[1])]
    assert row[devices.names.index("total_apps_installed")] == "35.5"
    assert {len(row) for row in devices.rows} == {len(INPUTS)}
    brands = next(each for each in declare(devices.rows) if each.name == "phone_brand")
    assert len(brands.categories) == 9


def test_the_time_span_is_that_of_the_raw_events(data: Path, tmp_path: Path) -> None:
    made_up(tmp_path, 50)
    times = ["2016-05-02 10:00:00", "2016-04-30 23:59:59", "2016-05-07 00:00:00"]
    write(tmp_path / "events_head.csv.xz", ["event_id", "timestamp"], [[i, time] for i, time in enumerate(times)])
    assert read_devices(tmp_path, seed=1).source.span == ("2016-04-30T23:59:59", "2016-05-07T00:00:00")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("devices.csv.xz", None, "devices.csv.xz: "),
        ("devices_with_events.csv.xz", None, "devices_with_events.csv.xz: "),
        ("devices.csv.xz", b"not compressed", "devices.csv.xz: "),
        ("devices.csv.xz", lzma.compress(b"device_id,gender\n1,F\n"), "column 'age' is missing; found device_id, gender"),
        (
            "devices.csv.xz",
            lzma.compress(HEADER + b"1,F\n"),
            "line 2 has too few values",
        ),
        (
            "devices.csv.xz",
            lzma.compress(HEADER + b"1,F,old,test,a,b\n"),
            "age 'old' is no",
        ),
    ],
)
def test_data_that_cannot_be_used_is_refused_by_name(
    data: Path, tmp_path: Path, name: str, content: bytes | None, said: str
) -> None:
    for each in ("devices.csv.xz", "devices_with_events.csv.xz"):
        (tmp_path / each).write_bytes((data / each).read_bytes())
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(TrainingError) as refused:
        train(tmp_path, tmp_path / "out")
    assert said in str(refused.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.skipif(not REAL.exists(), reason="the real data, which may not be published, is not beside the repository")
def test_the_real_data_gives_models_worth_serving(tmp_path: Path) -> None:
    bundles = train(REAL, tmp_path)
    for arm, bundle in bundles.items():
        assert bundle.manifest.runtime == "onnx"
        metrics = bundle.manifest.metrics
        assert metrics["cross_validation_with_usage"]["gender_roc_auc"] >= 0.61, arm
        assert metrics["given_split_brand_and_model"]["gender_roc_auc"] >= 0.58, arm
        assert metrics["cross_validation_without_usage"]["gender_roc_auc"] >= 0.57, arm
        assert sum(path.stat().st_size for path in (tmp_path / arm / "campaigns").iterdir()) < 3_000_000
    champion, challenger = (bundles[arm.name].manifest for arm in ARMS)
    for split in champion.metrics.values():
        assert split["age_mean_absolute_error"] < split["age_base_mean_absolute_error"]
    assert challenger.metrics["cross_validation_with_usage"]["age_log_loss"] <= 1.04
    assert challenger.metrics["given_split_brand_and_model"]["age_log_loss"] <= 1.06
    assert challenger.metrics["cross_validation_without_usage"]["age_log_loss"] <= 1.06
    band = challenger.heads[1]
    assert isinstance(band, MulticlassHead)
    assert band.weights[0] > max(band.weights[1:])
    # What is shipped was trained on this data by these lines.
    shipped = Bundle.load(Path(__file__).parents[2] / "models" / "champion" / "campaigns").manifest
    assert shipped.training == champion.training
    for part, figures in champion.metrics.items():
        assert shipped.metrics[part] == pytest.approx(figures, abs=1e-3)
