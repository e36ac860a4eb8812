"""The commands. Each reads its options, calls one function, and prints; one clear line for each error.

Invariant: exit code 0 only if what was asked for was done.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table as Grid

from console import changes, ledger
from console.changes import DEFAULT_GRAPH, GraphOption, HomeOption, TestOption
from console.errors import CommandError
from console.home import Home
from experiment.declaration import DeclarationError
from ledger.errors import LedgerError
from router.epoch import CHAMPION
from router.errors import RouterError
from serving.bundle import BundleError
from serving.campaigns import CampaignsError
from serving.errors import ServingError
from serving.settings import SettingsError

ERRORS = (CommandError, BundleError, CampaignsError, DeclarationError, LedgerError, RouterError, ServingError, SettingsError)
"""What a command may end with; everything else is a fault of the program and shows its traceback."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Champion-challenger serving for scikit-learn models: splits customers, assigns campaigns, keeps the evidence.",
)
StoreOption = ledger.StoreOption


@app.command()
def serve(
    file: Annotated[Path, typer.Argument(help="A SeldonDeployment's manifest.")] = DEFAULT_GRAPH,
    experiment: Annotated[Path | None, typer.Option(help="The Experiment; default: experiment.yaml beside FILE.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on (127.0.0.1); 0.0.0.0 in a container.")] = None,
    port: Annotated[int | None, typer.Option(help="TCP port (9000).", min=1, max=65535)] = None,
    workers: Annotated[int | None, typer.Option(help="Serving processes (1).", min=1, max=64)] = None,
    inputs: Annotated[bool | None, typer.Option(help="Keep the rows' inputs in the ledger, for retraining.")] = None,
    placement: Annotated[
        Literal["process", "containers"],
        typer.Option(
            envvar="CONTENDER_PLACEMENT", help="Where nodes run: here, or in the containers that Seldon's operator made."
        ),
    ] = "process",
    home: HomeOption = Path("var"),
) -> None:
    """Run every node of the graph in one process (and its workers) and answer requests.

    Every setting in docs/settings.md can also be given as an environment variable, such as CONTENDER_FSYNC=true.
    """
    from console.serve import serve as run

    run(file, experiment, Home(home), placement=placement, host=host, port=port, workers=workers, keep_inputs=inputs)


app.command()(changes.share)
app.command()(changes.rollback)
app.command()(changes.kill)
app.command()(changes.revive)
app.command()(changes.shadow)
app.command("new-test")(changes.new_test)
app.command("epochs")(changes.history)


@app.command()
def exposures(
    format: Annotated[str, typer.Option(help="jsonl or csv.")] = "jsonl",
    since: Annotated[str | None, typer.Option(help="Only rows answered at or after this RFC 3339 time.")] = None,
    test: TestOption = None,
    store: StoreOption = None,
    home: HomeOption = Path("var"),
) -> None:
    """Print every row answered, one a line, whatever is still in the spool included."""
    from console.exposures import export

    with _ledger(home, test, store) as (where, opened, name):
        export(where, opened, name, since, format, sys.stdout)


app.add_typer(ledger.app, name="ledger")
app.command()(ledger.forget)


@app.command()
def example(use_case: Annotated[str, typer.Argument(help="The use case, such as campaigns.")] = "campaigns") -> None:
    """Print one valid request."""
    from console.sample import example_request

    typer.echo(json.dumps(example_request(_bundle(use_case)), ensure_ascii=False))


@app.command()
def predict(
    devices: Annotated[str, typer.Option(help="CSV with a line of column names, or .parquet; - reads CSV from stdin.")],
    out: Annotated[Path | None, typer.Option(help="Where the answers go, CSV or .parquet; default: CSV on stdout.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run left --out.")] = False,
    batch: Annotated[int, typer.Option(help="Rows scored at a time.", min=1, max=10_000)] = 1000,
    record: Annotated[bool, typer.Option(help="Record the exposures in the ledger, as a server does.")] = True,
    inputs: Annotated[bool | None, typer.Option(help="Keep the rows' inputs in the ledger, for retraining.")] = None,
    graph: GraphOption = DEFAULT_GRAPH,
    home: HomeOption = Path("var"),
) -> None:
    """Score a file of devices in this process, under the current epoch, and write their arms, scores and campaigns."""
    from console.batch import predict as run

    with _progress("rows", None) as tick:
        rows, epoch = run(devices, out, graph, Home(home), tick, resume=resume, batch=batch, record=record, inputs=inputs)
    typer.echo(f"{rows} rows answered under epoch {epoch}", err=True)


