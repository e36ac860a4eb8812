"""A file of devices scored to its end: answers into a file that appears when it is complete, exposures into the ledger.

Invariant: a row's exposure is in the ledger exactly once, however often the run was interrupted and resumed. Each batch is
noted in a journal, with the exposures that belong to it, before these go to the spool. A resumed run cuts the answers back to
what the journal says and sends the noted exposures again, under the ids that they had, which the ledger takes once.
"""

from __future__ import annotations

import fcntl
import gc
import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import IO, Protocol

import msgspec

from console.devices import DeviceFile, csv_to_parquet, is_parquet, to_csv
from console.errors import CommandError
from console.home import Home
from console.partner import COLLECT_AFTER, Partner
from console.scoring import Scorer
from console.shipping import Shipping
from ledger.errors import SpoolFull
from ledger.spool import Spool
from router.epoch import Epoch
from serving.errors import BadRequest

PART, JOURNAL = ".part", ".part.journal"
FULL_SECONDS, RETRY_SECONDS = 120.0, 0.5
"""How long a full spool may take to be shipped, and how often it is tried."""

NUMBERS = {"gender_score": "double", "gender_decile": "int64", "age": "double"}
"""The columns of Parquet answers that aren't text."""

Tick = Callable[[int, int | None], None]

Batch = tuple[bytes, int, bytes]
"""Answers as CSV, their number, and the spool line of their exposures."""


class Run(msgspec.Struct, frozen=True):
    """What must be the same for a run to go on: the input, the epoch (with bundles and rules), what is recorded and how."""

    devices: str
    size: int
    modified_ns: int
    test: str
    epoch: int
    epoch_digest: str
    batch: int
    record: bool


class Noted(msgspec.Struct, frozen=True):
    """The journal's first line: how many rows are answered, and the length of their answers in bytes."""

    run: Run
    rows: int
    length: int


class Answers(Protocol):
    """Where answers go, batch by batch: each comes with the exposures that belong to it."""

    def add(self, answers: bytes, rows: int, exposures: bytes) -> None: ...


class Exposures:
    """The spool, with patience: a full one is waited for while somebody ships it."""

    def __init__(self, spool: Spool, *, patience: float) -> None:
        self._spool = spool
        self._patience = patience

    def append(self, line: bytes) -> None:
        """Append one line. Raises SpoolError, SpoolFull when patience is out."""
        end = time.monotonic() + self._patience
        while True:
            try:
                self._spool.append(line)
                return
            except SpoolFull:
                if time.monotonic() >= end:
                    raise
                self._spool.close()  # a segment is deleted only after its writer has left it
                time.sleep(RETRY_SECONDS)


class StreamAnswers:
    """Answers for a pipe: recorded first, then written. Nothing can be resumed."""

    def __init__(self, out: IO[str], append: Callable[[bytes], None]) -> None:
        self._out = out
        self._append = append

    def add(self, answers: bytes, rows: int, exposures: bytes) -> None:
        self._append(exposures)
        self._out.write(answers.decode())


class FileAnswers:
    """Answers for a file: they grow in `<file>.part`, beside a journal, and take the file's name when they are complete."""

    def __init__(self, path: Path, run: Run, append: Callable[[bytes], None], *, resume: bool, fsync: bool = False) -> None:
        """Raises CommandError if another run is at it, has left something to resume, or left what can't be resumed."""
        self._path = path
        self._part = path.with_name(path.name + PART)
        self._journal = path.with_name(path.name + JOURNAL)
        self._run = run
        self._append = append
        self._fsync = fsync
        self.rows = self._length = 0
        if resume and not self._part.exists():
            raise CommandError(f"{self._part}: nothing to resume; leave --resume out")
        try:
            self._file = self._part.open("ab")
        except OSError as error:
            raise CommandError(f"{self._part}: {error.strerror}") from None
        try:
            self._take_over(resume=resume)
        except BaseException:
            self._file.close()
            raise

    def _take_over(self, *, resume: bool) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CommandError(f"{self._part}: another run is writing it") from None
        found = self._read() if self._file.tell() else None
        if found is not None and not resume:
            raise CommandError(
                f"{self._part}: an interrupted run left {found[0].rows} rows; continue by --resume, or delete it to begin again"
            )
        if found is not None:
            noted, exposures = found
            for name in Run.__struct_fields__:
                before, now = getattr(noted.run, name), getattr(self._run, name)
                if before != now:
                    raise CommandError(
                        f"{self._part}: can't be resumed, {name.replace('_', ' ')} was {before} and is {now}; "
                        f"make it the same again, or delete the file to begin again"
                    )
            if self._file.tell() < noted.length:
                raise CommandError(f"{self._part}: shorter than noted, as after a power cut; delete it to begin again")
            self.rows, self._length = noted.rows, noted.length
            self._append(exposures)
        else:
            self._journal.unlink(missing_ok=True)
        self._file.truncate(self._length)

    def _read(self) -> tuple[Noted, bytes] | None:
        try:
            head, _, exposures = self._journal.read_bytes().partition(b"\n")
            return msgspec.json.decode(head, type=Noted), exposures
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            raise CommandError(f"{self._journal}: {error}; delete {self._part} to begin again") from None

    def add(self, answers: bytes, rows: int, exposures: bytes) -> None:
        """Write a batch's answers, note them with their exposures, and send these to the spool."""
        self._file.write(answers)
        self._file.flush()
        self._length += len(answers)
        self.rows += rows
        noted = msgspec.json.encode(Noted(self._run, self.rows, self._length))
        new = self._journal.with_name(self._journal.name + ".new")
        with new.open("wb") as file:
            file.write(noted + b"\n" + exposures)
            if self._fsync:
                os.fsync(self._file.fileno())
                file.flush()
                os.fsync(file.fileno())
        new.replace(self._journal)
        self._append(exposures)

    def finish(self) -> None:
        """Give the answers the file's name."""
        if is_parquet(self._path):
            whole = self._path.with_name(self._path.name + ".new")
            csv_to_parquet(self._part, whole, NUMBERS)
            whole.replace(self._path)
            self._part.unlink()
        else:
            self._part.replace(self._path)
        self._journal.unlink(missing_ok=True)

    def close(self) -> None:
        """Leave the part for a later run, if it isn't finished."""
        self._file.close()
        if not self.rows:
            with suppress(FileNotFoundError):
                self._part.unlink()


