"""Scoring without a server: the same graph, epoch and rules as `contender serve`, in this process, batch by batch.

Invariant: memory is bounded by one batch, whatever the length of the file.
"""

from __future__ import annotations

import asyncio
import csv
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from prometheus_client import CollectorRegistry

from console.errors import CommandError
from console.home import Home
from console.serve import declaration_for, prepare
from ledger.spool import Spool
from router.epoch import Epoch
from router.split import Splitter
from serving.errors import BadRequest
from serving.graph import load_deployment
from serving.messages import Message
from serving.metrics import Metrics
from serving.nodes import Call
from serving.recorder import Recorder
from serving.service import Service
from serving.settings import Settings
from serving.table import Table


class _Fixed:
    """An epoch that doesn't change while a file is scored: one file, one epoch."""

    def __init__(self, epoch: Epoch) -> None:
        self.current: Splitter | None = None
        self._splitter = Splitter(epoch)

    def refresh(self) -> bool:
        self.current, fresh = self._splitter, self.current is None
        return fresh


class Scorer:
    """Answers tables of devices. With `keep` the exposures go through the spool into the ledger, as a server's do."""

    def __init__(self, graph: Path, home: Home, *, keep: bool) -> None:
        deployment = load_deployment(graph)
        declared = declaration_for(graph, deployment, None)
        self.epoch = prepare(home, deployment, declared)
        settings = Settings.from_environment(os.environ, deployment=deployment, home=home.path, test=declared.test)
        self._spool = (
            Spool(
                settings.spool,
                fsync=settings.fsync,
                max_bytes=settings.spool_max_bytes,
                segment_bytes=settings.segment_bytes,
            )
            if keep
            else None
        )
        record: Callable[[bytes], None] = self._spool.append if self._spool else lambda line: None
        self._recorder = Recorder(record, declared.test)
        self._service = Service(deployment, settings, recorder=self._recorder, metrics=Metrics(CollectorRegistry()))
        self._service.follow(_Fixed(self.epoch))
        self._loop = asyncio.new_event_loop()

    def score(self, table: Table) -> Table:
        """Return the answer to each row, in order. Raises BadRequest."""
        message = self._service.engine.predict(Message.of(table), Call())
        return self._loop.run_until_complete(message).table()

    def close(self) -> None:
        """Let go of the spool segment, so that it can be shipped."""
        self._loop.close()
        self._recorder.close()
        if self._spool:
            self._spool.close()


def read_devices(file: IO[str], source: str, batch: int) -> Iterator[Table]:
    """Yield the rows of a CSV file with a line of names as tables of at most `batch` rows. Raises CommandError."""
    lines = csv.reader(file, strict=True)
    rows: list[list[Any]] = []
    try:
        names = next(lines, None)
        if not names:
            raise CommandError(f"{source}: empty; a line of column names is expected first")
        for row in lines:
            if len(row) != len(names):
                raise CommandError(f"{source}, line {lines.line_num}: {len(row)} values for {len(names)} names")
            rows.append(row)
            if len(rows) == batch:
                yield Table(names, rows, text=True)
                rows = []
    except (csv.Error, UnicodeDecodeError) as error:
        raise CommandError(f"{source}, line {lines.line_num}: {error}") from None
    if rows:
        yield Table(names, rows, text=True)


def predict(tables: Iterable[Table], score: Callable[[Table], Table], out: IO[str], tick: Callable[[int], None]) -> int:
    """Write the answers as CSV and return the number of rows. Raises CommandError naming the rows that are wrong."""
    writer = csv.writer(out, lineterminator="\n")
    done = 0
    for table in tables:
        try:
            answer = score(table)
        except BadRequest as error:
            raise CommandError(f"rows from {done} on (counted from 0): {error}; {done} rows were answered") from None
        if done == 0:
            writer.writerow(answer.names)
        writer.writerows(answer.rows)
        done += table.count
        tick(done)
    return done
