"""The HTTP surface: the stock executor's routes as a bare ASGI application around an engine.

Invariant: every request gets one complete answer, and what a client chose (its path, its name for a node) is never a label.
"""

from __future__ import annotations

import logging
import posixpath
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol
from urllib.parse import quote

from serving import wire
from serving.answers import (
    BODILESS,
    JSON,
    TEXT,
    Answer,
    Headers,
    json_failure,
    node_failure,
    recorded_failure,
    recorded_success,
    success,
)
from serving.engine import Engine
from serving.errors import MethodNotAllowed, NotFound, ServingError, TooLarge, UnknownNode, UnsupportedMediaType
from serving.messages import Message
from serving.nodes import Call

log = logging.getLogger("contender.app")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

OTHER = "other"
"""The route that observers are told for a path that isn't served, and for a browser's OPTIONS."""


class Observer(Protocol):
    """Who is told of every request answered: the route's path, the HTTP status, seconds."""

    def request(self, route: str, status: int, seconds: float) -> None: ...


@dataclass(slots=True)
class Request:
    """One request while it is answered. `node` is what the path names; the body was read for POST routes."""

    scope: Scope
    call: Call
    node: str
    content_type: str | None
    length: bytes
    """What the client declared; empty where it did not."""

    cloud_event: bool
    body: bytes = b""


Handler = Callable[[Request], Awaitable[Answer]]


class Route:
    """What answers a path, and the method that it takes besides OPTIONS; "" for any."""

    def __init__(self, path: str, method: str, handler: Handler) -> None:
        self.path = path
        self.method = method
        self.handler = handler
        self.allowed = {"POST": "OPTIONS,POST", "GET": "GET,OPTIONS", "": ""}[method]
        self.headers: Headers = [
            (b"access-control-allow-origin", b"*"),
            (
                b"access-control-allow-headers",
                b"Accept, Accept-Encoding, Authorization, Content-Length, Content-Type, X-CSRF-Token",
            ),
            (b"x-content-type-options", b"nosniff"),
        ]
        if self.allowed:
            self.headers.append((b"access-control-allow-methods", self.allowed.encode()))


