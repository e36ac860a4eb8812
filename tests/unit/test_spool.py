"""The spool: whole lines, one write each, within its bound, and a lock that says who is alive."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ledger.errors import SpoolError, SpoolFull
from ledger.spool import Spool, segments


def lines(folder: Path) -> list[bytes]:
    return [line for path in segments(folder) for line in path.read_bytes().splitlines()]


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in segments(folder))


def is_locked(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def write_calls() -> int:
    """Return how many write system calls this process has made, as the kernel counts them."""
    counts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counts["syscw"])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the kernel doesn't count system calls per process")
def test_each_line_is_one_write(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    before = write_calls()
    for count in range(50):
        spool.append(b"x" * count * 1000)
    assert write_calls() - before == 50
    spool.close()


@pytest.mark.parametrize("fsync", [False, True])
def test_segments_rotate_and_sorted_by_name_hold_the_lines_in_order(tmp_path: Path, fsync: bool) -> None:
    spool = Spool(tmp_path / "new" / "spool", fsync=fsync, segment_bytes=100)
    sent = [b"%03d" % count + b"." * 27 for count in range(10)]
    for line in sent:
        spool.append(line)
    found = segments(tmp_path / "new" / "spool")
    assert [path.stat().st_size for path in found] == [93, 93, 93, 31]
    assert lines(tmp_path / "new" / "spool") == sent
    assert [is_locked(path) for path in found] == [False, False, False, True]
    spool.close()


def test_a_line_larger_than_a_segment_has_one_of_its_own(tmp_path: Path) -> None:
    spool = Spool(tmp_path, segment_bytes=100)
    for length in (10, 500, 10):
        spool.append(b"x" * length)
    assert [path.stat().st_size for path in segments(tmp_path)] == [11, 501, 11]
    spool.close()


LIVE = """
import sys, time
from pathlib import Path
from ledger.spool import Spool

spool = Spool(Path(sys.argv[1]))
spool.append(b"x")
print(flush=True)
time.sleep(60)
"""


def test_a_segment_is_locked_while_its_worker_lives(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", LIVE, str(tmp_path)], stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        worker.stdout.readline()
        (path,) = segments(tmp_path)
        assert is_locked(path)
        worker.send_signal(signal.SIGKILL)
        worker.wait(10)
    assert not is_locked(path)
    assert path.read_bytes() == b"x\n"


def test_a_closed_spool_begins_a_new_segment_and_never_writes_the_old_one_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append(b"one")
    spool.close()
    spool.close()
    (old,) = segments(tmp_path)
    spool.append(b"two")
    assert old.read_bytes() == b"one\n"
    assert lines(tmp_path) == [b"one", b"two"]
    spool.close()


def test_at_its_bound_the_spool_refuses_and_takes_lines_again_once_there_is_room(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_bytes=1000, segment_bytes=300)
    for _ in range(10):
        spool.append(b"x" * 99)
    assert spool.size == size(tmp_path) == 1000
    with pytest.raises(SpoolFull, match=r"1000 bytes wait to be shipped; 2 more would pass the bound of 1000"):
        spool.append(b"x")
    assert size(tmp_path) == 1000
    segments(tmp_path)[0].unlink()
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            spool.append(b"x" * 99)
            break
        except SpoolFull:
            time.sleep(0.02)
    assert size(tmp_path) == 800
    spool.close()


def test_the_bound_counts_what_other_workers_left(tmp_path: Path) -> None:
    first = Spool(tmp_path, max_bytes=1000)
    first.append(b"x" * 899)
    second = Spool(tmp_path, max_bytes=1000)
    second.append(b"x" * 99)
    with pytest.raises(SpoolFull):
        second.append(b"")
    assert size(tmp_path) == 1000
    first.close()
    second.close()


FILL = """
import json, resource, signal, sys
from pathlib import Path
from ledger.errors import SpoolFull
from ledger.spool import Spool

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
spool = Spool(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
taken, refused = [], []
for number in range(40):
    line = b"%04d" % number + b"x" * 700
    try:
        spool.append(line)
        taken.append(number)
    except SpoolFull as error:
        refused.append(str(error))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
spool.append(b"there is room again")
print(json.dumps([taken, refused]))
"""


@pytest.mark.parametrize(
    ("limit", "said"),
    [(10_000, "only 130 of 705 bytes could be written; the disk is full"), (14 * 705, "File too large; nothing was written")],
)
def test_a_full_disk_leaves_whole_lines_only(tmp_path: Path, limit: int, said: str) -> None:
    """The kernel cuts the write short or refuses it, as it does when a disk fills up."""
    command = [sys.executable, "-c", FILL, str(tmp_path), str(limit)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=60)
    taken, refused = json.loads(done.stdout)
    assert taken == list(range(14))
    assert len(refused) == 26
    assert all(said in each for each in refused)
    found = lines(tmp_path)
    assert found == [*(b"%04d" % number + b"x" * 700 for number in taken), b"there is room again"]
    assert size(tmp_path) == sum(len(line) + 1 for line in found)


def test_a_spool_that_can_not_be_made_says_where_and_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SpoolError, match=r"file: File exists"):
        Spool(tmp_path / "file")
    with pytest.raises(SpoolError, match=r"file/spool: Not a directory"):
        Spool(tmp_path / "file" / "spool")


def test_a_spool_whose_folder_went_away_refuses_and_takes_lines_when_it_is_back(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "spool", tmp_path / "elsewhere"
    spool = Spool(folder, segment_bytes=10)
    spool.append(b"123456789")
    folder.rename(elsewhere)
    with pytest.raises(SpoolError, match="No such file"):
        spool.append(b"not written")
    elsewhere.rename(folder)
    spool.append(b"written")
    assert lines(folder) == [b"123456789", b"written"]
    spool.close()


def test_segments_of_a_missing_folder_are_none(tmp_path: Path) -> None:
    assert segments(tmp_path / "none") == []
    (tmp_path / "note.txt").write_text("")
    assert segments(tmp_path) == []


def test_only_the_owner_reads_the_spool(tmp_path: Path) -> None:
    Spool(tmp_path / "spool").close()
    assert (tmp_path / "spool").stat().st_mode & 0o077 == 0
    assert segments(tmp_path / "spool")[0].stat().st_mode & 0o077 == 0
    assert os.access(tmp_path / "spool", os.W_OK)
