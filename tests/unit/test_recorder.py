"""What happens while the spool takes nothing: the champion answers, and a recorded gap holds exactly the rows that are not."""

from __future__ import annotations

import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.router_bench import RouterBench, epoch
from ledger.errors import SpoolError
from ledger.records import Gap, decode
from serving.recorder import PAUSE_SECONDS, Recorder

EVERYBODY = epoch(10_000, shadow=False)
BOUND = 4000
"""Bytes of a spool that takes a few one-row requests."""


def fill(bench: RouterBench) -> int:
    """Send one-row requests until one is not recorded; return how many were answered."""
    sent = 0
    while bench.unrecorded_rows == 0:
        (rows,) = bench.ask([sent])
        sent += 1
        assert rows[0][1] == ("champion" if bench.unrecorded_rows else "challenger")
    return sent


def test_at_the_bound_the_champion_answers_the_same_request_and_nobody_gets_the_challenger(tmp_path: Path) -> None:
    bench = RouterBench(tmp_path, EVERYBODY, max_bytes=BOUND)
    sent = fill(bench)
    assert sent > 2
    assert bench.trace[-3:] == ["challenger", "champion", "answered"]
    asked = bench.trace.count("challenger")
    bench.ask([1], [2, 3])
    assert bench.trace.count("challenger") == asked
    assert (bench.recorded_rows, bench.unrecorded_rows) == (sent - 1, 4)
    assert sum(len(each.served) for each in bench.exposures()) == sent - 1


def test_the_gap_is_recorded_once_there_is_room_with_all_its_rows(tmp_path: Path) -> None:
    bench = RouterBench(tmp_path, EVERYBODY, max_bytes=BOUND)
    fill(bench)
    bench.ask([1, 2, 3])
    bench.ship_all()
    assert bench.ask([4]) == [[[4, "champion", 0]]], "it is left alone for a while after a refusal"
    assert bench.gaps() == []
    bench.time += PAUSE_SECONDS
    assert bench.ask([5]) == [[[5, "challenger", 0]]]
    (gap,) = bench.gaps()
    assert (gap.test, gap.rows) == ("t", 5)
    assert gap.start < gap.end
    assert bench.exposures()[-1].customers == ["5"]


def test_a_refusal_after_the_pause_prolongs_the_gap_and_closing_records_it(tmp_path: Path) -> None:
    bench = RouterBench(tmp_path, EVERYBODY, max_bytes=BOUND)
    sent = fill(bench)
    for number in range(3):
        bench.time += PAUSE_SECONDS
        bench.ask([number])
    bench.ship_all()
    bench.recorder.close()
    (gap,) = bench.gaps()
    assert gap.rows == 4 == bench.unrecorded_rows
    assert bench.recorded_rows == sent - 1


class Disk:
    """Takes or refuses lines as told."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.full = False

    def append(self, line: bytes) -> None:
        if self.full:
            raise SpoolError("no room")
        self.lines += line.splitlines()


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 5), st.sampled_from([0.0, 0.4, 1.5])), max_size=40))
def test_rows_answered_are_rows_recorded_and_rows_in_gaps(steps: list[tuple[bool, int, float]]) -> None:
    disk, now = Disk(), 0.0
    recorder = Recorder(disk.append, "t", lambda: now)
    answered = recorded = 0
    for full, rows, pause in steps:
        disk.full = full
        now += pause
        answered += rows
        if recorder.record(b"exposures"):
            recorded += rows
            assert recorder.open()
        else:
            recorder.missed(rows)
            assert not recorder.open() or pause
    disk.full = False
    recorder.close()
    gaps = [record for record in map(decode, filter(lambda line: line != b"exposures", disk.lines)) if isinstance(record, Gap)]
    assert recorded + sum(gap.rows for gap in gaps) == answered
    assert all(before.end <= after.start for before, after in pairwise(gaps))


@pytest.mark.parametrize("open_gap", [False, True])
def test_an_offer_is_taken_or_lost_and_leaves_gaps_alone(open_gap: bool) -> None:
    disk = Disk()
    recorder = Recorder(disk.append, "t")
    disk.full = True
    if open_gap:
        assert not recorder.record(b"exposures")
    assert not recorder.offer(b"pairs")
    disk.full = False
    assert recorder.offer(b"pairs") is not open_gap
    assert recorder.open() is not open_gap


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.integers(0, 10**6), min_size=1, max_size=30), min_size=1, max_size=20), st.integers(1000, 20_000))
def test_whatever_the_bound_every_request_is_answered_and_every_row_is_accounted_for(
    requests: list[list[int]], bound: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        bench = RouterBench(Path(folder), epoch(5000, shadow=True), max_bytes=bound)
        answers = bench.ask(*requests)
        bench.ship_all()
        bench.recorder.close()
        gaps = sum(gap.rows for gap in bench.gaps())
    assert [[row[0] for row in rows] for rows in answers] == requests
    assert gaps == bench.unrecorded_rows
    assert bench.recorded_rows + gaps == sum(map(len, requests))
