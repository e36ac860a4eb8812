"""A bundle is loaded only as it was written: digests before unpickling, versions, schema, and two runtimes that agree."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge

from serving.bundle import (
    Bundle,
    BundleError,
    BundleInvalid,
    BundleMissing,
    BundleTampered,
    BundleVersionMismatch,
    Histogram,
    Manifest,
    Runtime,
    Training,
    load_manifest,
)
from serving.heads import BinaryHead, Head, MulticlassHead, RegressionHead
from serving.scorer import SklearnScorer
from serving.signature import Input, Matrix, Signature
from training.conversion import to_onnx
from training.parity import compare, reference_rows
from training.pipelines import boosted, linear
from training.population import population
from training.writer import write_bundle

ROOT = Path(__file__).parents[2]
SHIPPED = [ROOT / "models" / arm / "campaigns" for arm in ("champion", "challenger")]

INPUTS = [
    Input("brand", "category", "brand", "a", categories=["a", "b", "c"]),
    Input("visits", "integer", "visits", 3, missing=True, minimum=0),
    Input("share", "number", "share", 0.5, missing=True, minimum=0, maximum=1),
]
HEADS: list[Head] = [
    BinaryHead("buys", "1", "buyer", "score", "decile", [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),
    RegressionHead("age", "age", "years", "band", [24.0, 32.0], ["young", "middle", "old"]),
    MulticlassHead("channel", "none", "channel", ["sms", "push", "mail"], [1.0, 1.2, 0.9]),
]


def encoded(count: int = 600) -> Matrix:
    random = np.random.default_rng(3)
    rows = [
        [
            str(random.choice(list("abcd"))),
            *([None, None] if random.random() < 0.5 else [int(random.integers(99)), random.random()]),
        ]
        for _ in range(count)
    ]
    return Signature(INPUTS).encode([each.name for each in INPUTS], rows)


def fitted(matrix: Matrix, shift: float = 0.0) -> dict[str, Any]:
    """Pipelines of every kind that the writer knows. `shift` moves the intercept of the first."""
    random = np.random.default_rng(4)
    buys = (random.random(len(matrix)) < 0.3 + 0.2 * (matrix[:, 0] == 0)).astype(int)
    age = 30 + 3 * matrix[:, 0] + random.normal(0, 5, len(matrix))
    pipelines = {
        "buys": linear(LogisticRegression())(INPUTS, matrix, 1).fit(matrix, buys),
        "age": linear(Ridge())(INPUTS, matrix, 1).fit(matrix, age),
        "channel": boosted(max_iter=20)(INPUTS, matrix, 1).fit(matrix, random.integers(3, size=len(matrix))),
    }
    pipelines["buys"].steps[-1][1].intercept_ += shift
    return pipelines


def manifest() -> Manifest:
    return Manifest(
        format="contender.bundle/1",
        name="small",
        use_case="test",
        model="small",
        key="customer",
        runtime="sklearn",
        heads=HEADS,
        parity=None,
        libraries={},
        training=Training(files={}, rows={}, span=None, seed=1),
        metrics={},
        files={},
        inputs=INPUTS,
        reference={each.name: Histogram() for each in INPUTS},
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "small"
    matrix = encoded()
    write_bundle(folder, manifest(), fitted(matrix), matrix, lambda m: {"README.md": f"# {m.name}\n"})
    return folder


@pytest.fixture
def copy(small: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small, tmp_path / "copy"))


def edit(folder: Path, **changes: Any) -> None:
    """Change fields of model.json, and make the listed digests true again unless `files` is given."""
    path = folder / "model.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["files"] = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in content["files"]}
    path.write_text(json.dumps(content | changes), encoding="utf-8")


def test_a_bundle_is_loaded_as_it_was_written(small: Path) -> None:
    bundle = Bundle.load(small)
    assert bundle.digest == hashlib.sha256((small / "model.json").read_bytes()).hexdigest()
    assert (bundle.key, bundle.manifest.runtime) == ("customer", "onnx")
    assert load_manifest(small) == bundle.manifest
    matrix = bundle.signature.encode(["customer", "brand"], [["1", "a"], ["2", "new"]], ignore="customer")
    answer = bundle.answer(matrix)
    assert list(answer) == ["score", "decile", "age", "band", "none", "channel"]
    assert all(len(values) == 2 for values in answer.values())
    assert answer["none"] == [None, None]
    json.dumps(answer)  # plain Python values


@pytest.mark.parametrize("name", ["model.joblib", "model.onnx"])
@pytest.mark.parametrize("runtime", ["onnx", "sklearn"])
def test_any_changed_file_is_refused_by_either_runtime(copy: Path, name: str, runtime: Runtime) -> None:
    path = copy / name
    content = bytearray(path.read_bytes())
    listed = hashlib.sha256(content).hexdigest()
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleTampered) as refused:
        Bundle.load(copy, runtime=runtime)
    assert str(refused.value) == (f"{path}: its SHA-256 is {hashlib.sha256(content).hexdigest()}; model.json lists {listed}")


class Trap:
    """Unpickling this makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_nothing_is_unpickled_before_its_digest_is_checked(copy: Path, tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    (copy / "model.joblib").write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(BundleTampered):
        Bundle.load(copy, runtime="sklearn")
    assert not sprung.exists()
    # The trap works: with its digest listed it springs.
    edit(copy)
    with pytest.raises(BundleInvalid):
        Bundle.load(copy, runtime="sklearn")
    assert sprung.exists()


@pytest.mark.parametrize("name", ["model.json", "model.joblib", "model.onnx"])
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(BundleMissing, match=re.escape(f"{copy / name}: No such file")):
        Bundle.load(copy)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleMissing, match="nowhere"):
        Bundle.load(tmp_path / "nowhere")


