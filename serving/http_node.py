"""A node behind HTTP: a container that speaks Seldon's v1 protocol, as Seldon's wrappers do.

Invariant: bodies pass as they are; each call carries the client's headers but those that belong to one hop or one body.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Awaitable, Callable, Sequence

from serving import wire
from serving.errors import NodeFailed, NodeUnreachable, ServingError
from serving.graph import Endpoint
from serving.http_client import HttpClient, Response
from serving.messages import Message
from serving.nodes import Call, NodeObserver

NOT_FORWARDED = frozenset(
    b"connection content-length content-type expect host keep-alive proxy-connection te trailer transfer-encoding"
    b" upgrade".split()
)

FIRST_PAUSE_SECONDS = 0.02
"""Before a call is tried again; each further pause is twice as long."""

PROBE_SECONDS = 2.0
"""How long a node may take to accept a probe's connection, or to answer a full health check."""


class HttpNode:
    """Calls one node over the client's pooled connections.

    With `full_health_checks` the node is ready if it says so, else as soon as its port accepts connections.
    """

    immediate = False

    def __init__(
        self,
        name: str,
        endpoint: Endpoint,
        client: HttpClient,
        *,
        full_health_checks: bool = False,
        observer: NodeObserver | None = None,
        patience_seconds: float = 0.0,
    ) -> None:
        """`patience_seconds` is how long a connection that is refused or breaks is tried again; 0: never."""
        self.name = name
        self._endpoint = endpoint
        self._client = client
        self._full_health_checks = full_health_checks
        self._observer = observer
        self._patience_seconds = patience_seconds

    async def predict(self, message: Message, call: Call) -> Message:
        return await self._post("predict", message, call)

    async def transform_input(self, message: Message, call: Call) -> Message:
        return await self._post("transform-input", message, call)

    async def transform_output(self, message: Message, call: Call) -> Message:
        return await self._post("transform-output", message, call)

    async def send_feedback(self, message: Message, call: Call) -> Message:
        return await self._post("send-feedback", message, call)

    async def route(self, message: Message, call: Call) -> Message:
        return await self._post("route", message, call)

    async def aggregate(self, messages: Sequence[Message], call: Call) -> Message:
        """Send all messages as one JSON array. Raises ServingError if one of them is no JSON."""
        bodies = [message.body for message in messages]
        if not all(wire.is_json(body) for body in bodies):
            raise ServingError(f"node {self.name}: what its children answered is no JSON, so it can't be combined")
        joined = Message(b"[%b]" % b",".join(bodies), messages[0].content_type)
        return await self._post("aggregate", joined, call)

    async def metadata(self, call: Call) -> Message:
        return await self._get("metadata", call)

    async def status(self, call: Call) -> Message:
        return await self._get("health/status", call)

    async def ready(self) -> bool:
        at = self._endpoint
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                if self._full_health_checks:
                    answer = await self._client.get(at.host, at.port, "/api/v1.0/health/status")
                    return answer.status == 200
                if at.host and at.probe_port > 0:
                    _, writer = await asyncio.open_connection(at.host, at.probe_port)
                    writer.close()
        except OSError:
            return False
        return True

    async def _post(self, method: str, message: Message, call: Call) -> Message:
        about = b""
        if message.content_type is not None:
            about = b"Content-Type: %b\r\n" % message.content_type.encode("latin-1")
        if message.content_encoding is not None:
            about += b"Content-Encoding: %b\r\n" % message.content_encoding.encode("latin-1")
        at = self._endpoint
        forwarded = _forwarded(call)
        return await self._ask(
            method, call, lambda: self._client.post(at.host, at.port, f"/{method}", forwarded, about, message.body)
        )

    async def _get(self, method: str, call: Call) -> Message:
        at = self._endpoint
        return await self._ask(method, call, lambda: self._client.get(at.host, at.port, f"/{method}", _forwarded(call)))

    async def _ask(self, method: str, call: Call, ask: Callable[[], Awaitable[Response]]) -> Message:
        status = 500
        started = time.perf_counter()
        try:
            answer = await self._patiently(method, ask)
            status = answer.status
            message = _message(answer, call)
        except (OSError, zlib.error) as error:
            at = self._endpoint
            reason = str(error) or type(error).__name__
            raise NodeUnreachable(f"node {self.name}: http://{at.host}:{at.port}/{method}: {reason}") from error
        finally:
            if self._observer is not None:
                self._observer.node(self.name, method, status, time.perf_counter() - started)
        if status != 200:
            raise NodeFailed(self.name, status, message.body, message.content_type, message.content_encoding)
        return message

    async def _patiently(self, method: str, ask: Callable[[], Awaitable[Response]]) -> Response:
        """Ask until there is an answer. Nothing but feedback changes a node, so nothing else is done twice by asking twice."""
        patience = 0.0 if method == "send-feedback" else self._patience_seconds
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                return await ask()
            except OSError as error:
                if isinstance(error, TimeoutError) or pause > patience:
                    raise
            await asyncio.sleep(pause)
            patience -= pause
            pause *= 2


def _message(answer: Response, call: Call) -> Message:
    """Return the answer as a message; decompressed if the client, who never asked for compression, couldn't do it."""
    body, encoding = answer.body, answer.header(b"content-encoding") or None
    if encoding == "gzip" and not any(name == b"accept-encoding" for name, _ in call.headers):
        body, encoding = zlib.decompress(body, zlib.MAX_WBITS | 16), None
    return Message(body, answer.header(b"content-type"), encoding)


def _forwarded(call: Call) -> bytes:
    """Return the headers for all nodes as lines. The engine's own puid goes where the client gave none, or an empty one."""
    if call.forwarded is None:
        given = next((value for name, value in call.headers if name == b"seldon-puid"), b"")
        lines = [] if given else [b"Seldon-Puid: %b\r\n" % call.puid.encode("latin-1", "replace")]
        for name, value in call.headers:
            if name not in NOT_FORWARDED and (given or name != b"seldon-puid"):
                lines.append(b"%b: %b\r\n" % (name, value))
        call.forwarded = b"".join(lines)
    return call.forwarded
