"""`contender train`: a use case's pipeline, with its progress shown."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from console.errors import CommandError


def train(use_case: str, data: Path, out: Path, seed: int) -> None:
    """Train both arms and write their bundles into `out`. Raises CommandError for an unknown use case or unusable data."""
    if use_case != "campaigns":
        raise CommandError(f"no training pipeline for {use_case!r}; known: campaigns")
    from training.campaigns import train as train_campaigns
    from training.errors import TrainingError

    screen = Console(stderr=True)
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=screen) as progress:
        task = progress.add_task("training", total=1.0)

        def show(stage: str, done: float) -> None:
            progress.update(task, description=stage, completed=done)

        try:
            bundles = train_campaigns(data, out, seed=seed, progress=show)
        except TrainingError as error:
            raise CommandError(str(error)) from None
    for arm, bundle in bundles.items():
        screen.print(f"[bold]{arm}[/bold], served by {bundle.manifest.runtime}", highlight=False)
        for split, figures in bundle.manifest.metrics.items():
            screen.print(f"  {split}", highlight=False)
            for name, value in figures.items():
                screen.print(f"    {name:<36}{value:>12.6g}", highlight=False)
    screen.print(f"written to {out}/*/{use_case}; the model cards are the README.md there")