def test_another_scikit_learn_is_refused_with_both_versions_but_only_where_it_is_used(copy: Path) -> None:
    installed = load_manifest(copy).libraries["scikit-learn"]
    edit(copy, libraries={"scikit-learn": "0.1.2"})
    Bundle.load(copy, runtime="onnx")
    with pytest.raises(BundleVersionMismatch, match=re.escape(f"scikit-learn 0.1.2, but {installed} is installed")):
        Bundle.load(copy, runtime="sklearn")


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"format": "contender.bundle/9"}, BundleVersionMismatch, "'contender.bundle/9'"),
        ({"surprise": 1}, BundleInvalid, "unknown field `surprise`"),
        ({"runtime": "magic"}, BundleInvalid, "Invalid enum value 'magic'"),
        ({"heads": [{"kind": "oracle"}]}, BundleInvalid, "Invalid value 'oracle'"),
        ({"files": {"../model.onnx": "0"}}, BundleInvalid, "'../model.onnx'; a plain file name is expected"),
        ({"files": {}}, BundleInvalid, "files lists no model.onnx"),
        ({"inputs": []}, BundleInvalid, "model.onnx: can't answer its own example"),
    ],
)
def test_a_model_json_that_breaks_its_schema_is_refused(
    copy: Path, changes: dict[str, Any], error: type[BundleError], said: str
) -> None:
    edit(copy, **changes)
    with pytest.raises(error, match=re.escape(said)):
        Bundle.load(copy)


def test_edges_that_do_not_descend_are_refused(copy: Path) -> None:
    heads = json.loads((copy / "model.json").read_text(encoding="utf-8"))["heads"]
    heads[0]["edges"].reverse()
    edit(copy, heads=heads)
    with pytest.raises(BundleInvalid, match="nine descending scores"):
        Bundle.load(copy)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'"x"', b"\xff"])
def test_a_model_json_that_is_no_object_is_refused(copy: Path, content: bytes) -> None:
    (copy / "model.json").write_bytes(content)
    with pytest.raises(BundleInvalid, match=re.escape(str(copy / "model.json"))):
        Bundle.load(copy)


@pytest.mark.parametrize(("name", "runtime"), [("model.onnx", "onnx"), ("model.joblib", "sklearn")])
def test_a_model_that_was_written_wrongly_is_refused_at_load(copy: Path, name: str, runtime: Runtime) -> None:
    (copy / name).write_bytes(b"no model at all")
    edit(copy)
    with pytest.raises(BundleInvalid, match=re.escape(f"{copy / name}: can't answer")):
        Bundle.load(copy, runtime=runtime)


