"""A request's way through the graph: transform-input, route, child or children, aggregate, transform-output.

It is the walk of Seldon's stock executor, node for node, with one addition: a router may be a `Split`, which is evaluated
here and may divide a request's rows among its children. Invariant: the engine never looks into a message that it passes on.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from serving import graph, metadata, routing
from serving.errors import NodeFailed, NodeUnreachable, ServingError, UnknownNode
from serving.graph import GraphNode
from serving.messages import Message
from serving.nodes import Call, Node

Step = Callable[[Message, Call], Awaitable[Message]]


class Child(Protocol):
    """A subtree below a split: `predict` walks it and returns its answer, or raises what its nodes raised."""

    @property
    def name(self) -> str: ...

    @property
    def immediate(self) -> bool:
        """Whether `predict` never waits: all of it is computed in this process, and nothing can interrupt it."""
        ...

    async def predict(self, message: Message, call: Call) -> Message: ...


class Split(Protocol):
    """A router evaluated in the engine's process. It may ask any of its children, with any message, any number of times."""

    @property
    def immediate(self) -> bool:
        """Whether it never waits for anything but its children."""
        ...

    async def predict(self, message: Message, call: Call, children: Sequence[Child]) -> Message: ...


class AnswerAgain(Exception):
    """Raised by a finisher whose split has changed its mind: the engine walks the graph once more. A second one is a fault."""


class Engine:
    """Answers requests through one graph.

    `nodes` maps a node's name (its `key` where names repeat) to where it runs; a node without an entry fails when called.
    `splits` maps the names of routers that are evaluated here. `inject_routing` writes into the meta of every answer which
    child each node passed it to.
    """

    def __init__(
        self,
        root: GraphNode,
        nodes: Mapping[str, Node],
        splits: Mapping[str, Split] | None = None,
        *,
        inject_routing: bool = False,
    ) -> None:
        self.root = root
        self._nodes = nodes
        self._tree = _Subtree(root, nodes, splits or {}, inject_routing=inject_routing)

    async def predict(self, message: Message, call: Call) -> Message:
        """Return the graph's answer. Raises ServingError: a node's failure, or the fault of the engine or the client."""
        try:
            return _finished(await self.walk(message, call), call)
        except AnswerAgain:
            call.routing.clear()
            return _finished(await self.walk(message, call), call)

    async def walk(self, message: Message, call: Call) -> Message:
        """Return the graph's answer without what finishers do: no meta is added, nothing recorded. Raises as `predict`."""
        try:
            return await self._tree.predict(message, call)
        except NodeFailed as failure:
            if failure.injected:
                failure.node_body = routing.inject(Message(failure.node_body), call.routing).body
            raise

    async def feedback(self, message: Message, call: Call) -> Message:
        """Pass feedback on to the nodes that answered, children before parents. Raises ServingError."""
        return await self._tree.feedback(message, call)

    async def status(self, name: str, call: Call) -> Message:
        """Return what the node of this name says of its health. Raises ServingError."""
        return await self._node(name).status(call)

    async def node_metadata(self, name: str, call: Call) -> Message:
        """Return the description that the node of this name gives of itself. Raises ServingError."""
        return await self._node(name).metadata(call)

    async def metadata(self, call: Call) -> dict[str, Any]:
        """Return every node's description, asked one after the other, and what the graph takes and answers.

        Raises ServingError if a node fails or its description can't be read.
        """
        described = {}
        for unit in self.root.walk():
            node = self._nodes.get(unit.key)
            if node is not None:
                try:
                    described[unit.name] = metadata.read(await node.metadata(call), unit.name)
                except NodeFailed as failure:
                    raise failure.hidden() from failure
        inputs, outputs = metadata.ends(self.root, described)
        return {"models": described, "graphinputs": inputs, "graphoutputs": outputs}

    async def ready(self) -> bool:
        """Tell whether every node is ready; of a split's children only the first must be."""
        return await self._tree.ready()

    def _node(self, name: str) -> Node:
        for unit in self.root.walk():
            if unit.name == name:
                node = self._nodes.get(unit.key)
                if node is None:
                    raise ServingError(f"node {name}: it has no endpoint")
                return node
        raise UnknownNode(f"no node {name!r} in the graph; there is {', '.join(unit.name for unit in self.root.walk())}")


def _finished(answer: Message, call: Call) -> Message:
    # Taken off the call, which they refer to: such a ring would keep the whole request until the garbage collector runs.
    finishers, call.finishers = call.finishers, []
    for finish in finishers:
        answer = finish(answer)
    return answer


