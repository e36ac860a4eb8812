"""An HTTP/1.1 client for the short way between the engine and its nodes: pooled keep-alive connections, few bytes, no retry.

A general client (aiohttp) costs three times the CPU a hop and a third of a second at start. Invariant: a request is sent
once; a connection goes back to the pool only after a complete answer that allows it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

import httptools

IDLE_SECONDS = 1.5
"""How long a connection may rest. gunicorn, below Seldon's wrapper, closes after 2 s: a request must not meet that moment."""

CONNECT_SECONDS = 30.0
MAX_REDIRECTS = 10

SECRETS = (b"authorization:", b"cookie:", b"proxy-authorization:")
"""Headers that a redirect doesn't carry to another origin."""


@dataclass(slots=True)
class Response:
    """A node's complete answer. Header names are in lower case."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes

    def header(self, name: bytes) -> str | None:
        """Return the first value of this header, None where there is none."""
        for each, value in self.headers:
            if each == name:
                return value.decode("latin-1")
        return None


class HttpClient:
    """Sends requests to any origin over plain HTTP. `timeout` bounds one exchange with its redirects, in seconds."""

    def __init__(self, timeout: float | None = None) -> None:
        self._timeout = timeout
        self._pools: dict[tuple[str, int], _Pool] = {}

    async def get(self, host: str, port: int, target: str, headers: bytes = b"") -> Response:
        """Return the answer; for all else see `post`."""
        return await self._follow("GET", host, port, target, headers, None)

    async def post(self, host: str, port: int, target: str, headers: bytes, about_body: bytes, body: bytes) -> Response:
        """Return the answer to the body. `headers`, and those `about_body`, are whole lines; Host and Content-Length are added.

        Redirects are followed as Go's client does. Raises OSError: TimeoutError, or what broke the connection.
        """
        return await self._follow("POST", host, port, target, headers, (about_body, body))

    def close(self) -> None:
        """Close the connections at rest."""
        for pool in self._pools.values():
            pool.close()

    async def _follow(
        self, method: str, host: str, port: int, target: str, headers: bytes, body: tuple[bytes, bytes] | None
    ) -> Response:
        deadline = None if self._timeout is None else asyncio.get_running_loop().time() + self._timeout
        for _ in range(MAX_REDIRECTS):
            answer = await self._pool(host, port).exchange(method, target, headers, body, deadline)
            if answer.status not in (301, 302, 303, 307, 308):
                return answer
            location = answer.header(b"location")
            if not location:
                return answer
            origin = host, port
            host, port, target = _resolve(f"http://{_authority(host, port)}{target}", location)
            if (host, port) != origin:
                headers = b"".join(line for line in headers.splitlines(keepends=True) if not line.lower().startswith(SECRETS))
            if answer.status < 307:
                method, body = "GET", None
        raise ConnectionError(f"stopped after {MAX_REDIRECTS} redirects, at {target}")

    def _pool(self, host: str, port: int) -> _Pool:
        pool = self._pools.get((host, port))
        if pool is None:
            pool = self._pools[host, port] = _Pool(host, port)
        return pool


def _resolve(base: str, location: str) -> tuple[str, int, str]:
    try:
        url = urlsplit(urljoin(base, location))
        port = url.port or 80
    except ValueError as error:
        raise ConnectionError(f"redirected to {location!r}: {error}") from None
    if url.scheme != "http" or not url.hostname:
        raise ConnectionError(f"redirected to {location!r}; only http is supported")
    return url.hostname, port, (url.path or "/") + (f"?{url.query}" if url.query else "")


def _authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class _Pool:
    """The connections to one origin, last used first."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._line = f" HTTP/1.1\r\nHost: {_authority(host, port)}\r\n".encode()
        self._idle: deque[_Connection] = deque()

    async def exchange(
        self, method: str, target: str, headers: bytes, body: tuple[bytes, bytes] | None, deadline: float | None
    ) -> Response:
        connection = self._rested() or await self._connect(deadline)
        head = f"{method} {target}".encode() + self._line + headers
        if body is None:
            answer = await connection.exchange(head + b"\r\n", b"", deadline)
        else:
            about, content = body
            head = b"%b%bContent-Length: %d\r\n\r\n" % (head, about, len(content))
            answer = await connection.exchange(head, content, deadline)
        if connection.reusable:
            self._rest(connection)
        else:
            connection.close()
        return answer

    def close(self) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    def _rest(self, connection: _Connection) -> None:
        connection.rests_since = now = asyncio.get_running_loop().time()
        self._idle.append(connection)
        while self._idle[0].rests_since < now - IDLE_SECONDS:
            self._idle.popleft().close()

    def _rested(self) -> _Connection | None:
        if not self._idle:
            return None
        oldest = asyncio.get_running_loop().time() - IDLE_SECONDS
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable and connection.rests_since > oldest:
                return connection
            connection.close()
        return None

    async def _connect(self, deadline: float | None) -> _Connection:
        loop = asyncio.get_running_loop()
        end = loop.time() + CONNECT_SECONDS
        async with asyncio.timeout_at(end if deadline is None else min(end, deadline)):
            # Both asyncio and uvloop set TCP_NODELAY.
            _, connection = await loop.create_connection(_Connection, self._host, self._port)
        return connection


