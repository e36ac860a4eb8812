"""Several workers are one server: one epoch, one sum of metrics, and the death of one loses nothing that was answered."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from pathlib import Path

from prometheus_client.mmap_dict import MmapedDict

from harness.clients import NAMES, Load
from harness.server import Server


def workers(server: Server) -> list[int]:
    """Return the process ids of the server's workers."""
    assert server.process is not None
    parent = server.process.pid
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    found = []
    for pid in children:
        # A child may be gone by the time its command line is read.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(int(pid))
    return found


def rows_counted(server: Server, pid: int) -> float:
    """Return the rows that one worker has counted in its own file."""
    path = server.home / "metrics" / f"counter_{pid}.db"
    if not path.exists() or not path.stat().st_size:
        return 0
    values = MmapedDict.read_all_values_from_file(str(path))  # type: ignore[no-untyped-call]
    return sum(float(value) for key, value, *_ in values if '"contender_rows_total"' in key)


def rows_scraped(server: Server) -> float:
    text = server.get("/prometheus").body.decode()
    return sum(float(value) for value in re.findall(r"^contender_rows_total\{.*\} (\S+)$", text, re.MULTILINE))


def test_a_worker_killed_under_load_is_replaced_and_nothing_answered_is_lost(two_workers: Server) -> None:
    before = workers(two_workers)
    assert len(before) == 2
    load = Load(two_workers, 8, go_on=True)
    load.wait_answers(500)
    os.kill(before[0], signal.SIGKILL)
    answered = len(load.answered)
    end = time.monotonic() + 60
    while len(now := workers(two_workers)) < 2 or before[0] in now:
        assert time.monotonic() < end, "nobody replaces the dead worker"
        time.sleep(0.01)
    assert len(load.answered) > answered, "the other worker did not go on"
    (new,) = set(now) - set(before)
    end = time.monotonic() + 60
    while not rows_counted(two_workers, new):
        assert time.monotonic() < end, "the new worker answers nothing"
        # It shares the port, so a part of all new connections comes to it.
        two_workers.predict(NAMES, [[None, "小米", "MI 2"]])
    load.end()
    assert load.failed == []
    assert len(load.broken) <= 8, "only who was connected to the dead worker may notice"

    counted = rows_scraped(two_workers)
    assert counted == sum(rows_counted(two_workers, pid) for pid in (*before, new)) == rows_scraped(two_workers)
    exposures = two_workers.exposures()
    assert len({each["id"] for each in exposures}) == len(exposures)
    assert set(load.answered) <= {each["customer"] for each in exposures}
    # The dead worker may have recorded one request that it did not live to count.
    assert counted <= len(exposures) <= counted + 1
    assert two_workers.stop() == 0
    assert not list((two_workers.home / "spool").glob("*.jsonl"))


def test_a_share_is_taken_over_by_every_worker_under_load_and_counts_are_exact(two_workers: Server) -> None:
    load = Load(two_workers, 4)
    load.wait_answers(200)
    assert two_workers.contender("share", "100%").returncode == 0
    two_workers.wait_epoch(2)
    load.end()
    seen = len(load.answered)
    for number in range(40):
        # Each request is a connection of its own, so both workers get some.
        answer = two_workers.predict(NAMES, [[f"after-{number}", "小米", "MI 2"]])
        assert answer["meta"]["tags"]["epoch"] == 2
        assert answer["data"]["ndarray"][0][1] == "challenger"
    assert (load.broken, load.failed) == ([], [])
    assert rows_scraped(two_workers) == seen + 40
    served = [each["served"] for each in two_workers.exposures()]
    assert len(served) == seen + 40
    assert served.count("challenger") == 40 + list(load.answered.values()).count("challenger")
