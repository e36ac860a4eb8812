"""A bundle is one trained model on disk: `model.json` (what it takes, says and achieved) and the model files that it lists.

Invariant: nothing is unpickled or run before the SHA-256 of every listed file has been checked against `model.json`, and the
very bytes that were checked are the ones that are loaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import msgspec

from serving.heads import Head
from serving.scorer import OnnxScorer, Scorer, SklearnScorer
from serving.signature import Input, Matrix, Signature

FORMAT = "contender.bundle/1"
MANIFEST, SKLEARN_MODEL, ONNX_MODEL = "model.json", "model.joblib", "model.onnx"

Runtime = Literal["onnx", "sklearn"]
_MODEL_FILES: dict[Runtime, str] = {"onnx": ONNX_MODEL, "sklearn": SKLEARN_MODEL}
_MODELS: dict[Runtime, Callable[[bytes, Sequence[Head]], Scorer]] = {"onnx": OnnxScorer, "sklearn": SklearnScorer.load}


class BundleError(Exception):
    """A bundle can't be used; the message names the file, what was found and what was expected."""


class BundleMissing(BundleError):
    """The folder or one of its files is not there."""


class BundleTampered(BundleError):
    """A file's SHA-256 is not the one that model.json lists."""


class BundleVersionMismatch(BundleError):
    """The bundle was written with another version of a library than is installed, or in another format."""


class BundleInvalid(BundleError):
    """model.json breaks its schema, or a model file can't be loaded."""


class Histogram(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How an input was distributed among the training customers: the reference for drift and for sample populations.

    Every count is of at least 20 customers; smaller ones are merged or left out (0). `missing` counts nulls. A category has
    `categories`, `other` for the rare ones, and `within` where it refines another input. A number has `points`, the values
    common enough to stand alone, and for the rest `edges` with one count more than edges: below the first, from each to the
    next, from the last on.
    """

    missing: int = 0
    categories: dict[str, int] = {}
    other: int = 0
    within: dict[str, dict[str, int]] = {}
    points: list[tuple[float, int]] = []
    edges: list[float] = []
    counts: list[int] = []


class Parity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the gate between scikit-learn and ONNX saw on `rows` rows.

    The largest differences of a probability and of a value, and how many decisions (deciles, bands) differed: `at_an_edge`
    within the tolerance of one, which rounding explains, and elsewhere (`decisions`), which is a fault.
    """

    rows: int
    passed: bool
    probability: float
    value: float
    decisions: int
    at_an_edge: int


class Training(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the model was trained on: each file's SHA-256, counts of rows, the data's time span (ISO 8601) or null, the seed."""

    files: dict[str, str]
    rows: dict[str, int]
    span: tuple[str, str] | None
    seed: int


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of model.json. `runtime` is the one path by which every placement serves this bundle."""

    format: str
    name: str
    use_case: str
    model: str
    key: str
    runtime: Runtime
    heads: list[Head]
    parity: Parity | None
    libraries: dict[str, str]
    training: Training
    metrics: dict[str, dict[str, int | float]]
    files: dict[str, str]
    inputs: list[Input]
    reference: dict[str, Histogram]


class Bundle:
    """A loaded bundle: it encodes tables by `signature` and answers matrices."""

    def __init__(self, manifest: Manifest, digest: str, scorer: Scorer) -> None:
        self.manifest = manifest
        self.digest = digest
        self.key = manifest.key
        self.signature = Signature(manifest.inputs)
        self.scorer = scorer

    @classmethod
    def load(cls, path: Path, *, runtime: Runtime | None = None) -> Bundle:
        """Load the bundle in the folder `path`; `runtime` overrides the manifest's, for comparing the two.

        Raises BundleMissing, BundleTampered, BundleVersionMismatch or BundleInvalid.
        """
        content = _read(path / MANIFEST)
        manifest = _parse(content, path / MANIFEST)
        files = {name: _read(path / name) for name in manifest.files}
        for name, data in files.items():
            found = hashlib.sha256(data).hexdigest()
            if found != manifest.files[name]:
                raise BundleTampered(f"{path / name}: its SHA-256 is {found}; {MANIFEST} lists {manifest.files[name]}")
        used = runtime or manifest.runtime
        name = _MODEL_FILES[used]
        if name not in files:
            raise BundleInvalid(f"{path / MANIFEST}: files lists no {name}, which the runtime {used!r} needs")
        if used == "sklearn":
            _check_version(path, manifest, "scikit-learn")
        try:
            scorer = _MODELS[used](files[name], manifest.heads)
            bundle = cls(manifest, hashlib.sha256(content).hexdigest(), scorer)
            bundle.answer(bundle.signature.encode([i.name for i in manifest.inputs], [[i.example for i in manifest.inputs]]))
        except Exception as error:
            # Whatever a library raises, these files passed their digests: they were written wrongly, or don't fit each other.
            raise BundleInvalid(f"{path / name}: can't answer its own example: {type(error).__name__}: {error}") from error
        return bundle

    def answer(self, matrix: Matrix) -> dict[str, list[Any]]:
        """Return the answer's columns, without the key's, for a matrix that `signature` encoded."""
        columns: dict[str, list[Any]] = {}
        for head, output in zip(self.manifest.heads, self.scorer.scores(matrix), strict=True):
            columns.update(head.columns(output))
        return columns


def load_manifest(path: Path) -> Manifest:
    """Read the model.json of the bundle in the folder `path`, and nothing else. Raises BundleError."""
    return _parse(_read(path / MANIFEST), path / MANIFEST)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleMissing(f"{path}: {error.strerror}; a bundle holds {MANIFEST} and every file that it lists") from None


def _parse(content: bytes, path: Path) -> Manifest:
    try:
        found = msgspec.json.decode(content).get("format")
        if found != FORMAT:
            raise BundleVersionMismatch(f"{path}: its format is {found!r}; this version reads {FORMAT!r}")
        manifest = msgspec.json.decode(content, type=Manifest)
    except (msgspec.DecodeError, AttributeError) as error:
        raise BundleInvalid(f"{path}: {error}") from None
    for name in manifest.files:
        if Path(name).name != name:
            raise BundleInvalid(f"{path}: files lists {name!r}; a plain file name is expected")
    return manifest


def _check_version(path: Path, manifest: Manifest, library: str) -> None:
    trained = manifest.libraries.get(library)
    try:
        installed = version(library)
    except PackageNotFoundError:
        installed = None
    if trained != installed:
        raise BundleVersionMismatch(
            f"{path / SKLEARN_MODEL}: written with {library} {trained}, but {installed or 'none'} is installed; "
            f"install {library} {trained} or train the bundle again"
        )