@app.command()
def table(
    count: Annotated[int, typer.Option(help="Devices of the sample population.", min=1, max=10_000)] = 50,
    seed: Annotated[int, typer.Option(help="Which sample.")] = 1,
    devices: Annotated[str | None, typer.Option(help="A CSV of devices instead of the sample.")] = None,
    graph: GraphOption = DEFAULT_GRAPH,
    home: HomeOption = Path("var"),
) -> None:
    """Show devices with gender, age, decile, arm and campaigns. A look, not an exposure: nothing is recorded."""
    from console.devices import DeviceFile
    from console.sample import sample
    from console.scoring import Scorer
    from serving.table import Table

    scorer = Scorer(graph, Home(home))
    try:
        if devices is None:
            names, rows = sample(_bundle("campaigns"), count, seed)
            answer = scorer.score(Table(names, list(rows))).answer
        else:
            with closing(DeviceFile(devices, scorer.key)) as file:
                first = next(file.tables(count), None)
                if first is None:
                    raise CommandError(f"{devices}: no devices below the line of names")
                answer = scorer.score(first).answer
    finally:
        scorer.close()
    grid = Grid(title=f"{answer.count} devices, epoch {scorer.epoch.epoch}, {changes.shares(scorer.epoch)}")
    shown = ["device_id", "gender", "age", "age_band", "gender_score", "gender_decile", "arm", "campaigns"]
    for name in shown:
        grid.add_column(name, justify="right" if name in ("age", "gender_score", "gender_decile") else "left", no_wrap=True)
    for values in zip(*(answer.column(name) or [] for name in shown), strict=True):
        cells = dict(zip(shown, values, strict=True))
        cells["age"] = "" if cells["age"] is None else f"{cells['age']:.1f}"
        cells["gender_score"] = f"{cells['gender_score']:.3f}"
        grid.add_row(*(str(cell) for cell in cells.values()), style="cyan" if cells["arm"] != CHAMPION else None)
    Console().print(grid)


@app.command()
def demo(
    url: Annotated[str, typer.Option(help="The running server.")] = "http://127.0.0.1:9000",
    customers: Annotated[int, typer.Option(help="Customers of the sample population.", min=1, max=1_000_000)] = 5000,
    batch: Annotated[int, typer.Option(help="Rows of one request.", min=1, max=10_000)] = 50,
    seed: Annotated[int, typer.Option(help="Which sample.")] = 1,
) -> None:
    """Send a sample population to a running server and show the split that came back."""
    from console.demo import run
    from console.remote import Server
    from console.sample import sample

    names, rows = sample(_bundle("campaigns"), customers, seed)
    with _progress("customers", customers) as tick:
        seen = run(Server(url), names, rows, batch, tick)
    grid = Grid("epoch", "arm", "customers", "share", "campaigns 1 to 6, share of the arm's customers", title="Split seen")
    for (epoch, arm), count in sorted(seen.arms.items()):
        total = sum(n for (e, _), n in seen.arms.items() if e == epoch)
        served = sum(n for (_, a), n in seen.arms.items() if a == arm)
        mix = "  ".join(f"{number} {seen.campaigns[arm][str(number)] / served:.0%}" for number in range(1, 7))
        grid.add_row(str(epoch), arm, str(count), f"{count / total:.2%}", mix)
    Console().print(grid)


@app.command()
def train(
    use_case: Annotated[str, typer.Argument(help="campaigns.")],
    data: Annotated[Path, typer.Option(help="Folder of the training data.", exists=True, file_okay=False)],
    out: Annotated[Path, typer.Option(help="Folder to write champion/ and challenger/ into.")] = Path("models"),
    seed: Annotated[int, typer.Option(help="Same seed, same data, same machine: same metrics.")] = 1,
) -> None:
    """Train both arms of a use case and write their bundles."""
    from console.train import train as run

    run(use_case, data, out, seed)


@app.command()
def lint(files: Annotated[list[Path], typer.Argument(help="Manifests and rules files.")]) -> None:
    """Check graphs, experiments and campaign rules; print every fault with its place."""
    from console.lint import faults

    found = [fault for file in files for fault in faults(file)]
    for fault in found:
        typer.echo(fault, err=True)
    if found:
        raise CommandError(f"{len(found)} fault(s) in {len(files)} file(s)")
    typer.echo(f"{len(files)} file(s) without a fault")


@app.command()
def follow(
    experiment: Annotated[
        str, typer.Option(envvar="CONTENDER_EXPERIMENT_RESOURCE", help="The Experiment, in the pod's own namespace.")
    ] = "",
    home: HomeOption = Path("var"),
) -> None:
    """Keep a cluster's epoch in the home's epoch.json, for a router unit under Seldon's own executor."""
    from console.follow import follow as run

    run(experiment, Home(home))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)
def executor() -> None:
    """Run as the graph engine of a Seldon pod: the stock executor's flags and ENGINE_PREDICTOR."""
    from console.executor import main

    raise typer.Exit(main(sys.argv[2:]) or 0)


def configure_logging() -> None:
    """One line a message on stderr, so that stdout stays data."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)


@contextmanager
def _ledger(home: Path, test: str | None, store: str | None = None) -> Iterator[tuple[Home, Any, str]]:
    where = Home(home, store)
    opened = where.open_store()
    try:
        yield where, opened, where.test(opened, test)
    finally:
        opened.close()


@contextmanager
def _progress(unit: str, total: int | None) -> Iterator[Any]:
    """Show a bar on stderr where a person looks at it."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    screen = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=screen, disable=not screen.is_terminal) as progress:
        task = progress.add_task(unit, total=total)
        yield lambda done, total=total: progress.update(task, completed=done, total=total)


def _bundle(use_case: str) -> Path:
    folder = Path("models") / CHAMPION / use_case
    if not (folder / "model.json").exists():
        known = ", ".join(sorted(each.parent.name for each in Path("models", CHAMPION).glob("*/model.json"))) or "none here"
        raise CommandError(f"no use case {use_case!r}; known: {known} (run from the repository's root)")
    return folder
