"""A file of devices scored to its end: interrupted, resumed, in flat memory, from and to both formats."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from console.batch import Exposures, FileAnswers, Run
from console.devices import SHARED_BYTES, read_csv
from console.errors import CommandError
from harness.server import CONTENDER, ROOT
from ledger.errors import SpoolFull
from ledger.spool import Spool
from serving.bundle import load_manifest
from training.population import stream

RUN = Run("devices.csv", 1, 2, "campaigns", 1, "digest", 10, True)


def write_devices(path: Path, count: int) -> Path:
    """Write a CSV of `count` devices of the sample population."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        for number, (names, rows) in enumerate(stream(load_manifest(ROOT / "models/champion/campaigns"), count)):
            writer.writerows([names] if number == 0 else [])
            writer.writerows(["" if value is None else value for value in row] for row in rows)
    return path


def command(home: Path, *arguments: object) -> tuple[list[str], dict[str, str]]:
    return [str(CONTENDER), *map(str, arguments)], {**os.environ, "CONTENDER_HOME": str(home)}


def contender(home: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    line, environment = command(home, *arguments)
    return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def exposures(home: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in contender(home, "exposures").stdout.splitlines()]


@pytest.fixture(scope="module")
def devices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_devices(tmp_path_factory.mktemp("devices") / "devices.csv", 6000)


@pytest.fixture(scope="module")
def whole(devices: Path) -> bytes:
    """The answers of a run that nobody interrupted."""
    out = devices.with_name("whole.csv")
    done = contender(devices.parent / "home", "predict", "--devices", devices, "--out", out, "--batch", 50)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in devices.parent.iterdir()) == ["devices.csv", "home", "whole.csv"]
    return out.read_bytes()


def test_a_run_that_was_killed_goes_on_where_it_was(devices: Path, whole: bytes, tmp_path: Path) -> None:
    home, out = tmp_path / "home", tmp_path / "out.csv"
    part, journal = tmp_path / "out.csv.part", tmp_path / "out.csv.part.journal"
    predict = ["predict", "--devices", devices, "--out", out, "--batch", 50]
    line, environment = command(home, *predict)
    for kill in range(2):
        before = journal.read_bytes() if kill else b""
        process = subprocess.Popen([*line, *(["--resume"] if kill else [])], cwd=ROOT, env=environment, stderr=subprocess.PIPE)
        end = time.monotonic() + 60
        while (not journal.exists() or journal.read_bytes() == before) and time.monotonic() < end:
            assert process.poll() is None
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert 0 < json.loads(journal.read_bytes().partition(b"\n")[0])["rows"] < 6000
        assert not out.exists()
    refused = contender(home, *predict)
    assert refused.returncode == 1
    assert "--resume" in refused.stderr
    # An answer that was written but not noted is what a kill between the two leaves.
    with part.open("ab") as file:
        file.write(b"torn,answer")
    done = contender(home, *predict, "--resume")
    assert done.returncode == 0, done.stderr
    assert "6000 rows answered" in done.stderr
    assert out.read_bytes() == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "out.csv"]
    keys = [row.split(",", 1)[0] for row in whole.decode().splitlines()[1:]]
    assert sorted(each["customer"] for each in exposures(home)) == sorted(keys)
    assert not list((home / "spool").iterdir())


@pytest.mark.parametrize("change", ["input", "epoch", "batch"])
def test_what_has_changed_is_not_resumed(devices: Path, tmp_path: Path, change: str) -> None:
    text = devices.read_text(encoding="utf-8").splitlines(keepends=True)[:31]
    own, home, out = tmp_path / "own.csv", tmp_path / "home", tmp_path / "out.csv"
    own.write_text("".join(text) + "1,no,number of values\n", encoding="utf-8")
    predict = ["predict", "--devices", own, "--out", out]
    stopped = contender(home, *predict, "--batch", 10)
    assert stopped.returncode == 1
    assert "line 32" in stopped.stderr
    if change == "input":
        own.write_text("".join(text), encoding="utf-8")
    if change == "epoch":
        assert contender(home, "share", "50%").returncode == 0
    refused = contender(home, *predict, "--batch", 20 if change == "batch" else 10, "--resume")
    assert refused.returncode == 1
    assert {"input": "size was", "epoch": "epoch was 1 and is 2", "batch": "batch was 10 and is 20"}[change] in refused.stderr
    assert len(exposures(home)) == 30
    assert not out.exists()


