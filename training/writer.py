"""Writing a bundle: the pipelines and their ONNX graph, the parity gate, the pages for people, and `model.json` last.

Invariant: a folder holds either a bundle that the real loader has just taken, or none: `model.json` goes first and comes last.
"""

from __future__ import annotations

import hashlib
import io
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import joblib
import msgspec
import numpy as np

from serving.bundle import MANIFEST, ONNX_MODEL, SKLEARN_MODEL, Bundle, Manifest, Parity
from serving.heads import Head
from serving.scorer import OnnxScorer, SklearnScorer
from serving.signature import Matrix
from training.conversion import to_onnx
from training.parity import compare, reference_rows

LIBRARIES = ("scikit-learn", "numpy", "joblib", "onnxruntime", "skl2onnx", "onnx")

Convert = Callable[[dict[str, Any], Sequence[Head], int], bytes]


def write_bundle(
    folder: Path,
    manifest: Manifest,
    pipelines: dict[str, Any],
    matrix: Matrix,
    pages: Callable[[Manifest], Mapping[str, str]],
    *,
    convert: Convert = to_onnx,
) -> Bundle:
    """Write a bundle and return it as loaded from the folder.

    `runtime`, `parity`, `libraries` and `files` of the manifest are filled in here: ONNX if the gate passes on rows drawn from
    the encoded `matrix`, else scikit-learn without a graph. `pages` makes from the manifest what people read beside it, texts
    by file name.
    """
    files = {SKLEARN_MODEL: _pickled(pipelines)}
    graph = convert(pipelines, manifest.heads, matrix.shape[1])
    random = np.random.default_rng(manifest.training.seed)
    parity = _gate(files[SKLEARN_MODEL], graph, manifest, reference_rows(matrix, manifest.inputs, random))
    if parity.passed:
        files[ONNX_MODEL] = graph
    manifest = msgspec.structs.replace(
        manifest,
        runtime="onnx" if parity.passed else "sklearn",
        parity=parity,
        libraries={"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        files={name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    )
    folder.mkdir(parents=True, exist_ok=True)
    for stale in (MANIFEST, ONNX_MODEL):
        (folder / stale).unlink(missing_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    for name, text in pages(manifest).items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n")
    return Bundle.load(folder)


def _pickled(pipelines: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    joblib.dump(pipelines, buffer, compress=("zlib", 6))
    return buffer.getvalue()


def _gate(pickled: bytes, graph: bytes, manifest: Manifest, rows: Matrix) -> Parity:
    """Compare what was written, not what was fitted: the pipelines are read back from their bytes."""
    reference = SklearnScorer.load(pickled, manifest.heads)
    return compare(reference, OnnxScorer(graph, manifest.heads), manifest.heads, rows)