def identify(devices: DeviceFile, epoch: Epoch, *, batch: int, record: bool) -> Run:
    """Return what a run of this file under this epoch must keep to be resumed."""
    size, modified = devices.identity()
    digest = hashlib.sha256(epoch.to_json()).hexdigest()
    source = devices.name if devices.path is None else str(devices.path.resolve())
    return Run(source, size, modified, epoch.test, epoch.epoch, digest, batch, record)


def predict(
    name: str,
    out: Path | None,
    graph: Path,
    home: Home,
    tick: Tick,
    *,
    resume: bool = False,
    batch: int = 1000,
    record: bool = True,
    inputs: bool | None = None,
) -> tuple[int, int]:
    """Answer the devices in the file `name`; return the number of rows, and the epoch, once the ledger has all exposures.

    `tick` is told of the rows that are done and how many there are, as far as that can be known. Raises CommandError.
    """
    if resume and (out is None or name == "-"):
        raise CommandError("--resume needs --devices FILE and --out FILE; a pipe can't be taken up again")
    gc.set_threshold(COLLECT_AFTER, *gc.get_threshold()[1:])
    scorer = Scorer(graph, home, keep_inputs=inputs if record else False)
    with closing(scorer), closing(DeviceFile(name, scorer.key)) as devices, _recording(scorer, home, record=record) as append:
        if out is None:
            with _scoring(devices, scorer, graph, home, batch, 0, record=record) as scored:
                rows = _answer_all(scored, StreamAnswers(sys.stdout, append), devices, 0, tick)
        else:
            run = identify(devices, scorer.epoch, batch=batch, record=record)
            answers = FileAnswers(out, run, append, resume=resume, fsync=scorer.settings.fsync)
            done = answers.rows
            with closing(answers), _scoring(devices, scorer, graph, home, batch, done, record=record) as scored:
                rows = _answer_all(scored, answers, devices, done, tick)
                answers.finish()
    return rows, scorer.epoch.epoch


@contextmanager
def _recording(scorer: Scorer, home: Home, *, record: bool) -> Iterator[Callable[[bytes], None]]:
    """Yield what takes exposures. They are shipped meanwhile, by a process of our own or the server that runs on this home."""
    if not record:
        yield lambda line: None
        return
    settings = scorer.settings
    spool = Spool(
        settings.spool, fsync=settings.fsync, max_bytes=settings.spool_max_bytes, segment_bytes=settings.segment_bytes
    )
    shipping = None if home.served() else Shipping(settings.spool, settings.ledger)
    try:
        yield Exposures(spool, patience=FULL_SECONDS).append
    finally:
        spool.close()
        if shipping is not None:
            shipping.finish()


@contextmanager
def _scoring(
    devices: DeviceFile, scorer: Scorer, graph: Path, home: Home, batch: int, skip: int, *, record: bool
) -> Iterator[Iterator[Batch]]:
    """Yield the scored batches. A second process helps, unless exposures wait for the ledger, which has the other core."""
    if record or not devices.worth_sharing():
        yield _scored(devices, scorer, batch, skip, record=record)
        return
    with closing(Partner(graph, home, scorer.epoch, devices.name, batch, skip)) as partner:
        yield _shared(devices, scorer, partner, batch, skip)


def _answer_all(scored: Iterator[Batch], answers: Answers, devices: DeviceFile, done: int, tick: Tick) -> int:
    try:
        for text, rows, exposures in scored:
            answers.add(text, rows, exposures)
            done += rows
            tick(done, devices.total(done))
    except BadRequest as error:
        raise CommandError(f"rows from {done} on (counted from 0): {error}; {done} rows were answered") from None
    return done


def _scored(devices: DeviceFile, scorer: Scorer, batch: int, skip: int, *, step: int = 1, record: bool) -> Iterator[Batch]:
    """Yield each batch's answers. Raises BadRequest."""
    header = skip == 0
    for table in devices.tables(batch, skip=skip, step=step):
        scored = scorer.score(table, record=record)
        yield to_csv(scored.answer, header=header), table.count, scored.exposures
        header = False


def _shared(devices: DeviceFile, scorer: Scorer, partner: Partner, batch: int, skip: int) -> Iterator[Batch]:
    """Yield the same where a partner scores every other batch, and nothing is recorded."""
    theirs = partner.batches()
    for mine in _scored(devices, scorer, batch, skip, step=2, record=False):
        yield mine
        for text, rows in islice(theirs, 1):
            yield text, rows, b""