class _Missing:
    """Stands for a node that runs nowhere: every call of it fails."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def fail(self, message: Message | Sequence[Message], call: Call) -> Message:
        raise NodeUnreachable(f"node {self.name}: it has no endpoint")

    predict = transform_input = transform_output = send_feedback = route = aggregate = fail


class _Subtree:
    """A node with everything below it. What it calls of its node is settled once, from type and methods."""

    def __init__(
        self, unit: GraphNode, nodes: Mapping[str, Node], splits: Mapping[str, Split], *, inject_routing: bool
    ) -> None:
        self.name = unit.name
        self._unit = unit
        self._inject = inject_routing
        self._children = tuple(_Subtree(child, nodes, splits, inject_routing=inject_routing) for child in unit.children)
        self._node = nodes.get(unit.key)
        self._split = splits.get(unit.name) if unit.children else None
        # Without a split several children are tasks of their own, between which others have their turn.
        one_by_one = len(self._children) < 2 if self._split is None else self._split.immediate
        here = self._split is not None or (self._node is not None and self._node.immediate)
        self.immediate: bool = here and one_by_one and all(child.immediate for child in self._children)
        node = self._node or _Missing(unit.name)

        def if_any(method: str, *types: str) -> bool:
            return unit.type in types or method in unit.methods

        self._input: Step | None = None
        if if_any("TRANSFORM_INPUT", graph.TRANSFORMER):
            self._input = node.transform_input
        elif unit.type == graph.MODEL:
            self._input = node.predict
        self._route = node.route if if_any("ROUTE", graph.ROUTER) else None
        self._aggregate = node.aggregate if if_any("AGGREGATE", graph.COMBINER) else None
        self._output = node.transform_output if if_any("TRANSFORM_OUTPUT", graph.OUTPUT_TRANSFORMER) else None
        self._feedback: Step | None = None
        if self._split is None and if_any("SEND_FEEDBACK", graph.MODEL, graph.ROUTER):
            self._feedback = node.send_feedback

    async def predict(self, message: Message, call: Call) -> Message:
        if self._input is not None:
            call.routing[self.name] = routing.ALL
            message = await self._input(message, call)
        if self._split is not None:
            message = await self._split.predict(message, call, self._children)
        elif self._children:
            message = await self._ask_children(message, call)
        if self._output is not None:
            call.routing[self.name] = routing.ALL
            try:
                message = await self._output(message, call)
            except NodeFailed as failure:
                # The stock executor takes this failure for an answer. Ours stays a failure, with the same body.
                failure.injected = self._inject
                raise
        return routing.inject(message, call.routing) if self._inject else message

    async def _ask_children(self, message: Message, call: Call) -> Message:
        index = await self._choose(message, call)
        if index == routing.NONE:
            call.routing[self.name] = index
            return message
        asked = self._children if index == routing.ALL else self._children[index : index + 1]
        try:
            answers = await _all([child.predict(message, call) for child in asked])
        finally:
            call.routing[self.name] = index
        if self._aggregate is None:
            return answers[0]
        return await self._aggregate(answers, call)

    async def _choose(self, message: Message, call: Call) -> int:
        if self._route is not None:
            try:
                answer = await self._route(message, call)
            except NodeFailed as failure:
                raise failure.hidden() from failure
            return routing.chosen(answer, self.name, len(self._children))
        if self._unit.implementation == graph.RANDOM_ABTEST:
            first = random.random() < routing.random_split(self._unit)  # noqa: S311 - a share of traffic, no secret
            return routing.existing(0 if first else 1, self.name, len(self._children))
        return routing.ALL

    async def feedback(self, message: Message, call: Call) -> Message:
        if self._children:
            index = routing.named(message, self.name, len(self._children))
            chosen = self._children if index == routing.ALL else self._children[index : index + 1]
            await _all([child.feedback(message, call) for child in chosen])
        if self._feedback is not None:
            return await self._feedback(message, call)
        return message

    async def ready(self) -> bool:
        for child in self._children if self._split is None else self._children[:1]:
            if not await child.ready():
                return False
        return self._split is not None or self._node is None or await self._node.ready()


async def _all(calls: Sequence[Awaitable[Message]]) -> list[Message]:
    """Return all answers, or raise the first call's failure in the children's order, once every call has ended."""
    if len(calls) == 1:
        return [await calls[0]]
    answers = []
    for outcome in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome
        answers.append(outcome)
    return answers
