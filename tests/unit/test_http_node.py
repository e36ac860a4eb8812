"""Nodes behind HTTP: real sockets, and servers that answer byte for byte what a test says."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from serving import http_client
from serving.errors import NodeFailed, NodeUnreachable
from serving.graph import Endpoint
from serving.http_client import HttpClient
from serving.http_node import HttpNode
from serving.messages import Message
from serving.nodes import Call

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
PAUSE, END = b"<pause>", b"<end>"  # within an answer: wait a moment; close the connection


class Server:
    """Answers the n-th request with the n-th entry of `answers` (the last one from then on), and keeps the requests."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)
        self.requests: list[bytes] = []
        self.connections: list[asyncio.Task[None]] = []
        self.port = 0

    def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.append(asyncio.create_task(self._serve(reader, writer)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                self.requests.append(head + (await reader.readexactly(int(length[0].split(b":")[1])) if length else b""))
                answer = self.answers[min(len(self.requests), len(self.answers)) - 1]
                for part in answer.removesuffix(END).split(PAUSE):
                    writer.write(part)
                    await writer.drain()
                    await asyncio.sleep(0.01)
                if answer.endswith(END):
                    break
        writer.close()

    def lines(self, request: int = 0) -> list[str]:
        return self.requests[request].decode("latin-1").partition("\r\n\r\n")[0].split("\r\n")


class Log:
    """An observer that keeps what it is told, but for the seconds."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, int]] = []

    def node(self, node: str, method: str, status: int, seconds: float) -> None:
        assert seconds >= 0
        self.told.append((node, method, status))


def run(server: Server, use: Callable[[HttpNode], Awaitable[Any]], *, timeout: float | None = None, **options: Any) -> Any:
    async def main() -> Any:
        listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
        server.port = listening.sockets[0].getsockname()[1]
        client = HttpClient(timeout)
        try:
            return await use(HttpNode("m", Endpoint("127.0.0.1", server.port, server.port), client, **options))
        finally:
            client.close()
            listening.close()
            await asyncio.gather(*server.connections)

    return asyncio.run(main())


def predict(*answers: bytes, call: Call | None = None, message: Message | None = None, **options: Any) -> Message:
    answer: Message = run(Server(*answers), lambda n: n.predict(message or Message(b"1"), call or Call()), **options)
    return answer


def test_a_request_carries_the_client_s_headers_but_those_of_one_hop_or_one_body() -> None:
    server = Server(OK)
    kept = [(b"x-a", b"1"), (b"x-a", b"2"), (b"x-raw", b"\xfc\xc3\xa9"), (b"content-encoding", b"gzip"), (b"user-agent", b"u")]
    dropped = [b"connection", b"content-length", b"content-type", b"host", b"expect", b"te", b"upgrade", b"transfer-encoding"]
    call = Call([*kept, *((name, b"zz") for name in dropped)], puid="p-1")
    run(server, lambda n: n.predict(Message(b"12", "a/b"), call))
    assert server.lines() == [
        "POST /predict HTTP/1.1",
        f"Host: 127.0.0.1:{server.port}",
        "Seldon-Puid: p-1",
        *(f"{name.decode()}: {value.decode('latin-1')}" for name, value in kept),
        "Content-Type: a/b",
        "Content-Length: 2",
    ]
    assert server.requests[0].endswith(b"\r\n\r\n12")


@pytest.mark.parametrize(("given", "sent"), [([b"p-9", b"p-8"], ["p-9", "p-8"]), ([b"", b"p-8"], ["made"]), ([], ["made"])])
def test_the_client_s_puids_are_passed_on_or_one_is_made(given: list[bytes], sent: list[str]) -> None:
    server = Server(OK)
    call = Call([(b"seldon-puid", value) for value in given], puid=given[0].decode() if given and given[0] else "made")
    run(server, lambda n: n.predict(Message(b"1"), call))
    assert [line.partition(": ")[2] for line in server.lines() if line.lower().startswith("seldon-puid")] == sent


def test_all_calls_of_a_node_share_one_connection() -> None:
    server = Server(OK)

    async def use(node: HttpNode) -> None:
        message, call = Message(b"1"), Call()
        for method in (node.predict, node.transform_input, node.transform_output, node.route, node.send_feedback):
            assert (await method(message, call)).body == b"{}"
        await node.aggregate([message, Message(b"[2]")], call)
        await node.metadata(call)
        await node.status(call)

    run(server, use)
    assert len(server.connections) == 1
    assert [line.split(b" HTTP")[0].decode() for line in server.requests] == [
        "POST /predict",
        "POST /transform-input",
        "POST /transform-output",
        "POST /route",
        "POST /send-feedback",
        "POST /aggregate",
        "GET /metadata",
        "GET /health/status",
    ]
    assert server.requests[5].endswith(b"\r\n\r\n[1,[2]]")


@pytest.mark.parametrize(
    ("answer", "connections"),
    [
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}", 2),
        (OK + b"HTTP/1.1 408 Timeout\r\nContent-Length: 0\r\n\r\n", 2),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, 1),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n<pause>1\r\n}\r\n0\r\n\r\n", 1),
    ],
)
def test_a_connection_is_used_again_where_the_answer_allows_it(answer: bytes, connections: int) -> None:
    server = Server(answer)

    async def use(node: HttpNode) -> None:
        for _ in range(2):
            assert (await node.predict(Message(b"1"), Call())).body == b"{}"
            await asyncio.sleep(0.02)

    run(server, use)
    assert len(server.connections) == connections


def test_a_connection_that_rested_too_long_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "IDLE_SECONDS", 0.0)
    server = Server(OK)

    async def use(node: HttpNode) -> None:
        for _ in range(2):
            await node.predict(Message(b"1"), Call())

    run(server, use)
    assert len(server.connections) == 2


def test_connections_that_rested_too_long_are_closed_when_another_comes_to_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(OK)

    async def use(node: HttpNode) -> None:
        await asyncio.gather(*(node.predict(Message(b"1"), Call()) for _ in range(3)))
        monkeypatch.setattr(http_client, "IDLE_SECONDS", 0.2)
        await asyncio.sleep(0.25)
        await node.predict(Message(b"1"), Call())
        # The three are at their end, without anything more being asked; the fourth is at rest.
        done, _ = await asyncio.wait(server.connections[:3], timeout=5)
        assert len(done) == 3
        assert not server.connections[3].done()

    run(server, use)
    assert len(server.connections) == 4


@pytest.mark.parametrize(
    ("answer", "body", "content_type"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\nto the end<end>", b"to the end", None),
        (b"HTTP/1.0 200 OK\r\nContent-Type: a/b\r\n\r\nold<end>", b"old", "a/b"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nContent-Type: c/d\r\nContent-Length: 0\r\n\r\n", b"", "a/b"),
    ],
)
def test_answers_of_other_forms_are_read(answer: bytes, body: bytes, content_type: str | None) -> None:
    message = predict(answer)
    assert (message.body, message.content_type) == (body, content_type)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (END, "the connection was closed before the answer was complete"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{}<end>", "the connection was closed before"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{}<end>", "the connection was closed before"),
        (b"hello\r\n\r\n<end>", "the answer is no HTTP/1.1"),
        (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "the answer is no HTTP/1.1"),
        (b"HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n", "the answer's status is 999"),
        (b"HTTP/1.1 302 Found\r\nLocation: https://127.0.0.1/\r\nContent-Length: 0\r\n\r\n", "only http is supported"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://[/\r\nContent-Length: 0\r\n\r\n", "redirected to 'http://[/'"),
        (b"HTTP/1.1 302 Found\r\nLocation: /predict\r\nContent-Length: 0\r\n\r\n", "stopped after 10 redirects"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nzz", "while decompressing"),
    ],
)
def test_what_is_no_answer_makes_the_node_unreachable(answer: bytes, reason: str) -> None:
    with pytest.raises(NodeUnreachable) as caught:
        predict(answer)
    assert reason in str(caught.value)
    assert str(caught.value).startswith("node m: http://127.0.0.1:")


def test_a_broken_connection_is_tried_again_while_patience_lasts_and_told_once() -> None:
    server, log = Server(END, b"HTTP/1.1 200 OK\r\n" + END, OK), Log()
    answer = run(server, lambda n: n.predict(Message(b"1"), Call()), patience_seconds=1.0, observer=log)
    assert (answer.body, len(server.requests)) == (b"{}", 3)
    assert log.told == [("m", "predict", 200)]


@pytest.mark.parametrize("patience", [0.0, 0.01])
def test_without_patience_a_broken_connection_is_final(patience: float) -> None:
    server = Server(END, OK)
    with pytest.raises(NodeUnreachable):
        run(server, lambda n: n.predict(Message(b"1"), Call()), patience_seconds=patience)
    assert len(server.requests) == 1


def test_feedback_is_never_sent_twice_and_an_answered_error_is_not_tried_again() -> None:
    server = Server(END, OK)
    with pytest.raises(NodeUnreachable):
        run(server, lambda n: n.send_feedback(Message(b"1"), Call()), patience_seconds=1.0)
    assert len(server.requests) == 1
    server = Server(b"HTTP/1.1 503 X\r\nContent-Length: 0\r\n\r\n", OK)
    with pytest.raises(NodeFailed):
        run(server, lambda n: n.predict(Message(b"1"), Call()), patience_seconds=1.0)
    assert len(server.requests) == 1


def test_nobody_listening_makes_the_node_unreachable_and_not_ready() -> None:
    async def use(node: HttpNode) -> bool:
        nobody = HttpNode("m", Endpoint("127.0.0.1", 1, 1), HttpClient())
        with pytest.raises(NodeUnreachable, match=r"node m: http://127\.0\.0\.1:1/predict"):
            await nobody.predict(Message(b"1"), Call())
        return await nobody.ready()

    assert run(Server(OK), use) is False


def test_a_node_over_its_time_budget_is_unreachable_and_its_late_answer_is_nobody_s() -> None:
    server = Server(PAUSE * 30 + OK, OK)

    async def use(node: HttpNode) -> bytes:
        with pytest.raises(NodeUnreachable, match="no answer in time"):
            await node.predict(Message(b"1"), Call())
        return (await node.predict(Message(b"2"), Call())).body

    assert run(server, use, timeout=0.15) == b"{}"
    assert len(server.connections) == 2


def test_a_cancelled_call_leaves_no_connection_behind() -> None:
    server = Server(PAUSE * 30 + OK, OK)

    async def use(node: HttpNode) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(node.predict(Message(b"1"), Call()), 0.05)
        await node.predict(Message(b"2"), Call())

    run(server, use)
    assert len(server.connections) == 2


@pytest.mark.parametrize(("status", "asked"), [(301, "GET"), (302, "GET"), (303, "GET"), (307, "POST"), (308, "POST")])
def test_redirects_are_followed_with_the_body_where_the_status_says_so(status: int, asked: str) -> None:
    server = Server(b"HTTP/1.1 %d X\r\nLocation: /other?a=1\r\nContent-Length: 0\r\n\r\n" % status, OK)
    run(server, lambda n: n.predict(Message(b"12", "a/b"), Call([(b"x-a", b"1")])))
    assert server.lines(1)[0] == f"{asked} /other?a=1 HTTP/1.1"
    assert "x-a: 1" in server.lines(1)
    assert ("Content-Type: a/b" in server.lines(1)) == (asked == "POST")
    assert server.requests[1].endswith(b"12") == (asked == "POST")


def test_a_redirect_carries_no_secrets_to_another_origin() -> None:
    other = Server(OK)

    async def use(node: HttpNode) -> None:
        listening = await asyncio.start_server(other.serve, "127.0.0.1", 0)
        location = f"http://localhost:{listening.sockets[0].getsockname()[1]}/x"
        server.answers = [b"HTTP/1.1 307 X\r\nLocation: %b\r\nContent-Length: 0\r\n\r\n" % location.encode()]
        secrets = [(b"authorization", b"Bearer x"), (b"cookie", b"a=b")]
        await node.predict(Message(b"1"), Call([*secrets, (b"x-a", b"1")], puid="p"))
        listening.close()
        server.connections += other.connections  # their end is awaited with the others'

    server = Server()
    run(server, use)
    assert {"authorization: Bearer x", "cookie: a=b", "x-a: 1"} < set(server.lines())
    assert {"x-a: 1", "Seldon-Puid: p"} < set(other.lines())
    assert not any(line.startswith(("authorization", "cookie")) for line in other.lines())


@pytest.mark.parametrize("status", [201, 204, 302, 404, 503])
def test_any_status_but_200_is_the_node_s_failure(status: int) -> None:
    body = b"" if status == 204 else b"oops"
    answer = b"HTTP/1.1 %d X\r\nContent-Type: a/b\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)
    with pytest.raises(NodeFailed) as caught:
        predict(answer)
    failure = caught.value
    assert (failure.node, failure.status, failure.body(), failure.content_type) == ("m", status, body, "a/b")


def test_a_compressed_answer_passes_as_it_is_to_a_client_that_can_read_it_else_it_is_decompressed() -> None:
    packed = gzip.compress(b"[1]")
    answer = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b" % (len(packed), packed)
    passed = predict(answer, call=Call([(b"accept-encoding", b"gzip")]))
    assert (passed.body, passed.content_encoding) == (packed, "gzip")
    plain = predict(answer)
    assert (plain.body, plain.content_encoding) == (b"[1]", None)
    server = Server(OK)
    run(server, lambda n: n.predict(passed, Call()))
    assert "Content-Encoding: gzip" in server.lines()


def test_a_large_body_arrives_whole() -> None:
    server = Server(OK)
    body = bytes(range(256)) * 20_000
    run(server, lambda n: n.predict(Message(body), Call()))
    assert server.requests[0].endswith(b"\r\n\r\n" + body)


@pytest.mark.parametrize(("answer", "ready"), [(OK, True), (b"HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n", False)])
def test_a_full_health_check_believes_the_node_itself(answer: bytes, ready: bool) -> None:
    server = Server(answer)
    assert run(server, lambda n: n.ready(), full_health_checks=True) is ready
    assert server.lines()[0] == "GET /api/v1.0/health/status HTTP/1.1"


def test_the_plain_check_only_opens_a_connection() -> None:
    server = Server(END)
    assert run(server, lambda n: n.ready()) is True
    assert server.requests == []


def test_an_observer_is_told_of_every_call() -> None:
    log = Log()
    predict(OK, observer=log)
    with pytest.raises(NodeFailed):
        predict(b"HTTP/1.1 404 X\r\nContent-Length: 0\r\n\r\n", observer=log)
    with pytest.raises(NodeUnreachable):
        predict(END, observer=log)
    assert log.told == [("m", "predict", 200), ("m", "predict", 404), ("m", "predict", 500)]
