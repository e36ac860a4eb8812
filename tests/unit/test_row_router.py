"""The router's work on one request: which rows go where, what comes back, what is recorded, and what a bad challenger costs."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.records import ExposureBatch, decode
from router.assignment import bucket
from router.breaker import Breaker
from router.epoch import ArmRange, Epoch
from router.errors import InvalidEpoch
from router.split import Splitter
from serving.arms import Arms, Challengers
from serving.errors import BadRequest, NodeUnreachable
from serving.messages import Message
from serving.nodes import Call
from serving.recorder import Recorder
from serving.row_router import RowRouter
from serving.table import Table

NAMES = ["device_id", "x"]


class Child:
    """An arm that answers x times its factor, or misbehaves as told."""

    immediate = False

    def __init__(self, name: str, digest: str, factor: int) -> None:
        self.name = name
        self.digest = digest
        self.factor = factor
        self.fault: str | None = None
        self.asked: list[int] = []

    async def predict(self, message: Message, call: Call) -> Message:
        table = message.table()
        self.asked.append(table.count)
        if self.fault == "error":
            raise NodeUnreachable("refused")
        if self.fault == "slow":
            await asyncio.sleep(60)
        if self.fault == "rows":
            table = table.take([0] * (table.count + 1))
        name = "other" if self.fault == "columns" else "score"
        values = [x * self.factor for x in table.column("x") or []]
        keys = table.column("device_id") or [None] * table.count
        return Message.of(Table(["device_id", name], columns=[keys, values]), {"tags": {"digest": self.digest}})


class Bench:
    """A router over two children, with what it recorded."""

    def __init__(self, epoch: Epoch | None, *, known: bool = True) -> None:
        self.children = [Child("champion", "d1", 1), Child("challenger", "d2", 100)]
        self.current = None if epoch is None else Splitter(epoch)
        self.recorded: list[ExposureBatch] = []
        digests = {child.name: child.digest for child in self.children} if known else {}
        self.arms = Arms([child.name for child in self.children], digests)
        self.states: list[str] = []
        self.missed = 0
        self.router = RowRouter(
            name="router",
            test="t",
            key="device_id",
            arms=self.arms,
            challengers=Challengers(self, budget_s=0.05, new_breaker=lambda: Breaker(failures=3, pause_s=3600)),
            epochs=self,
            recorder=Recorder(self.record, "t"),
            observer=self,
            max_rows=100,
        )

    def record(self, line: bytes) -> None:
        record = decode(line)
        assert isinstance(record, ExposureBatch)
        self.recorded.append(record)

    def rows(self, batch: ExposureBatch) -> None:
        assert self.recorded, "told before it was recorded"

    def unrecorded(self, rows: int) -> None:
        self.missed += rows

    def breaker(self, arm: str, state: str) -> None:
        self.states.append(state)

    def ask(self, rows: list[list[Any]], meta: dict[str, Any] | None = None, names: list[str] = NAMES) -> Message:
        async def run() -> Message:
            call = Call(puid="made")
            message = Message.of(Table(names, rows), meta)
            answer = await self.router.predict(message, call, self.children)
            for finish in call.finishers:
                answer = finish(answer)
            return answer

        return asyncio.run(run())


def epoch(share: int = 5000, **changes: Any) -> Epoch:
    arms = changes.pop("arms", {"challenger": ArmRange(0, share, "d2")})
    content: dict[str, Any] = {"test": "t", "epoch": 7, "salt": "s", "champion": "d1", "actor": "", "reason": "", "at": ""}
    return Epoch(arms=arms, **{**content, **changes})


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20), st.integers(0, 10_000))
def test_rows_come_back_in_order_each_from_its_customer_s_arm(keys: list[int], share: int) -> None:
    bench = Bench(epoch(share))
    answer = bench.ask([[key, place] for place, key in enumerate(keys)])
    arms = ["challenger" if bucket("s", str(key)) < share else "champion" for key in keys]
    factors = {"champion": 1, "challenger": 100}
    table = answer.table()
    assert table.names == ["device_id", "arm", "score"]
    assert table.rows == [[key, arm, place * factors[arm]] for place, (key, arm) in enumerate(zip(keys, arms, strict=True))]
    (batch,) = bench.recorded
    assert (batch.assigned, batch.served, batch.reasons) == (arms, arms, ["hash"] * len(keys))
    assert batch.digests == [{"champion": "d1", "challenger": "d2"}[arm] for arm in arms]
    assert batch.scores["score"] == table.column("score")
    assert (batch.epoch, batch.test) == (7, "t")
    assert batch.inputs == {"names": ["x"], "rows": [[place] for place in range(len(keys))]}


def test_each_arm_is_asked_once_whatever_the_order_of_the_rows() -> None:
    bench = Bench(epoch())
    bench.ask([[key, 0] for key in range(40)])
    assert sum(child.asked[0] for child in bench.children) == 40
    assert all(len(child.asked) == 1 for child in bench.children)


def test_meta_tells_epoch_arm_digest_and_routing_per_request_and_per_row_when_mixed() -> None:
    bench = Bench(epoch(0))
    meta = bench.ask([[1, 0], [2, 0]], {"puid": "mine"}).meta
    assert meta == {
        "puid": "mine",
        "tags": {"digest": "d1", "test": "t", "epoch": 7, "arm": "champion"},
        "routing": {"router": 0},
    }
    bench = Bench(epoch())
    meta = bench.ask([[key, 0] for key in range(8)]).meta
    assert meta["puid"] == "made"
    assert meta["routing"] == {"router": -1}
    assert meta["tags"]["arm"] == bench.recorded[0].served
    assert meta["tags"]["digest"] == bench.recorded[0].digests


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("error", "fallback:error"), ("slow", "fallback:timeout"), ("rows", "fallback:error"), ("columns", "fallback:error")],
)
def test_the_champion_answers_a_broken_challenger_s_rows_in_the_same_request(fault: str, reason: str) -> None:
    bench = Bench(epoch())
    bench.children[1].fault = fault
    keys = list(range(30))
    table = bench.ask([[key, key] for key in keys]).table()
    assert table.rows == [[key, "champion", key] for key in keys]
    (batch,) = bench.recorded
    due = ["challenger" if bucket("s", str(key)) < 5000 else "champion" for key in keys]
    assert batch.assigned == due
    assert batch.served == ["champion"] * 30
    assert batch.reasons == [reason if arm == "challenger" else "hash" for arm in due]
    assert batch.digests == ["d1"] * 30


def test_the_breaker_opens_and_the_arm_is_no_longer_asked() -> None:
    bench = Bench(epoch(10_000))
    bench.children[1].fault = "error"
    for _ in range(5):
        bench.ask([["1", 1]])
    assert bench.children[1].asked == [1, 1, 1]
    assert [batch.reasons[0] for batch in bench.recorded] == ["fallback:error"] * 3 + ["fallback:open"] * 2
    assert bench.states == ["closed", "closed", "open"]


def test_a_champion_that_fails_is_not_hidden_and_nothing_is_recorded() -> None:
    bench = Bench(epoch())
    bench.children[0].fault = "error"
    with pytest.raises(NodeUnreachable):
        bench.ask([[key, key] for key in range(30)])
    assert bench.recorded == []


def test_a_challenger_with_another_digest_than_the_epoch_s_is_not_served() -> None:
    known = Bench(epoch(10_000, arms={"challenger": ArmRange(0, 10_000, "d9")}))
    known.ask([["1", 1]])
    assert known.children[1].asked == []
    unknown = Bench(epoch(10_000, arms={"challenger": ArmRange(0, 10_000, "d9")}), known=False)
    unknown.ask([["1", 1]])
    assert unknown.children[1].asked == [1]
    for bench in (known, unknown):
        assert (bench.recorded[0].served, bench.recorded[0].reasons) == (["champion"], ["fallback:digest"])


def test_a_promotion_swaps_the_roles_by_digest() -> None:
    bench = Bench(epoch(2000, champion="d2", arms={"challenger": ArmRange(0, 2000, "d1")}))
    table = bench.ask([[key, 1] for key in range(200)]).table()
    scores = dict(zip(table.column("arm") or [], table.column("score") or [], strict=True))
    assert scores == {"champion": 100, "challenger": 1}
    with pytest.raises(InvalidEpoch, match="no node serves d7"):
        bench.arms.accept(epoch(champion="d7"))


def test_an_a_a_test_serves_the_champion_s_bundle_to_both() -> None:
    bench = Bench(epoch(5000, arms={"challenger": ArmRange(0, 5000, "d1")}))
    answer = bench.ask([[key, 1] for key in range(50)])
    table = answer.table()
    assert answer.meta["routing"] == {"router": -1}
    assert set(table.column("arm") or []) == {"champion", "challenger"}
    assert set(table.column("score") or []) == {1}
    assert bench.children[1].asked == []


def test_without_an_epoch_the_champion_serves_and_the_rows_are_marked() -> None:
    bench = Bench(None)
    answer = bench.ask([["1", 1]])
    assert answer.meta["tags"]["epoch"] is None
    (batch,) = bench.recorded
    assert (batch.epoch, batch.served, batch.reasons) == (0, ["champion"], ["no-epoch"])


def test_the_key_is_looked_for_in_its_column_then_in_the_tags() -> None:
    bench = Bench(epoch(10_000))
    table = bench.ask([["a", 1], [None, 2], ["", 3]], {"tags": {"device_id": 42}}).table()
    assert table.column("device_id") == ["a", 42, 42]
    assert bench.recorded[0].customers == ["a", "42", "42"]
    bench.ask([[1]], {"tags": {"device_id": "b"}}, ["x"])
    assert bench.recorded[1].customers == ["b"]
    with pytest.raises(BadRequest, match=r"meta\.tags\.device_id"):
        bench.ask([[1]], {"tags": {"device_id": 1.5}}, ["x"])
