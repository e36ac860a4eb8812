"""A model whose library has a high cost a call (scikit-learn: milliseconds) scores waiting requests together.

Invariant: nobody waits for company. What has arrived by the time the model is free is scored at once, and whatever is wrong
with one request stays its own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from serving.components import Model
from serving.errors import ServingError
from serving.local_node import LocalNode
from serving.messages import Message
from serving.nodes import Call, NodeObserver
from serving.table import Table

log = logging.getLogger("contender.batched")


class BatchedNode(LocalNode):
    """A MODEL node in the engine's process. Requests that the event loop has read before it scores are one batch."""

    immediate = False

    def __init__(self, name: str, model: Model, observer: NodeObserver, tags: dict[str, Any]) -> None:
        super().__init__(name, model, observer, tags)
        self._model = model
        self._waiting: list[tuple[Table, asyncio.Future[Table]]] = []

    async def predict(self, message: Message, call: Call) -> Message:
        """Answer the message's rows. Raises BadRequest for them alone, and whatever the model raises."""
        started = time.perf_counter()
        status = 500
        try:
            table = message.table()
            self._model.check(table)
            answered = await self._scored(table)
            status = 200
        except ServingError as error:
            status = error.status
            raise
        finally:
            self._observer.node(self.name, "predict", status, time.perf_counter() - started)
        return Message.of(answered, {**message.meta, "tags": self._tags})

    def _scored(self, table: Table) -> asyncio.Future[Table]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Table] = loop.create_future()
        self._waiting.append((table, future))
        if len(self._waiting) == 1:
            # After every request that is ready to run now: those are the company that costs no wait.
            loop.call_soon(self._score)
        return future

    def _score(self) -> None:
        batch, self._waiting = [each for each in self._waiting if not each[1].done()], []
        if len(batch) > 1:
            try:
                answers = self._model.answer_all([table for table, _ in batch])
            except Exception as error:  # noqa: BLE001 - one by one below, so that it reaches only whom it concerns
                log.warning("a batch of %d requests failed, each is scored alone: %s", len(batch), error)
            else:
                for (_, future), answer in zip(batch, answers, strict=True):
                    future.set_result(answer)
                return
        for table, future in batch:
            try:
                future.set_result(self._model.answer(table))
            except Exception as error:  # noqa: BLE001 - the request that waits for it raises it
                future.set_exception(error)
