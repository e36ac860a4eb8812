"""`contender ledger …` and `contender forget`: the care of the store itself.

Invariant: nothing here prints a password or a customer key.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table as Grid

from console.errors import CommandError
from console.home import Home
from ledger.errors import SchemaMismatch, StoreUnavailable

if TYPE_CHECKING:
    from ledger.store import Store

RETRY_SECONDS = 1.0

HomeOption = Annotated[Path, typer.Option("--home", envvar="CONTENDER_HOME", help="State of the server: ledger, spool, epoch.")]
StoreOption = Annotated[
    str | None,
    typer.Option("--store", envvar="CONTENDER_STORE", help="The ledger, a path or postgresql://USER@HOST/DATABASE."),
]

app = typer.Typer(no_args_is_help=True, help="Look after the ledger: its schema, its size, its age.")


@app.command()
def migrate(
    wait: Annotated[float, typer.Option(help="Seconds to wait for a server that is away.", min=0)] = 0,
    store: StoreOption = None,
    home: HomeOption = Path("var"),
) -> None:
    """Bring the ledger's tables up to this program's. It may run at any time, and several times at once."""
    end = time.monotonic() + wait
    with _opened(Home(home, store), create=True) as opened:
        while True:
            try:
                found = opened.migrate()
                break
            except SchemaMismatch:
                raise
            except StoreUnavailable:
                if time.monotonic() >= end:
                    raise
                time.sleep(RETRY_SECONDS)
        now = opened.revision()
        typer.echo(f"{opened.where}: schema {now}" + ("" if found == now else f", was {found or 'empty'}"))


@app.command()
def status(
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
    store: StoreOption = None,
    home: HomeOption = Path("var"),
) -> None:
    """Show where the ledger is, its schema, what its tables hold, and what the spool of this home still has for it."""
    from ledger.migrations import HEAD, check
    from ledger.shipper import Shipper

    where = Home(home, store)
    with _opened(where) as opened:
        revision = opened.revision()
        check(revision, opened.where)
        shipper = Shipper(where.spool, opened)
        behind = shipper.behind()
        shown: dict[str, Any] = {
            "store": opened.where,
            "schema": revision,
            "tables": {name: extent._asdict() for name, extent in opened.extents().items()},
            "spool": {"folder": str(where.spool), "bytes_behind": behind.bytes, "seconds_behind": round(behind.seconds, 1)},
        }
    if as_json:
        typer.echo(orjson.dumps(shown))
        return
    typer.echo(f"{shown['store']}: schema {revision}, this program's is {HEAD}")
    grid = Grid("table", "rows", "days", "first", "last")
    for name, extent in shown["tables"].items():
        grid.add_row(name, f"{extent['rows']:,}", *("" if extent[each] is None else str(extent[each]) for each in DAYS))
    Console().print(grid)
    typer.echo(f"spool {where.spool}: {behind.bytes} bytes to be shipped, the oldest {behind.seconds:.1f} s old")


DAYS = "partitions", "first", "last"


@app.command()
def prune(
    inputs: Annotated[
        int, typer.Option("--inputs-days", envvar="CONTENDER_RETENTION_DAYS", help="Days of inputs to keep; 0: all.", min=0)
    ] = 0,
    exposures: Annotated[
        int,
        typer.Option(
            "--exposures-days",
            envvar="CONTENDER_EXPOSURE_RETENTION_DAYS",
            help="Days of exposures and pairs to keep; 0: all.",
            min=0,
        ),
    ] = 0,
    store: StoreOption = None,
    home: HomeOption = Path("var"),
) -> None:
    """Remove records older than they are kept. A server does so once a day by itself."""
    from ledger.retention import Retention

    retention = Retention(inputs, exposures)
    if not any(retention):
        raise CommandError("nothing is to be removed: give --inputs-days or --exposures-days, or set CONTENDER_RETENTION_DAYS")
    rows = partitions = 0
    with _opened(Home(home, store)) as opened:
        more = True
        while more:
            done = opened.prune(retention)
            rows, partitions, more = rows + done.rows, partitions + done.partitions, done.more
        typer.echo(f"{opened.where}: {rows} rows and {partitions} daily partitions removed")


def forget(
    key: Annotated[str, typer.Argument(help="The customer key, as requests name it.")],
    secret: Annotated[
        Path | None,
        typer.Option("--key-secret-file", envvar="CONTENDER_KEY_SECRET_FILE", help="The secret under which keys are kept."),
    ] = None,
    store: StoreOption = None,
    home: HomeOption = Path("var"),
) -> None:
    """Remove a customer from the ledger: exposures, inputs, pairs, and what the spool of this home still had."""
    from ledger.shipper import Shipper
    from router.epoch import customer_hash
    from router.pseudonyms import read_secret

    names = [key] if secret is None else [key, customer_hash(key, read_secret(secret))]
    where = Home(home, store)
    with _opened(where) as opened:
        if where.spool.exists():
            Shipper(where.spool, opened).ship()
        typer.echo(f"{opened.forget(names)} exposures of this customer removed from {opened.where}")


@contextmanager
def _opened(home: Home, *, create: bool = False) -> Iterator[Store]:
    with closing(home.open_store(create=create)) as opened:
        yield opened
