"""A second process that scores every other batch of a file, so that two cores share the work.

Invariant: what comes back is in the file's order, and what waits to be taken is bounded by a pipe, and memory with it.
"""

from __future__ import annotations

import fcntl
import gc
import multiprocessing
import signal
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from console.devices import DeviceFile, to_csv
from console.errors import CommandError
from console.home import Home
from console.scoring import Scorer
from router.epoch import Epoch
from serving.errors import BadRequest

COLLECT_AFTER = 50_000
"""New objects after which cycles are looked for: a batch's lists live as long as the batch, and looking through them every 700
costs a sixth of the time."""


AHEAD_BYTES = 1024 * 1024
"""How far one process may be ahead of the other: some eight batches of 1,000 answers, so that neither waits for a slow one.
The largest that Linux allows to everybody."""


class Partner:
    """The other process. It begins to score as soon as it is made, and ends with its parent."""

    def __init__(self, graph: Path, home: Home, epoch: Epoch, devices: str, batch: int, skip: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._theirs, mine = spawn.Pipe(duplex=False)
        with suppress(OSError):
            fcntl.fcntl(self._theirs.fileno(), fcntl.F_SETPIPE_SZ, AHEAD_BYTES)
        arguments = graph, home, epoch.to_json(), devices, batch, skip, mine
        self._process = spawn.Process(target=_score, args=arguments, name="partner", daemon=True)
        self._process.start()
        mine.close()

    def batches(self) -> Iterator[tuple[bytes, int]]:
        """Yield the answers to its batches as CSV without a header, each with its number of rows.

        Raises BadRequest for rows that can't be answered, CommandError for a file that can't be read.
        """
        while True:
            try:
                told = self._theirs.recv()
            except EOFError:
                self._process.join()
                raise CommandError(f"the second process ended with exit code {self._process.exitcode}") from None
            if told is None:
                return
            if isinstance(told, Exception):
                raise told
            yield told

    def close(self) -> None:
        self._theirs.close()
        self._process.join()


def _score(graph: Path, home: Home, epoch: bytes, devices: str, batch: int, skip: int, parent: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.set_threshold(COLLECT_AFTER, *gc.get_threshold()[1:])
    # A pipe that is broken says that the parent has left, with an error of its own.
    with suppress(BrokenPipeError):
        try:
            for told in _batches(graph, home, epoch, devices, batch, skip):
                parent.send(told)
            parent.send(None)
        except (BadRequest, CommandError) as error:
            parent.send(type(error)(str(error)))


def _batches(graph: Path, home: Home, epoch: bytes, devices: str, batch: int, skip: int) -> Iterator[tuple[bytes, int]]:
    scorer = Scorer(graph, home, keep_inputs=False)
    if scorer.epoch.to_json() != epoch:
        raise CommandError("the epoch changed in this moment; start again")
    for table in DeviceFile(devices, scorer.key).tables(batch, skip=skip + batch, step=2):
        yield to_csv(scorer.score(table, record=False).answer, header=False), table.count
