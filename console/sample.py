"""Requests to try the service with: one example, and rows of the synthetic sample population."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from serving.bundle import load_manifest
from training.population import population, stream


def example_request(bundle: Path) -> dict[str, Any]:
    """Return one valid message: the bundle's own examples."""
    manifest = load_manifest(bundle)
    names, rows = population(manifest, 1, seed=7)
    row = dict(zip(names, rows[0], strict=True)) | {each.name: each.example for each in manifest.inputs}
    return {"data": {"names": list(row), "ndarray": [list(row.values())]}}


def sample(bundle: Path, count: int, seed: int) -> tuple[list[str], Iterator[list[Any]]]:
    """Return the column names and `count` rows of the sample population that the bundle's inputs describe."""
    manifest = load_manifest(bundle)
    chunks = stream(manifest, count, seed)
    return [manifest.key, *(each.name for each in manifest.inputs)], (row for _, rows in chunks for row in rows)
