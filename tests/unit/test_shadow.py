"""The shadow: what the other arm would have said is kept, and nobody who asks can tell that it was asked."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.router_bench import RouterBench, epoch
from ledger.records import row_id
from ledger.store import Store
from router.epoch import ArmRange
from serving.errors import NodeUnreachable
from serving.messages import Message

FACTORS = {"champion": 1, "challenger": 100}
OTHER = {"champion": "challenger", "challenger": "champion"}
DIGESTS = {"champion": "d1", "challenger": "d2"}


async def fails(message: Message) -> None:
    raise NodeUnreachable("refused")


async def dawdles(message: Message) -> None:
    await asyncio.sleep(60)


async def adds_a_row(message: Message) -> Message:
    table = message.table()
    return Message.of(table.take([0] * (table.count + 1)))


async def serves_another_bundle(message: Message) -> Message:
    return Message.of(message.table(), {"tags": {"digest": "d9"}})


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20), st.integers(0, 10_000))
def test_each_row_is_scored_by_the_arm_that_did_not_serve_it(keys: list[int], share: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        bench = RouterBench(Path(folder) / "spool", epoch(share))
        (rows,) = bench.ask(keys)
        (exposure,) = bench.exposures()
        store = Store.open(Path(folder) / "ledger.db")
        store.write(bench.lines())
        pairs = store.pairs()
        store.close()
    arms = [row[1] for row in rows]
    assert pairs == [
        (row_id(exposure.id, row), OTHER[arm], DIGESTS[OTHER[arm]], {"score": row * FACTORS[OTHER[arm]]})
        for row, arm in enumerate(arms)
    ]
    assert bench.shadows == {(OTHER[arm], "scored"): arms.count(arm) for arm in set(arms)}


def test_the_shadow_begins_once_the_answer_has_left(tmp_path: Path) -> None:
    bench = RouterBench(tmp_path, epoch(0))
    bench.ask([1], [2])
    assert bench.trace == ["champion", "answered", "champion", "challenger", "answered", "challenger"]


@pytest.mark.parametrize("changes", [{"shadow": False}, {"kill": True}])
def test_nobody_is_shadowed_without_the_flag_or_under_the_kill_switch(tmp_path: Path, changes: dict[str, Any]) -> None:
    bench = RouterBench(tmp_path, epoch(**changes))
    bench.ask(list(range(30)))
    assert bench.pairs() == []
    assert not bench.shadows


@pytest.mark.parametrize("fault", [fails, dawdles, adds_a_row, serves_another_bundle])
def test_a_shadow_s_fault_is_counted_and_changes_nothing_for_customers(tmp_path: Path, fault: Any) -> None:
    bench = RouterBench(tmp_path, epoch(0))
    bench.challenger.fault = fault
    assert bench.ask([1, 2], [3]) == [[[1, "champion", 0], [2, "champion", 1]], [[3, "champion", 0]]]
    assert bench.pairs() == []
    assert bench.shadows == {("challenger", "failed"): 3}
    assert bench.breakers == []
    bench.challenger.fault = None
    bench.ask([4])
    assert bench.shadows["challenger", "scored"] == 1


def test_an_arm_that_nobody_serves_is_counted_as_failed(tmp_path: Path) -> None:
    bench = RouterBench(tmp_path, epoch(arms={"challenger": ArmRange(0, 0, "d9")}))
    bench.ask([1])
    assert bench.shadows == {("challenger", "failed"): 1}


def test_what_is_over_the_bound_is_dropped_and_counted(tmp_path: Path) -> None:
    bench = RouterBench(tmp_path, epoch(0), shadow_limit=2, shadow_budget_s=60)

    async def run() -> None:
        gate = asyncio.Event()

        async def waits(message: Message) -> None:
            await gate.wait()

        bench.challenger.fault = waits
        for number in range(10):
            await bench.post([number])
        assert bench.shadows == {("challenger", "dropped"): 8}
        gate.set()
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})

    asyncio.run(run())
    assert bench.shadows == {("challenger", "dropped"): 8, ("challenger", "scored"): 2}
    assert len(bench.pairs()) == 2


def test_a_pair_that_the_spool_refuses_is_dropped_and_begins_no_gap(tmp_path: Path) -> None:
    unbounded = RouterBench(tmp_path / "a", epoch(0))
    unbounded.ask([1])
    exposure = sum(path.stat().st_size for path in (tmp_path / "a").iterdir()) - len(unbounded.pairs()[0].encode()) - 1
    bench = RouterBench(tmp_path / "b", epoch(0), max_bytes=exposure + 40)
    bench.ask([1])
    assert bench.shadows == {("challenger", "dropped"): 1}
    assert bench.recorder.open()
    assert (len(bench.exposures()), bench.gaps()) == (1, [])
