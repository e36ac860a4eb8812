"""A router over two arms in this process: real engine, HTTP surface, recorder and spool; only the models are simple."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from ledger.records import ExposureBatch, Gap, PairBatch, Record, decode
from ledger.spool import Spool, lock_segment, segments
from router.breaker import Breaker
from router.epoch import ArmRange, Epoch
from router.split import Splitter
from serving.app import App
from serving.arms import Arms, Challengers
from serving.engine import Engine
from serving.graph import GraphNode
from serving.local_node import LocalNode
from serving.messages import Message
from serving.nodes import Call
from serving.recorder import Recorder
from serving.row_router import RowRouter
from serving.shadow import Shadow
from serving.table import Table


def epoch(share: int = 5000, **changes: Any) -> Epoch:
    content: dict[str, Any] = {"arms": {"challenger": ArmRange(0, share, "d2")}, "champion": "d1", "shadow": True}
    return Epoch(test="t", epoch=7, salt="s", actor="", reason="", at="", **{**content, **changes})


class Times:
    """A model that answers x times its factor."""

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def answer(self, table: Table) -> Table:
        keys, values = table.column("device_id") or [], table.column("x") or []
        return Table(["device_id", "score"], columns=[keys, [value * self.factor for value in values]])


class Arm(LocalNode):
    """Runs a model, notes when it is asked, and misbehaves as told."""

    immediate = False

    def __init__(self, name: str, digest: str, factor: int, bench: RouterBench) -> None:
        super().__init__(name, Times(factor), bench, {"digest": digest})
        self._trace = bench.trace
        self.fault: Callable[[Message], Awaitable[Message | None]] | None = None

    async def predict(self, message: Message, call: Call) -> Message:
        self._trace.append(self.name)
        answer = None if self.fault is None else await self.fault(message)
        return answer or await super().predict(message, call)


class RouterBench:
    """Answers over ASGI; `trace` says in which order arms were asked and answers left, and the rest what was told."""

    def __init__(
        self, folder: Path, now: Epoch, *, max_bytes: int = 10**9, shadow_limit: int = 8, shadow_budget_s: float = 0.05
    ) -> None:
        self.folder = folder
        self.spool = Spool(folder, max_bytes=max_bytes, segment_bytes=max_bytes // 4)
        self.time = 0.0
        self.recorder = Recorder(self.spool.append, "t", lambda: self.time, hand_over=self.spool.close)
        self.current = Splitter(now)
        self._shipped: list[Record] = []
        self.trace: list[str] = []
        self.recorded_rows = self.unrecorded_rows = 0
        self.shadows: Counter[tuple[str, str]] = Counter()
        self.breakers: list[str] = []
        self.champion = Arm("champion", "d1", 1, self)
        self.challenger = Arm("challenger", "d2", 100, self)
        router = RowRouter(
            name="router",
            test="t",
            key="device_id",
            arms=Arms(["champion", "challenger"], {"champion": "d1", "challenger": "d2"}),
            challengers=Challengers(self, budget_s=5, new_breaker=lambda: Breaker(failures=1, pause_s=3600)),
            epochs=self,
            recorder=self.recorder,
            observer=self,
            shadow=Shadow(self.recorder.offer, self, key="device_id", budget_s=shadow_budget_s, limit=shadow_limit),
        )
        models = tuple(GraphNode(name, "MODEL", key=name) for name in ("champion", "challenger"))
        graph = GraphNode("router", "ROUTER", key="router", children=models)
        engine = Engine(graph, {"champion": self.champion, "challenger": self.challenger}, {"router": router})
        self._app = App(engine, json_only=True, prometheus=lambda: (b"", ""))

    def rows(self, batch: ExposureBatch) -> None:
        self.recorded_rows += len(batch.served)

    def unrecorded(self, rows: int) -> None:
        self.unrecorded_rows += rows

    def breaker(self, arm: str, state: str) -> None:
        self.breakers.append(state)

    def shadow(self, arm: str, outcome: str, rows: int) -> None:
        self.shadows[arm, outcome] += rows

    def node(self, node: str, method: str, status: int, seconds: float) -> None:
        pass

    async def post(self, keys: list[Any]) -> list[list[Any]]:
        """Send one request, each row's x its place; return the answer's rows. Fails unless the status is 200."""
        body = json.dumps({"data": {"names": ["device_id", "x"], "ndarray": [[key, i] for i, key in enumerate(keys)]}})
        scope = {"type": "http", "method": "POST", "path": "/api/v1.0/predictions", "headers": [], "query_string": b""}
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body.encode()}

        async def send(message: Any) -> None:
            # A client that reads slowly: the loop turns before the answer has left.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            sent.append(message)

        await self._app(scope, receive, send)
        self.trace.append("answered")
        assert sent[0]["status"] == 200, sent
        rows: list[list[Any]] = json.loads(sent[1]["body"])["data"]["ndarray"]
        return rows

    def ask(self, *requests: list[Any]) -> list[list[list[Any]]]:
        """Send requests one after the other, let the shadow end, and return each one's rows."""

        async def run() -> list[list[list[Any]]]:
            answers = [await self.post(keys) for keys in requests]
            await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})
            return answers

        return asyncio.run(run())

    def lines(self) -> list[Record]:
        """Return everything ever recorded, in order."""
        return [*self._shipped, *(decode(line) for path in segments(self.folder) for line in path.read_bytes().splitlines())]

    def pairs(self) -> list[PairBatch]:
        return [record for record in self.lines() if isinstance(record, PairBatch)]

    def exposures(self) -> list[ExposureBatch]:
        return [record for record in self.lines() if isinstance(record, ExposureBatch)]

    def gaps(self) -> list[Gap]:
        return [record for record in self.lines() if isinstance(record, Gap)]

    def ship_all(self) -> None:
        """Make room as the shipper does, and let the spool see it."""
        self.spool._looked_at = float("-inf")
        for path in segments(self.folder):
            with path.open("rb") as file:
                if lock_segment(file.fileno()):
                    self._shipped += map(decode, file.read().splitlines())
                    path.unlink()
