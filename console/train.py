"""`contender train`: a use case's pipeline, with its progress shown."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from console.errors import CommandError


def train(use_case: str, data: Path, out: Path, seed: int) -> None:
    """Train both arms and write their bundles into `out`. Raises CommandError for an unknown use case or missing data."""
    if use_case != "campaigns":
        raise CommandError(f"no training pipeline for {use_case!r}; known: campaigns")
    from training import campaigns

    screen = Console(stderr=True)
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=screen) as progress:
        task = progress.add_task("training", total=1.0)
        campaigns.train(
            data, out, seed=seed, progress=lambda what, share: progress.update(task, description=what, completed=share)
        )