def test_writing_again_leaves_no_stale_graph(copy: Path) -> None:
    matrix = encoded()
    write_bundle(copy, manifest(), fitted(matrix), matrix, lambda m: {}, convert=broken)
    assert sorted(path.name for path in copy.iterdir()) == ["README.md", "model.joblib", "model.json"]


def broken(pipelines: dict[str, Any], heads: Sequence[Head], width: int) -> bytes:
    """A conversion that is wrong by a little: one intercept is off by a thousandth."""
    return to_onnx(fitted(encoded(), shift=1e-3), heads, width)


def test_a_broken_conversion_is_refused_and_scikit_learn_serves(tmp_path: Path) -> None:
    matrix = encoded()
    bundle = write_bundle(tmp_path, manifest(), fitted(matrix), matrix, lambda m: {}, convert=broken)
    parity = bundle.manifest.parity
    assert parity is not None
    assert not parity.passed
    assert 1e-4 < parity.probability < 1e-3
    assert (bundle.manifest.runtime, list(bundle.manifest.files)) == ("sklearn", ["model.joblib"])
    assert isinstance(bundle.scorer, SklearnScorer)
    assert not (tmp_path / "model.onnx").exists()


def test_the_gate_sees_a_conversion_that_is_wrong_only_about_missing_values(tmp_path: Path) -> None:
    def convert(pipelines: dict[str, Any], heads: Sequence[Head], width: int) -> bytes:
        other = fitted(matrix)
        other["age"].named_steps["features"].named_transformers_["numbers"].named_steps["fill"].statistics_[:] = 0.01
        return to_onnx(other, heads, width)

    matrix = encoded()
    parity = write_bundle(tmp_path, manifest(), fitted(matrix), matrix, lambda m: {}, convert=convert).manifest.parity
    assert parity is not None
    assert not parity.passed


class Shifted:
    """A scorer whose outputs are another's plus a constant."""

    def __init__(self, scorer: SklearnScorer, by: float) -> None:
        self.scorer = scorer
        self.by = by

    def scores(self, matrix: Matrix) -> list[Any]:
        return [output + self.by for output in self.scorer.scores(matrix)]


@pytest.mark.parametrize(("by", "passed"), [(0.0, True), (5e-6, True), (2e-5, False), (float("nan"), False)])
def test_the_gate_passes_exactly_what_is_within_its_tolerance(by: float, passed: bool) -> None:
    matrix = encoded(100)
    scorer = SklearnScorer(fitted(matrix), HEADS)
    assert compare(scorer, Shifted(scorer, by), HEADS, matrix).passed is passed


def test_the_gate_counts_decisions_that_differ_near_an_edge_and_elsewhere() -> None:
    class Fixed:
        def __init__(self, values: Sequence[float]) -> None:
            self.values = np.array(values)

        def scores(self, matrix: Matrix) -> list[Any]:
            return [self.values[: len(matrix)]]

    matrix = np.zeros((3, 1), dtype=np.float32)
    parity = compare(Fixed([0.5 - 1e-6, 0.3, 0.6]), Fixed([0.5 + 1e-6, 0.3, 0.62]), HEADS[:1], matrix)
    assert (parity.at_an_edge, parity.decisions, parity.passed) == (1, 0, False)
    parity = compare(Fixed([0.5 - 1e-6, 0.3, 0.59]), Fixed([0.5 + 1e-6, 0.3, 0.62]), HEADS[:1], matrix)
    assert (parity.at_an_edge, parity.decisions, parity.passed) == (1, 1, False)


def test_the_gate_looks_at_missing_unknown_and_extreme_values() -> None:
    rows = reference_rows(encoded(), INPUTS, np.random.default_rng(1))
    assert len(rows) == 10_000
    assert {-1.0} <= set(rows[:, 0].tolist()) <= {-1.0, 0.0, 1.0, 2.0}
    assert np.isnan(rows[:, 1:]).any(axis=0).all()
    assert (np.nanmin(rows[:, 2]), np.nanmax(rows[:, 2])) == (0, 1)