def test_a_pipe_cannot_be_resumed(tmp_path: Path) -> None:
    for arguments in (["--devices", "-", "--out", tmp_path / "x"], ["--devices", "x.csv"]):
        refused = contender(tmp_path, "predict", *arguments, "--resume")
        assert refused.returncode == 1
        assert "--resume needs" in refused.stderr


def test_exposures_that_were_noted_but_never_sent_are_sent_by_the_next_run(tmp_path: Path) -> None:
    def die(line: bytes) -> None:
        raise KeyboardInterrupt

    first = FileAnswers(tmp_path / "out.csv", RUN, die, resume=False)
    with pytest.raises(KeyboardInterrupt):
        first.add(b"a\n1\n", 1, b"exposure 1")
    with pytest.raises(CommandError, match="another run is writing it"):
        FileAnswers(tmp_path / "out.csv", RUN, die, resume=True)
    first.close()
    sent: list[bytes] = []
    second = FileAnswers(tmp_path / "out.csv", RUN, sent.append, resume=True)
    assert (sent, second.rows) == ([b"exposure 1"], 1)
    second.add(b"2\n", 1, b"exposure 2")
    second.finish()
    second.close()
    assert sent == [b"exposure 1", b"exposure 2"]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"out.csv": b"a\n1\n2\n"}


def test_an_old_journal_is_not_taken_for_a_new_part(tmp_path: Path) -> None:
    answers = FileAnswers(tmp_path / "out.csv", RUN, lambda line: None, resume=False)
    answers.add(b"a\n1\n", 1, b"")
    answers.close()
    (tmp_path / "out.csv.part").unlink()
    again = FileAnswers(tmp_path / "out.csv", RUN, lambda line: None, resume=False)
    assert again.rows == 0
    again.close()
    assert not list(tmp_path.iterdir())


