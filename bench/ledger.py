"""How fast the ledger takes what the engine has recorded: the spool's drain, and inserts as customers grow.

The lines are real ones, answered by the engine in this process; copies of them get ids and customers of their own.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from bench.inprocess import engine
from bench.load import Requests
from bench.variants import Unavailable
from ledger.records import ExposureBatch, decode, uuid7
from ledger.shipper import Shipper
from ledger.spool import Spool, segments
from ledger.store import Store

INSERTED_AT_ONCE = 5_000


def samples(requests: Requests, folder: Path) -> dict[int, list[ExposureBatch]]:
    """Return the records of real requests by the number of their rows."""
    import asyncio

    found = {}
    for rows in (1, 100):
        home = folder / f"samples-{rows}"
        home.mkdir()
        with engine(home) as running:

            async def ask_all(bodies: list[bytes]) -> None:
                for body in bodies:
                    await running.post(body)

            asyncio.run(ask_all(requests.bodies(rows)[:200]))
        lines = (line for path in segments(home / "spool") for line in path.read_bytes().splitlines())
        found[rows] = [record for record in map(decode, lines) if isinstance(record, ExposureBatch)]
    return found


def copies(records: list[ExposureBatch], rows: int, customers: int, seed: int = 1) -> Iterator[ExposureBatch]:
    """Yield copies with new ids until there are so many rows, each of one of so many customers at random."""
    drawn = random.Random(seed)
    made = 0
    while made < rows:
        for record in records:
            count = len(record.customers)
            keys: list[str | None] = [f"{drawn.randrange(customers):019d}" for _ in range(count)]
            yield msgspec.structs.replace(record, id=uuid7(), customers=keys)
            made += count
            if made >= rows:
                return


def drain(records: list[ExposureBatch], folder: Path, rows: int, ledger: str = "") -> dict[str, float]:
    """Fill a spool with so many rows, ship it, and return rows, seconds, rows/s and the spool's bytes of a row.

    `ledger` is the store's URL, by default a new file in the folder. A server's own work isn't in `cpu_us_per_row`.
    """
    folder.mkdir()
    spool = Spool(folder / "spool", max_bytes=2**40)
    for record in copies(records, rows, customers=rows):
        spool.append(record.encode())
    spool.close()
    size = sum(path.stat().st_size for path in segments(folder / "spool"))
    store = Store.open(ledger or folder / "ledger.db")
    store.migrate()
    started, used = time.perf_counter(), time.process_time()
    shipped = Shipper(folder / "spool", store).ship().rows
    seconds, cpu = time.perf_counter() - started, time.process_time() - used
    store.close()
    return {
        "rows": shipped,
        "seconds": seconds,
        "rows_per_second": shipped / seconds,
        "cpu_us_per_row": cpu / shipped * 1e6,
        "spool_bytes_per_row": size / shipped,
    }


def drain_to_postgresql(samples: dict[int, list[ExposureBatch]], folder: Path, rows: int) -> dict[str, dict[str, float]]:
    """Do the same into a PostgreSQL server of the bench's own, by the number of rows a request. Raises Unavailable."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # whose harness knows how to run one
    from harness.postgres import programs, running

    found = programs()
    if found is None:
        raise Unavailable("PostgreSQL's initdb is missing: install the package postgresql")
    with running(found, settings="") as server:
        return {str(n): drain(each, folder / f"drain-postgresql-{n}", rows, server.database()) for n, each in samples.items()}


def growth(records: list[ExposureBatch], folder: Path, rows: int, customers: int) -> list[dict[str, float]]:
    """Insert so many rows in ten steps and return for each step the rows there were and the rows/s it took."""
    folder.mkdir()
    store = Store.open(folder / "ledger.db")
    steps = []
    for step in range(10):
        batches = list(copies(records, rows // 10, customers, seed=step))
        started = time.perf_counter()
        for part in _parts(batches):
            store.write(part)
        steps.append({"before": step * rows // 10, "rows_per_second": rows // 10 / (time.perf_counter() - started)})
    store.close()
    size = (folder / "ledger.db").stat().st_size
    return [*steps[:1], *steps[4:5], {**steps[-1], "ledger_bytes_per_row": size / rows}]


def _parts(batches: list[ExposureBatch]) -> Iterator[list[ExposureBatch]]:
    part: list[ExposureBatch] = []
    rows = 0
    for batch in batches:
        part.append(batch)
        rows += len(batch.customers)
        if rows >= INSERTED_AT_ONCE:
            yield part
            part, rows = [], 0
    if part:
        yield part