class App:
    """Serves an engine.

    Behaves as recorded of the stock executor: with `strict` to the letter, else with errors declared as JSON. `json_only` is
    for a service of one's own: requests must be JSON of at most `max_body_bytes`, and every error is a Status JSON.
    `ready_hooks` are asked before the engine whether requests may come. `deployment` and `namespace` name the service in
    CloudEvents headers, `predictor` in the graph's metadata.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        prometheus: Callable[[], tuple[bytes, str]],
        prometheus_path: str = "/prometheus",
        strict: bool = False,
        json_only: bool = False,
        max_body_bytes: int | None = None,
        observer: Observer | None = None,
        ready_hooks: Sequence[Callable[[], bool]] = (),
        deployment: str = "",
        namespace: str = "",
        predictor: str = "",
    ) -> None:
        self._engine = engine
        self._prometheus = prometheus
        self._json_only = json_only
        self._success = success if json_only else recorded_success
        self._failure = json_failure if json_only else recorded_failure if strict else node_failure
        self._max_body_bytes = max_body_bytes
        self._observer = observer
        self._ready_hooks = ready_hooks
        self._cloud_headers: Headers = [
            (b"ce-specversion", b"0.3"),
            (b"ce-source", f"seldon.{deployment}".encode()),
            (b"ce-type", f"seldon.{deployment}.{namespace}.response".encode()),
        ]
        self._predictor = predictor
        # Of its own, so that nobody's `random.seed` repeats it; the kernel's takes six times as long.
        self._random = Random()  # noqa: S311 - an id is no secret
        self._routes = {
            "/live": Route("/live", "", self._live),
            "/ready": Route("/ready", "", self._ready),
            prometheus_path: Route(prometheus_path, "", self._metrics),
            "/api/v1.0/status": Route("/api/v1.0/status", "GET", self._ready),
            "/api/v1.0/health/status": Route("/api/v1.0/health/status", "GET", self._ready),
            "/api/v1.0/metadata": Route("/api/v1.0/metadata", "GET", self._graph_metadata),
        }
        # Routes whose last segment names a node, by what stands before it.
        self._node_routes = {}
        for api in ("/api/v0.1", "/api/v1.0"):
            for path, handler in (("predictions", self._predictions), ("feedback", self._feedback)):
                self._routes[f"{api}/{path}"] = Route(f"{api}/{path}", "POST", handler)
            for path, handler in (("status", self._status), ("metadata", self._node_metadata)):
                self._node_routes[f"{api}/{path}"] = Route(f"{api}/{path}/{{node}}", "GET", handler)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        route, node = self._routes.get(scope["path"]), ""
        if route is None:
            route, node = self._find(scope["path"])
        request = None
        if route is None:
            name, answer, headers = OTHER, self._unknown(scope), []
        else:
            request = self._request(scope, node)
            name = OTHER if scope["method"] == "OPTIONS" else route.path
            answer = await self._answer(route, request, receive)
            headers = self._headers(route, request, answer)
        await send({"type": "http.response.start", "status": answer.status, "headers": _described(answer, headers)})
        await send({"type": "http.response.body", "body": answer.body})
        if self._observer is not None:
            self._observer.request(name, answer.status, time.perf_counter() - started)
        if request is not None and request.call.followers:
            # Taken off the call, which they refer to, as the finishers are.
            followers, request.call.followers = request.call.followers, []
            for follow in followers:
                follow()

    def _request(self, scope: Scope, node: str) -> Request:
        """Return the request without its body. Where a header comes twice, the first one counts, as recorded."""
        puid: bytes | None = None
        content_type: bytes | None = None
        length = b""
        cloud_event = False
        headers = scope["headers"]
        for name, value in headers:
            if name == b"content-type":
                content_type = value if content_type is None else content_type
            elif name == b"content-length":
                length = length or value
            elif name == b"seldon-puid":
                puid = value if puid is None else puid
            elif name == b"ce-specversion":
                cloud_event = True
        call = Call(headers, puid.decode("latin-1") if puid else self._new_puid(), scope["path"])
        declared = content_type.decode("latin-1") if content_type else None
        return Request(scope, call, node, declared, length, cloud_event)

    def _new_puid(self) -> str:
        """Return a random UUID (RFC 9562, version 4) as text, in a third of the time that `uuid.uuid4` takes."""
        text = f"{self._random.getrandbits(128):032x}"
        return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-{'89ab'[int(text[16], 16) & 3]}{text[17:20]}-{text[20:]}"

    def _find(self, path: str) -> tuple[Route | None, str]:
        parent, _, node = path.rpartition("/")
        return (self._node_routes.get(parent), node) if node else (None, "")

    def _unknown(self, scope: Scope) -> Answer:
        path: str = scope["path"]
        clean = posixpath.normpath("/" + path.lstrip("/")) + ("/" if path.endswith("/") and path.strip("/") else "")
        if clean != path:
            query = scope.get("query_string") or b""
            location = quote(clean).encode() + (b"?" + query if query else b"")
            return Answer(301, headers=[(b"location", location)])
        if self._json_only:
            return self._failure(NotFound(f"{path}: nothing is served here; predictions are at /api/v1.0/predictions"))
        return Answer(404, b"404 page not found\n", TEXT, headers=[(b"x-content-type-options", b"nosniff")])

    async def _answer(self, route: Route, request: Request, receive: Receive) -> Answer:
        method = request.scope["method"]
        try:
            if method != route.method:
                if method == "OPTIONS":
                    return Answer()
                if route.method:
                    raise MethodNotAllowed(method, route.path, route.allowed)
            if method == "POST":
                request.body = await self._read(request, receive)
            return await route.handler(request)
        except UnknownNode as error:
            return self._failure(NotFound(str(error)) if self._json_only else error)
        except ServingError as error:
            return self._failure(error)
        except Exception:
            log.exception("%s %s failed", method, route.path)
            return self._failure(ServingError("an unexpected fault of the server; its log says more"))

    def _headers(self, route: Route, request: Request, answer: Answer) -> Headers:
        if answer.status == 405:
            return []
        headers = [*route.headers, (b"seldon-puid", request.call.puid.encode("latin-1", "replace"))]
        if request.cloud_event:
            headers += [*self._cloud_headers, (b"ce-id", headers[-1][1]), (b"ce-path", request.call.path.encode())]
        return headers

    async def _read(self, request: Request, receive: Receive) -> bytes:
        """Return the whole body. Raises TooLarge as soon as it is known to be, and keeps no more than the limit."""
        limit = self._max_body_bytes
        message = await receive()
        chunks = [message.get("body", b"")]
        received = len(chunks[0])
        while True:
            if limit is not None and (received > limit or int(request.length or 0) > limit):
                raise TooLarge(f"the body is larger than {limit} bytes, the limit")
            if not message.get("more_body"):
                return chunks[0] if len(chunks) == 1 else b"".join(chunks)
            message = await receive()
            chunks.append(message.get("body", b""))
            received += len(chunks[-1])

    def _message(self, request: Request) -> Message:
        if self._json_only and request.content_type not in (None, "application/json"):
            kind = str(request.content_type).partition(";")[0].strip().lower()
            if kind != "application/json" and not kind.endswith("+json"):
                raise UnsupportedMediaType(f"content type {request.content_type!r}; application/json is expected")
        return Message(request.body, request.content_type)

    async def _predictions(self, request: Request) -> Answer:
        return self._success(await self._engine.predict(self._message(request), request.call))

    async def _feedback(self, request: Request) -> Answer:
        return self._success(await self._engine.feedback(self._message(request), request.call))

    async def _status(self, request: Request) -> Answer:
        return self._success(await self._engine.status(request.node, request.call))

    async def _node_metadata(self, request: Request) -> Answer:
        return self._success(await self._engine.node_metadata(request.node, request.call))

    async def _graph_metadata(self, request: Request) -> Answer:
        described = {"name": self._predictor, **await self._engine.metadata(request.call)}
        return Answer(200, wire.escape(wire.dump(described)), JSON)

    async def _live(self, request: Request) -> Answer:
        return Answer()

    async def _ready(self, request: Request) -> Answer:
        ready = all(hook() for hook in self._ready_hooks) and await self._engine.ready()
        return Answer(200 if ready else 503)

    async def _metrics(self, request: Request) -> Answer:
        body, content_type = self._prometheus()
        return Answer(200, body, content_type.encode())


def _described(answer: Answer, headers: Headers) -> Headers:
    """Return the headers with those that describe the answer."""
    if answer.headers:
        headers = [*headers, *answer.headers]
    if answer.content_type:
        headers.append((b"content-type", answer.content_type))
    if answer.content_encoding:
        headers.append((b"content-encoding", answer.content_encoding))
    if answer.status not in BODILESS:
        headers.append((b"content-length", b"%d" % len(answer.body)))
    return headers
