"""Micro-batching before scikit-learn: together what arrives together, and each request its own answer or error."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from serving.batched_node import BatchedNode
from serving.components import Model
from serving.errors import BadRequest
from serving.heads import Output
from serving.messages import Message
from serving.nodes import Call
from serving.scorer import Scorer
from serving.signature import Matrix
from serving.table import Table
from training.population import population

ROOT = Path(__file__).parents[2]


class Counted:
    """A real scorer that notes how many rows each call had, and refuses as told."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self.calls: list[int] = []
        self.refuses: Callable[[Matrix], bool] = lambda matrix: False

    def scores(self, matrix: Matrix) -> list[Output]:
        self.calls.append(len(matrix))
        if self.refuses(matrix):
            raise ValueError("the model can't take this")
        return self._scorer.scores(matrix)


class Observer:
    def __init__(self) -> None:
        self.told: list[int] = []

    def node(self, node: str, method: str, status: int, seconds: float) -> None:
        self.told.append(status)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The shipped challenger, served by scikit-learn."""
    folder = tmp_path_factory.mktemp("bundle") / "campaigns"
    shutil.copytree(ROOT / "models/challenger/campaigns", folder)
    manifest = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    (folder / "model.json").write_text(json.dumps({**manifest, "runtime": "sklearn"}, ensure_ascii=False), encoding="utf-8")
    found = Model(str(folder))
    assert found.digest == hashlib.sha256((folder / "model.json").read_bytes()).hexdigest()
    return found


@pytest.fixture
def counted(model: Model, monkeypatch: pytest.MonkeyPatch) -> Counted:
    scorer = Counted(model.bundle.scorer)
    monkeypatch.setattr(model.bundle, "scorer", scorer)
    return scorer


def ask(node: BatchedNode, tables: Sequence[Table]) -> list[Any]:
    async def run() -> list[Any]:
        calls = (node.predict(Message.of(table), Call()) for table in tables)
        return await asyncio.gather(*calls, return_exceptions=True)

    return asyncio.run(run())


def tables(model: Model, count: int) -> list[Table]:
    names, rows = population(model.bundle.manifest, count * 3)
    return [Table(names, rows[start : start + 1 + start // 3 % 3]) for start in range(0, count * 3, 3)]


def test_what_arrives_together_is_one_call_and_each_gets_what_it_gets_alone(model: Model, counted: Counted) -> None:
    sent = tables(model, 20)
    node, observer = BatchedNode("challenger", model, watch := Observer(), {"digest": "d"}), watch
    together = ask(node, sent)
    assert counted.calls == [sum(table.count for table in sent)]
    assert observer.told == [200] * 20
    for table, answer in zip(sent, together, strict=True):
        (alone,) = ask(node, [Table(table.names, table.rows)])
        assert answer.meta["tags"] == {"digest": "d"}
        assert answer.table().names == alone.table().names
        for one, other in zip(answer.table().rows, alone.table().rows, strict=True):
            assert one == [pytest.approx(value, abs=1e-5) if isinstance(value, float) else value for value in other]
    assert len(counted.calls) == 21


def test_a_wrong_request_is_refused_alone(model: Model, counted: Counted) -> None:
    sent = tables(model, 5)
    sent[2] = Table(["device_id"], [["1"]])
    answers = ask(BatchedNode("challenger", model, Observer(), {}), sent)
    assert [type(answer) for answer in answers] == [Message, Message, BadRequest, Message, Message]
    assert len(counted.calls) == 1


def test_a_batch_that_fails_is_scored_one_by_one(model: Model, counted: Counted) -> None:
    sent = tables(model, 5)
    poison = sent[3].count
    counted.refuses = lambda matrix: len(matrix) > 3 or len(matrix) == poison
    answers = ask(BatchedNode("challenger", model, Observer(), {}), sent)
    failed = [table.count == poison for table in sent]
    assert [isinstance(answer, ValueError) for answer in answers] == failed
    assert 0 < sum(failed) < 5
