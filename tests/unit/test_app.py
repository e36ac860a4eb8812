"""The HTTP surface as ASGI: limits, error forms and hooks. What the stock executor does is told in tests/conformance."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import MutableMapping
from typing import Any, NamedTuple

import pytest

from serving.app import App
from serving.engine import Engine
from serving.errors import BadRequest, NodeFailed
from serving.graph import GraphNode
from serving.messages import Message
from serving.nodes import Call

PREDICT = "/api/v1.0/predictions"


class Answered(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    def failure(self) -> dict[str, Any]:
        assert self.headers["content-type"] == "application/json"
        status: dict[str, Any] = json.loads(self.body)["status"]
        assert status["status"] == "FAILURE"
        assert status["code"] == self.status
        return status


class Echo(Engine):
    """An engine that answers the request itself, or fails as it is told to."""

    def __init__(self, fails: Exception | None = None) -> None:
        super().__init__(GraphNode("m", key="m"), {})
        self.fails = fails
        self.is_ready = True
        self.calls: list[Call] = []

    async def predict(self, message: Message, call: Call) -> Message:
        self.calls.append(call)
        if self.fails:
            raise self.fails
        return await super().predict(message, call)

    async def ready(self) -> bool:
        return self.is_ready


class Log:
    def __init__(self) -> None:
        self.told: list[tuple[str, int]] = []

    def request(self, route: str, status: int, seconds: float) -> None:
        assert seconds >= 0
        self.told.append((route, status))


def app(engine: Engine | None = None, **options: Any) -> App:
    return App(engine or Echo(), prometheus=lambda: (b"up 1\n", "text/plain; version=0.0.4"), **options)


def ask(
    app: App, path: str = PREDICT, method: str = "POST", *chunks: bytes, headers: dict[str, str] | None = None, query: str = ""
) -> Answered:
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks[:-1]]
    messages.append({"type": "http.request", "body": chunks[-1] if chunks else b"", "more_body": False})
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        return messages.pop(0)

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    raw = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
    scope = {"type": "http", "method": method, "path": path, "headers": raw, "query_string": query.encode()}
    asyncio.run(app(scope, receive, send))
    start, body = sent
    answered = {name.decode(): value.decode() for name, value in start["headers"]}
    assert len(answered) == len(start["headers"]), "a header was sent twice"
    assert answered.get("content-length", "0") == str(len(body["body"]))
    return Answered(start["status"], answered, body["body"])


@pytest.mark.parametrize("kind", [None, "application/json", "Application/JSON; charset=utf-8", "application/ld+json"])
def test_json_only_takes_json_declared_or_undeclared(kind: str | None) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    assert ask(app(json_only=True), PREDICT, "POST", b"{}", headers=headers).body == b"{}"


@pytest.mark.parametrize("path", [PREDICT, "/api/v0.1/predictions", "/api/v1.0/feedback"])
def test_json_only_refuses_other_types_which_else_pass(path: str) -> None:
    headers = {"Content-Type": "text/csv"}
    refused = ask(app(json_only=True), path, "POST", b"a", headers=headers)
    assert "text/csv" in refused.failure()["info"]
    assert refused.status == 415
    passed = ask(app(), path, "POST", b"a", headers=headers)
    assert (passed.status, passed.headers["content-type"], passed.body) == (200, "text/csv", b"a")


def test_a_body_over_the_limit_is_refused_before_the_rest_is_read() -> None:
    limited = app(json_only=True, max_body_bytes=4)
    assert ask(limited, PREDICT, "POST", b"1234").status == 200
    assert ask(limited, PREDICT, "POST", b"12", b"34").status == 200
    assert ask(limited, PREDICT, "POST", b"12345").failure()["code"] == 413
    # Were one chunk more read than needed, the list of messages would run out with an IndexError.
    assert ask(limited, PREDICT, "POST", b"123", b"45", b"6").status == 413
    assert ask(limited, PREDICT, "POST", b"1", b"2", headers={"Content-Length": "5"}).status == 413


def test_a_body_of_several_parts_arrives_in_one() -> None:
    assert ask(app(), PREDICT, "POST", b"[1", b",", b"", b"2]").body == b"[1,2]"


@pytest.mark.parametrize(("method", "path"), [("GET", PREDICT), ("PUT", PREDICT), ("POST", "/api/v1.0/metadata")])
def test_a_wrong_method_is_told_which_are_right(method: str, path: str) -> None:
    allowed = "GET,OPTIONS" if method == "POST" else "OPTIONS,POST"
    refused = ask(app(json_only=True), path, method)
    assert refused.failure()["code"] == 405
    assert refused.headers["allow"] == allowed
    recorded = ask(app(), path, method)
    assert (recorded.status, recorded.headers["allow"], recorded.body) == (405, allowed, b"")


def test_an_unknown_path_is_text_as_recorded_and_json_for_a_service_of_one_s_own() -> None:
    assert ask(app(), "/nope", "GET").body == b"404 page not found\n"
    assert "/api/v1.0/predictions" in ask(app(json_only=True), "/nope", "GET").failure()["info"]


@pytest.mark.parametrize(
    ("path", "query", "location"),
    [("//live", "", "/live"), ("/api/../live", "a=1&b", "/live?a=1&b"), ("/a//ü/", "", "/a/%C3%BC/"), ("/a/./b", "", "/a/b")],
)
def test_an_unclean_path_is_redirected(path: str, query: str, location: str) -> None:
    answered = ask(app(), path, "GET", query=query)
    assert (answered.status, answered.headers["location"]) == (301, location)


FAILURES = [
    (NodeFailed("m", 503, b'{"e":"<"}', "x/y"), b'{"e":"\\u003c"}', "application/json", "text/plain; charset=utf-8"),
    (NodeFailed("m", 503, b"oops", "x/y"), b"oops", "text/plain; charset=utf-8", "text/plain; charset=utf-8"),
    (NodeFailed("m", 503, b"\x00", "x/y"), b"\x00", "application/octet-stream", "application/octet-stream"),
    (NodeFailed("m", 503, b"\x1f\x8b\x08<", "x/y", "gzip"), b"\x1f\x8b\x08<", "x/y", "application/x-gzip"),
    (NodeFailed("m", 201, b"{}", "x/y"), b"{}", "text/plain; charset=utf-8", "text/plain; charset=utf-8"),
    (NodeFailed("m", 503, b"", "x/y"), b"", None, None),
]


@pytest.mark.parametrize(("failure", "body", "default", "strict"), FAILURES)
def test_a_node_s_failure_passes_with_its_status_and_body(
    failure: NodeFailed, body: bytes, default: str | None, strict: str | None
) -> None:
    for options, kind in (({}, default), ({"strict": True}, strict)):
        answered = ask(app(Echo(failure), **options))
        assert (answered.status, answered.body) == (failure.status, body)
        assert answered.headers.get("content-type") == kind
    own = ask(app(Echo(failure), json_only=True))
    assert own.status == failure.status
    assert own.headers["content-type"] == "application/json"
    assert json.loads(own.body) is not None


def test_statuses_without_a_body_get_none() -> None:
    for options in ({}, {"strict": True}, {"json_only": True}):
        answered = ask(app(Echo(NodeFailed("m", 204, b"", None)), **options))
        assert (answered.status, answered.body, "content-length" in answered.headers) == (204, b"", False)


def test_a_fault_of_ours_is_logged_and_told_without_its_details(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        answered = ask(app(Echo(RuntimeError("secret"))))
    assert answered.status == 500
    assert "secret" not in answered.failure()["info"]
    assert "RuntimeError: secret" in caplog.text


def test_an_error_s_text_may_hold_anything_that_a_client_sent() -> None:
    assert ask(app(Echo(BadRequest("\ud800 <é>")))).failure()["info"] == "? <é>"


def test_requests_without_puid_get_one_and_others_keep_theirs() -> None:
    engine = Echo()
    made = ask(app(engine)).headers["seldon-puid"]
    assert made == engine.calls[0].puid != ask(app(engine)).headers["seldon-puid"]
    assert ask(app(engine), headers={"Seldon-Puid": "p-1"}).headers["seldon-puid"] == "p-1" == engine.calls[2].puid


def test_cloud_events_are_answered_as_such() -> None:
    service = app(deployment="d", namespace="n")
    headers = ask(service, headers={"Ce-Specversion": "1.0", "Seldon-Puid": "p"}).headers
    assert {name: value for name, value in headers.items() if name.startswith("ce-")} == {
        "ce-id": "p",
        "ce-path": PREDICT,
        "ce-source": "seldon.d",
        "ce-specversion": "0.3",
        "ce-type": "seldon.d.n.response",
    }
    assert not any(name.startswith("ce-") for name in ask(service).headers)


def test_ready_asks_the_hooks_and_the_engine() -> None:
    engine, open_ = Echo(), [True]
    service = app(engine, ready_hooks=[lambda: open_[0]])
    assert ask(service, "/ready", "GET").status == 200
    open_[0] = False
    assert ask(service, "/ready", "GET").status == 503
    assert ask(service, "/live", "GET").status == 200
    open_[0], engine.is_ready = True, False
    assert ask(service, "/api/v1.0/status", "GET").status == 503


def test_the_observer_is_told_routes_never_what_a_client_made_up() -> None:
    log = Log()
    service = app(Echo(), observer=log, json_only=True)
    for path, method in (
        (PREDICT, "POST"),
        (PREDICT, "GET"),
        ("/api/v1.0/status/xyz", "GET"),
        ("/xyz", "GET"),
        ("//xyz", "GET"),
    ):
        ask(service, path, method)
    assert log.told == [(PREDICT, 200), (PREDICT, 405), ("/api/v1.0/status/{node}", 404), ("other", 404), ("other", 301)]


def test_metrics_are_under_the_path_asked_for() -> None:
    answered = ask(app(prometheus_path="/metrics"), "/metrics", "GET")
    assert (answered.body, answered.headers["content-type"]) == (b"up 1\n", "text/plain; version=0.0.4")
    assert ask(app(prometheus_path="/metrics"), "/prometheus", "GET").status == 404