def test_a_full_spool_is_waited_for_and_then_refused(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_bytes=100)
    patient = Exposures(spool, patience=0.01)
    patient.append(b"x" * 90)
    with pytest.raises(SpoolFull):
        patient.append(b"y" * 90)
    next(tmp_path.iterdir()).unlink()
    time.sleep(0.2)
    patient.append(b"z" * 90)
    spool.close()
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"z" * 90 + b"\n"]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that is large enough for two processes."""
    path = tmp_path_factory.mktemp("many") / "many.csv"
    lines = "".join(f"{number},小米,MI {number % 90} of a name that takes some room\n" for number in range(90_500))
    path.write_text("device_id,phone_brand,device_model\n" + lines, encoding="utf-8")
    assert path.stat().st_size > SHARED_BYTES
    return path


def answered(home: Path, devices: Path, out: Path, *, processors: set[int], resume: bool = False) -> str:
    """Score a file unrecorded on these processors; return what was said."""
    predict = ["predict", "--devices", devices, "--out", out, "--no-record", *(["--resume"] if resume else [])]
    line, environment = command(home, *predict)
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, processors)
    try:
        return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False).stderr
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one processor: nobody to share with")
def test_two_processes_answer_as_one_does_and_stop_at_the_same_row(many: Path, tmp_path: Path) -> None:
    all_of_them = os.sched_getaffinity(0)
    alone, shared, bad = tmp_path / "alone.csv", tmp_path / "shared.csv", tmp_path / "bad.csv"
    assert "90500 rows answered" in answered(tmp_path / "home", many, alone, processors={min(all_of_them)})
    assert "90500 rows answered" in answered(tmp_path / "home", many, shared, processors=all_of_them)
    assert shared.read_bytes() == alone.read_bytes()
    text = many.read_text(encoding="utf-8").splitlines(keepends=True)
    for broken, said in (("x" * 1025 + ",a,b\n", "row 200, field 'device_id'"), ("1,2,3,4\n", "line 81202: 4 values")):
        bad.write_text("".join([*text[:81_201], broken, *text[81_202:]]), encoding="utf-8")
        told = {
            answered(tmp_path / "home", bad, tmp_path / f"{len(processors)}.csv", processors=processors)
            for processors in ({min(all_of_them)}, all_of_them)
        }
        assert len(told) == 1
        assert said in told.pop()
        parts = [tmp_path / f"{count}.csv.part" for count in (1, len(all_of_them))]
        assert parts[0].read_bytes() == parts[1].read_bytes()
        assert parts[0].read_bytes().count(b"\n") == 81_001
        for part in parts:
            part.unlink()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one processor: nobody to share with")
def test_two_processes_go_on_where_they_were_killed(many: Path, tmp_path: Path) -> None:
    home, out = tmp_path / "home", tmp_path / "out.csv"
    line, environment = command(home, "predict", "--devices", many, "--out", out, "--no-record")
    process = subprocess.Popen(line, cwd=ROOT, env=environment, stderr=subprocess.PIPE)
    part = tmp_path / "out.csv.part"
    while not part.exists() or part.stat().st_size < 1_000_000:
        assert process.poll() is None
        time.sleep(0.001)
    process.kill()
    process.communicate()
    assert "90500 rows answered" in answered(home, many, out, processors=os.sched_getaffinity(0), resume=True)
    keys = [row.split(",", 1)[0] for row in out.read_text(encoding="utf-8").splitlines()[1:]]
    assert keys == [str(number) for number in range(90_500)]


@pytest.mark.parametrize("skip", [0, 1, 3, 7])
def test_rows_are_skipped_and_lines_counted_as_they_stand(tmp_path: Path, skip: int) -> None:
    path = tmp_path / "a.csv"
    path.write_text('k,v\n1,"two\nlines"\n2,b\n3,c\n4,d\n', encoding="utf-8")

    def read() -> Iterator[list[list[Any]]]:
        with path.open(encoding="utf-8", newline="") as file:
            yield from (table.rows for table in read_csv(file, "a.csv", 2, skip))

    rows = [["1", "two\nlines"], ["2", "b"], ["3", "c"], ["4", "d"]][skip:]
    assert list(read()) == [rows[i : i + 2] for i in range(0, len(rows), 2)]
    path.write_text('k,v\n1,b,c\n2,"two\nlines"\n', encoding="utf-8")
    if skip == 0:
        with pytest.raises(CommandError, match=r"line 2: 3 values for 2 names"):
            list(read())


def peak_kilobytes(home: Path, devices: Path) -> int:
    """Return the peak memory of a run and its shipping process."""
    line, environment = command(home, "predict", "--devices", devices, "--out", devices.with_suffix(".out"))
    process = subprocess.Popen(line, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    small = peak_kilobytes(tmp_path / "a", write_devices(tmp_path / "small.csv", 20_000))
    large = peak_kilobytes(tmp_path / "b", write_devices(tmp_path / "large.csv", 200_000))
    assert large < small + 30_000


@pytest.mark.parametrize("whole_keys", [True, False])
def test_parquet_says_what_csv_says(devices: Path, whole: bytes, tmp_path: Path, whole_keys: bool) -> None:
    pa, arrow_csv, parquet = (importlib.import_module(f"pyarrow{each}") for each in ("", ".csv", ".parquet"))

    kinds: dict[str, Any] = {"device_id": pa.int64() if whole_keys else pa.string()}
    kinds |= {name: pa.string() for name in ("phone_brand", "device_model", "popular_category", "popular_day", "geo_cluster")}
    table = arrow_csv.read_csv(devices, convert_options=arrow_csv.ConvertOptions(column_types=kinds, strings_can_be_null=True))
    parquet.write_table(table, tmp_path / "devices.parquet", row_group_size=700)
    out = tmp_path / "out.parquet"
    done = contender(tmp_path / "h", "predict", "--devices", tmp_path / "devices.parquet", "--out", out, "--batch", 50)
    assert done.returncode == 0, done.stderr
    answers = parquet.read_table(out)
    assert str(answers.schema.field("device_id").type) == "string"
    assert str(answers.schema.field("gender_score").type) == "double"
    expected = list(csv.DictReader(whole.decode().splitlines()))
    found = [{k: "" if v is None else str(v) for k, v in row.items()} for row in answers.to_pylist()]
    assert found == expected
    resumed = contender(tmp_path / "h", "predict", "--devices", tmp_path / "devices.parquet", "--out", out, "--resume")
    assert "nothing to resume" in resumed.stderr


def test_a_key_that_is_a_float_in_parquet_is_refused(tmp_path: Path) -> None:
    pa, parquet = (importlib.import_module(f"pyarrow{each}") for each in ("", ".parquet"))

    table = pa.table({"device_id": [1.0], "phone_brand": ["a"], "device_model": ["b"]})
    parquet.write_table(table, tmp_path / "devices.parquet")
    done = contender(tmp_path / "h", "predict", "--devices", tmp_path / "devices.parquet")
    assert done.returncode == 1
    assert "column 'device_id': its type is double" in done.stderr
    assert done.stdout == ""