class _Connection(asyncio.Protocol):
    """One connection, one exchange at a time."""

    def __init__(self) -> None:
        self.rests_since = 0.0
        self.reusable = False
        self._transport: Any = None
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[Response] | None = None
        self._headers: list[tuple[bytes, bytes]] = []
        self._chunks: list[bytes] = []
        self._ends_with_connection = False

    async def exchange(self, head: bytes, body: bytes, deadline: float | None) -> Response:
        loop = asyncio.get_running_loop()
        self.reusable = False
        waiter: asyncio.Future[Response] = loop.create_future()
        self._waiter = waiter
        if len(body) < 65536:
            self._transport.write(head + body)
        else:
            self._transport.writelines((head, body))
        timer = None if deadline is None else loop.call_at(deadline, self._fail, TimeoutError("no answer in time"))
        try:
            return await waiter
        except BaseException:
            # Cancelled, timed out or broken: what may still arrive belongs to nobody.
            self._transport.abort()
            raise
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    def close(self) -> None:
        self.reusable = False
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._waiter is None:
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(ConnectionError(f"the answer is no HTTP/1.1: {error!r:.80}"))

    def connection_lost(self, error: Exception | None) -> None:
        self.reusable = False
        if self._ends_with_connection and error is None:
            self._complete(reusable=False)
        self._fail(error or ConnectionResetError("the connection was closed before the answer was complete"))

    # The parser's callbacks.

    def on_message_begin(self) -> None:
        if self._waiter is None or self._waiter.done():
            # A second answer to one request: nobody asked for it, and what follows it can't be trusted.
            self.reusable = False
        self._headers = []
        self._chunks = []
        self._ends_with_connection = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        framed = any(name in (b"content-length", b"transfer-encoding") for name, _ in self._headers)
        self._ends_with_connection = not framed and self._parser.get_status_code() >= 200

    def on_body(self, body: bytes) -> None:
        self._chunks.append(body)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 600:
            self._fail(ConnectionError(f"the answer's status is {status}"))
        elif status >= 200:
            self._complete(reusable=self._parser.should_keep_alive())

    def _complete(self, *, reusable: bool) -> None:
        if self._waiter is not None and not self._waiter.done():
            # A node may answer before it has read the whole request; then the rest is still under way.
            self.reusable = reusable and not self._transport.get_write_buffer_size()
            chunks = self._chunks
            body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            self._waiter.set_result(Response(self._parser.get_status_code(), self._headers, body))

    def _fail(self, error: Exception) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)
