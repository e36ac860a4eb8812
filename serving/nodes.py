"""What the engine needs of a node of the graph, wherever it runs, and the request's context that travels with each call.

Invariant: a node answers a message or raises a ServingError; it never answers an error as if it were a message.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from serving.messages import Message


@dataclass(slots=True)
class Call:
    """The context of one request, shared by all its node calls."""

    headers: Sequence[tuple[bytes, bytes]] = ()
    """The client's headers as they came, names in lower case."""

    puid: str = ""
    """The client's Seldon-Puid, or one made for it."""

    path: str = ""

    routing: dict[str, int] = field(default_factory=dict)
    """Which child each node passed the request to so far; -1 for all, or for a node that answered itself."""

    finishers: list[Callable[[Message], Message]] = field(default_factory=list)
    """Applied in order to the final answer, once the whole graph has answered."""

    followers: list[Callable[[], None]] = field(default_factory=list)
    """Called in order once the answer has left. They must not raise."""

    forwarded: bytes | None = None
    """The headers as nodes behind HTTP get them; written at the first of these calls, sent with each."""


class Node(Protocol):
    """A node of the graph. Every method raises NodeFailed, NodeUnreachable or another ServingError."""

    @property
    def name(self) -> str: ...

    @property
    def immediate(self) -> bool:
        """Whether predicting and transforming never wait: they are computed in this process, uninterrupted."""
        ...

    async def predict(self, message: Message, call: Call) -> Message: ...

    async def transform_input(self, message: Message, call: Call) -> Message: ...

    async def transform_output(self, message: Message, call: Call) -> Message: ...

    async def send_feedback(self, message: Message, call: Call) -> Message: ...

    async def route(self, message: Message, call: Call) -> Message:
        """Return the router's raw answer; the engine reads the child's index in it."""
        ...

    async def aggregate(self, messages: Sequence[Message], call: Call) -> Message: ...

    async def metadata(self, call: Call) -> Message:
        """Return the node's description: a JSON object with name, platform, versions, inputs, outputs, custom."""
        ...

    async def status(self, call: Call) -> Message:
        """Return the node's own answer about its health."""
        ...

    async def ready(self) -> bool: ...


class NodeObserver(Protocol):
    """Who is told of every call of a node: `method` such as "predict", the HTTP status (500 if there was none), seconds."""

    def node(self, node: str, method: str, status: int, seconds: float) -> None: ...
