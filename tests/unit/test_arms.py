"""Which child plays which role where digests may change under way, and what opens a challenger's breaker."""

from __future__ import annotations

import asyncio

import pytest

from router.breaker import CLOSED, OPEN, Breaker
from router.epoch import ArmRange, Epoch
from router.errors import InvalidEpoch
from serving.arms import ERROR, Arms, Challengers, ask
from serving.errors import BadRequest, NodeFailed, NodeUnreachable, ServingError, TooLarge
from serving.messages import Message
from serving.nodes import Call

NAMES = ["champion", "challenger"]


def epoch(champion: str, challenger: str) -> Epoch:
    arms = {"challenger": ArmRange(0, 1000, challenger)}
    return Epoch(test="t", epoch=1, salt="s", champion=champion, arms=arms, actor="", reason="", at="")


def test_a_child_behind_http_is_found_by_digest_and_else_asked_by_name_for_it_may_have_been_rolled() -> None:
    arms = Arms(NAMES, {}, remote=NAMES)
    assert arms.resolve(epoch("d2", "d1")) == {"champion": 0, "challenger": 1}
    arms.learn(0, "d1")
    arms.learn(1, "d2")
    assert arms.resolve(epoch("d2", "d1")) == {"champion": 1, "challenger": 0}
    assert arms.resolve(epoch("d1", "d9")) == {"champion": 0, "challenger": 1}


def test_a_child_in_this_process_serves_its_digest_for_good() -> None:
    arms = Arms(NAMES, {"champion": "d1", "challenger": "d2"})
    assert arms.resolve(epoch("d1", "d9")) == {"champion": 0, "challenger": None}


def test_an_unserved_champion_is_refused_only_where_no_child_can_be_rolled() -> None:
    digests = {"champion": "d1", "challenger": "d2"}
    with pytest.raises(InvalidEpoch, match="d9"):
        Arms(NAMES, digests).accept(epoch("d9", "d2"))
    Arms(NAMES, digests, remote=["challenger"]).accept(epoch("d9", "d2"))


class Failing:
    name = "challenger"
    immediate = False

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def predict(self, message: Message, call: Call) -> Message:
        raise self.error


class States:
    def __init__(self) -> None:
        self.last = ""

    def breaker(self, arm: str, state: str) -> None:
        self.last = state


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (BadRequest("row 0"), CLOSED),
        (TooLarge("rows"), CLOSED),
        (NodeFailed("challenger", 400, b"{}", None), CLOSED),
        (NodeFailed("challenger", 404, b"{}", None), OPEN),
        (NodeFailed("challenger", 500, b"{}", None), OPEN),
        (NodeUnreachable("refused"), OPEN),
        (KeyError("x"), OPEN),
    ],
    ids=repr,
)
def test_rows_that_a_challenger_refuses_do_not_open_its_breaker(error: Exception, state: str) -> None:
    states = States()
    challengers = Challengers(states, budget_s=1, new_breaker=lambda: Breaker(failures=3, pause_s=3600))

    async def ask_thrice() -> list[object]:
        return [await challengers.ask("challenger", "", Failing(error), Message(b"{}"), 1, Call()) for _ in range(3)]

    assert asyncio.run(ask_thrice()) == [ERROR] * 3
    assert states.last == state


class Answering:
    name = "champion"
    immediate = False

    def __init__(self, body: bytes) -> None:
        self.body = body

    async def predict(self, message: Message, call: Call) -> Message:
        return Message(self.body)


@pytest.mark.parametrize(
    "body", [b"", b"[1]", b'{"data":{"names":[],"ndarray":[1]}}', b'{"data":{"names":["a"],"ndarray":[[1],[2]]}}']
)
def test_an_answer_that_is_no_table_of_the_rows_is_the_node_s_fault_and_not_the_client_s(body: bytes) -> None:
    with pytest.raises(ServingError, match="node champion answered") as told:
        asyncio.run(ask(Answering(body), Message(b"{}"), 1, Call()))
    assert told.value.status == 500
