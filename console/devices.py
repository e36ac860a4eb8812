"""Files of devices, read as tables: CSV as text, Parquet with its types.

Invariant: memory is bounded by one batch (in Parquet by one row group), and a customer key never passes through a float.
"""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import IO, Any

from console.errors import CommandError
from serving.table import Table

PARQUET = ".parquet"

SHARED_BYTES = 4 * 1024 * 1024
"""The size of a file, some 70,000 devices, that takes longer than a second process takes to begin."""


class DeviceFile:
    """A file of devices, CSV or, by its name, Parquet; "-" is CSV on stdin."""

    def __init__(self, name: str, key: str) -> None:
        """`key` is the column of the customer key. Raises CommandError if the file can't be read."""
        self.name = name
        self.path = None if name == "-" else Path(name)
        self._key = key
        self._file: IO[str] | None = None
        self._rows: int | None = None
        try:
            if self.path is None:
                self._file = sys.stdin
            elif is_parquet(self.path):
                self.path.open("rb").close()
            else:
                self._file = self.path.open(encoding="utf-8-sig", newline="")
            self._size = self.path.stat().st_size if self.path else 0
        except OSError as error:
            raise CommandError(f"{name}: {error.strerror}") from None

    def tables(self, batch: int, skip: int = 0, step: int = 1) -> Iterator[Table]:
        """Yield the rows after the first `skip` as tables of at most `batch` rows; of these every `step`-th, from the first on.

        Raises CommandError naming the line.
        """
        if self._file is None:
            assert self.path is not None  # noqa: S101 - as __init__ says
            return islice(read_parquet(self.path, self._key, batch, skip), 0, None, step)
        return read_csv(self._file, self.name, batch, skip, step)

    def total(self, done: int) -> int | None:
        """Return how many rows there are, estimated from how far the first `done` reach; None if nobody can know."""
        if self.path is None or not self._size:
            return None
        if self._file is None:
            if self._rows is None:
                self._rows = int(_pyarrow("parquet", self.path).read_metadata(self.path).num_rows)
            return self._rows
        read: int = getattr(self._file, "buffer").tell()  # noqa: B009 - IO[str] doesn't promise it, an open file has it
        return max(done, round(done * self._size / max(read, 1)))

    def worth_sharing(self) -> bool:
        """Tell whether two processes are done with it sooner than one: a second one takes half a second to begin."""
        return self._size >= SHARED_BYTES and len(os.sched_getaffinity(0)) > 1

    def identity(self) -> tuple[int, int]:
        """Return size and time of the last change, which tell whether a file is still the same."""
        if self.path is None:
            return 0, 0
        state = self.path.stat()
        return state.st_size, state.st_mtime_ns

    def close(self) -> None:
        if self._file is not None and self.path is not None:
            self._file.close()


def is_parquet(name: str | Path | None) -> bool:
    """Return whether the name of a file says that it is Parquet."""
    return name is not None and Path(name).suffix.lower() == PARQUET


def read_csv(file: IO[str], source: str, batch: int, skip: int = 0, step: int = 1) -> Iterator[Table]:
    """Yield the rows of a CSV file with a line of names, after the first `skip`, as tables of at most `batch` rows.

    Of these every `step`-th, from the first on. Raises CommandError naming the line.
    """
    lines = csv.reader(file, strict=True)
    try:
        names = next(lines, None)
        if not names:
            raise CommandError(f"{source}: empty; a line of column names is expected first")
        for _ in islice(lines, skip):
            pass
        while rows := list(islice(lines, batch)):
            if set(map(len, rows)) != {len(names)}:
                _refuse_ragged(source, lines.line_num, names, rows)
            yield Table(names, rows, text=True)
            for _ in islice(lines, (step - 1) * batch):
                pass
    except (csv.Error, UnicodeDecodeError) as error:
        raise CommandError(f"{source}, line {lines.line_num}: {error}") from None


def read_parquet(path: Path, key: str, batch: int, skip: int = 0) -> Iterator[Table]:
    """Yield the rows of a Parquet file, after the first `skip`, as tables of at most `batch` rows.

    Columns are text, whole or floating-point numbers; the column `key` is text or a whole number. Raises CommandError.
    """
    parquet = _pyarrow("parquet", path)
    lib = _pyarrow("lib", path)
    try:
        with closing(parquet.ParquetFile(path, pre_buffer=False)) as file:
            names = list(file.schema_arrow.names)
            for field in file.schema_arrow:
                _check_type(field, key, path)
            left = skip
            for part in file.iter_batches(batch, use_threads=False):
                if left >= part.num_rows:
                    left -= part.num_rows
                    continue
                chosen, left = part.slice(left), 0
                yield Table(names, columns=[column.to_pylist() for column in chosen.columns])
    except (lib.ArrowException, OSError) as error:
        raise CommandError(f"{path}: {error}") from None


def to_csv(table: Table, *, header: bool) -> bytes:
    """Return a table as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if header:
        writer.writerow(table.names)
    writer.writerows(zip(*table.columns, strict=True))
    return text.getvalue().encode()


def csv_to_parquet(source: Path, target: Path, numbers: dict[str, str]) -> None:
    """Write a CSV file of answers as Parquet: `numbers` are the types of columns that aren't text. Memory stays bounded."""
    arrow_csv, parquet, arrow = _pyarrow("csv", target), _pyarrow("parquet", target), _pyarrow("lib", target)
    with source.open(encoding="utf-8", newline="") as file:
        names = next(csv.reader(file), [])
    types = {name: arrow.type_for_alias(numbers.get(name, "string")) for name in names}
    # Blank text is an answer ("no gender"); a blank number is none.
    convert = arrow_csv.ConvertOptions(column_types=types, strings_can_be_null=False, null_values=[""])
    read = arrow_csv.ReadOptions(use_threads=False)
    parse = arrow_csv.ParseOptions(newlines_in_values=True)
    if not names:
        raise CommandError(f"{source}: no answers, so no columns to write")
    with arrow_csv.open_csv(source, read, parse, convert) as reader, parquet.ParquetWriter(target, reader.schema) as writer:
        for part in reader:
            writer.write_batch(part)


def _pyarrow(module: str, path: Path) -> Any:
    import importlib

    try:
        return importlib.import_module(f"pyarrow.{module}")
    except ImportError:
        raise CommandError(f"{path}: Parquet needs pyarrow, which is not installed; `make env` installs it") from None


def _check_type(field: Any, key: str, path: Path) -> None:
    kind = field.type
    text = str(kind) in ("string", "large_string", "string_view")
    whole = str(kind) in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
    floating = str(kind) in ("float", "double", "halffloat")
    if field.name == key and not (text or whole):
        raise CommandError(f"{path}, column {key!r}: its type is {kind}; string or int64 is expected, or keys lose digits")
    if not (text or whole or floating or str(kind) == "null"):
        raise CommandError(f"{path}, column {field.name!r}: its type is {kind}; text or a number is expected")


def _refuse_ragged(source: str, last: int, names: list[str], rows: list[list[str]]) -> None:
    row = next(i for i, each in enumerate(rows) if len(each) != len(names))
    line = last - sum(1 + sum(value.count("\n") for value in each) for each in rows[row + 1 :])
    raise CommandError(f"{source}, line {line}: {len(rows[row])} values for {len(names)} names")
