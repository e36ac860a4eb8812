"""A node in the engine's own process: it hands tables to a component, without bytes or HTTP in between.

Invariant: the component sees the same table that it would parse from a request under Seldon's wrapper.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol

import orjson

from serving.errors import ServingError
from serving.messages import Message
from serving.nodes import Call, NodeObserver
from serving.table import Table


class Component(Protocol):
    """What the engine needs of a node's class: rows in, rows out. Raises ServingError for bad input."""

    def answer(self, table: Table) -> Table: ...


class LocalNode:
    """Runs a component where its graph type says: as a model, or as a transformer before or after its children."""

    immediate = True

    def __init__(self, name: str, component: Component, observer: NodeObserver, tags: dict[str, Any] | None = None) -> None:
        self.name = name
        self._component = component
        self._observer = observer
        self._tags = tags

    async def predict(self, message: Message, call: Call) -> Message:
        return self._answer(message, "predict")

    async def transform_input(self, message: Message, call: Call) -> Message:
        return self._answer(message, "transform-input")

    async def transform_output(self, message: Message, call: Call) -> Message:
        return self._answer(message, "transform-output")

    async def send_feedback(self, message: Message, call: Call) -> Message:
        return message

    async def route(self, message: Message, call: Call) -> NoReturn:
        raise ServingError(f"node {self.name} can't route")

    async def aggregate(self, messages: Sequence[Message], call: Call) -> NoReturn:
        raise ServingError(f"node {self.name} can't aggregate")

    async def metadata(self, call: Call) -> Message:
        """Return what the class says of itself by `init_metadata`, as under Seldon's wrapper; else its name alone."""
        describe = getattr(self._component, "init_metadata", dict)
        return Message(orjson.dumps({"name": self.name, "platform": "contender", **describe()}))

    async def status(self, call: Call) -> Message:
        return Message(b'{"data":{"names":[],"ndarray":[]},"meta":{}}')

    async def ready(self) -> bool:
        return True

    def _answer(self, message: Message, method: str) -> Message:
        started = time.perf_counter()
        status = 500
        try:
            table = self._component.answer(message.table())
            status = 200
        except ServingError as error:
            status = error.status
            raise
        finally:
            self._observer.node(self.name, method, status, time.perf_counter() - started)
        return Message.of(table, message.meta if self._tags is None else {**message.meta, "tags": self._tags})


def component_class(path: str) -> Callable[..., Any]:
    """Import the class that MODEL_NAME names, `package.module.Class` or Seldon's short `Class` (module of the same name).

    The working directory is searched last, as under Seldon's wrapper. Raises ServingError naming what is missing.
    """
    import importlib

    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    module, _, name = path.rpartition(".")
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module or name), name)
    except (ImportError, AttributeError) as error:
        raise ServingError(f"MODEL_NAME {path!r}: {error}{_advice(error)}") from None
    return found


def _advice(error: Exception) -> str:
    if getattr(error, "name", None) != "seldon_core":
        return ""
    return "; it isn't installed here, and needn't be: a plain class with Seldon's methods does, without SeldonComponent"