@pytest.fixture(scope="module", params=[path.parent.name for path in SHIPPED])
def shipped(request: pytest.FixtureRequest) -> Iterator[Bundle]:
    yield Bundle.load(ROOT / "models" / request.param / "campaigns")


def test_shipped_bundles_are_small_and_carry_a_card() -> None:
    for folder in SHIPPED:
        assert sum(path.stat().st_size for path in folder.iterdir()) < 3_000_000
        assert (folder / "README.md").read_text(encoding="utf-8").startswith("# campaigns ")


def test_shipped_bundles_answer_the_sample_population(shipped: Bundle) -> None:
    names, rows = population(shipped.manifest, 3000, seed=5)
    answer = shipped.answer(shipped.signature.encode(names, rows, ignore=shipped.key))
    assert list(answer) == ["gender_score", "gender_decile", "age", "age_band"]
    assert all(0 < score < 1 for score in answer["gender_score"])
    assert set(answer["gender_decile"]) == set(range(1, 11))
    assert set(answer["age_band"]) <= {"<=24", "<=32", ">32"}
    assert all(age is None or 15 < age < 60 for age in answer["age"])


def test_shipped_bundles_passed_the_gate_and_answer_a_row_alone_as_in_a_batch(shipped: Bundle) -> None:
    assert shipped.manifest.runtime == "onnx"
    parity = shipped.manifest.parity
    assert parity is not None
    assert parity.passed
    assert parity.rows >= 5000
    names, rows = population(shipped.manifest, 400, seed=6)
    matrix = shipped.signature.encode(names, rows, ignore=shipped.key)
    other = Bundle.load(ROOT / "models" / shipped.manifest.name.split()[1] / "campaigns", runtime="sklearn")
    alone = [shipped.scorer.scores(matrix[i : i + 1]) for i in range(len(matrix))]
    for place, (head, output, expected) in enumerate(
        zip(shipped.manifest.heads, shipped.scorer.scores(matrix), other.scorer.scores(matrix), strict=True)
    ):
        tolerance = 1e-4 if isinstance(head, RegressionHead) else 1e-5
        singles = np.concatenate([outputs[place] for outputs in alone])
        assert np.abs(output - expected).max() <= tolerance
        assert np.abs(output - singles).max() <= tolerance
        assert (head.decisions(output) == head.decisions(expected)).all()
        assert (head.decisions(output) == head.decisions(singles)).all()


def test_shipped_bundles_tell_nothing_of_fewer_than_twenty_customers(shipped: Bundle) -> None:
    for each in shipped.manifest.inputs:
        histogram = shipped.manifest.reference[each.name]
        within = [count for counts in histogram.within.values() for count in counts.values()]
        points = [count for _, count in histogram.points]
        counts = [*histogram.categories.values(), *within, *points, *histogram.counts, histogram.other, histogram.missing]
        assert all(count == 0 or count >= 20 for count in counts), each.name
        assert set(each.categories) == set(histogram.categories)
        assert len(histogram.edges) == max(len(histogram.counts) - 1, 0)


def test_shipped_bundles_hold_no_customer_key() -> None:
    for folder in SHIPPED:
        for name in ("model.json", "README.md"):
            # A 64-bit id is 15 to 20 digits that no fraction's point precedes; digests have letters in between.
            text = (folder / name).read_text(encoding="utf-8")
            assert not re.search(r"(?<![\w.])-?\d{15,20}(?![\w.])", text)


def test_serving_by_onnx_imports_no_training_library() -> None:
    code = (
        "import sys; from pathlib import Path; from serving.bundle import Bundle;"
        f"Bundle.load(Path({str(SHIPPED[0])!r}));"
        "print([name for name in ('sklearn', 'joblib', 'pandas', 'scipy', 'skl2onnx', 'onnx') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_model_json_is_readable_and_read_back_unchanged(small: Path) -> None:
    text = (SHIPPED[0] / "model.json").read_text(encoding="utf-8")
    assert "小米" in text
    assert text.startswith('{\n "format": "contender.bundle/1",\n')
    content = msgspec.json.encode(load_manifest(small))
    assert msgspec.json.decode(content, type=Manifest) == load_manifest(small)
