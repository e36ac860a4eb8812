"""Following an Experiment where the API server does what a healthy one can't be asked to do: a server that follows a script."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from router.cluster import FIRST_PAUSE, LONGEST_PAUSE, Cluster, Listener, follow, pause
from router.errors import ChangeConflict, ClusterError

BROKEN, ENDED = "broken", "ended"


def seen(generation: int, version: int) -> dict[str, Any]:
    return {"metadata": {"name": "t", "generation": generation, "resourceVersion": str(version)}}


def event(kind: str, generation: int, version: int) -> bytes:
    return json.dumps({"type": kind, "object": seen(generation, version)}).encode() + b"\n"


GONE_EVENT = json.dumps({"type": "ERROR", "object": {"code": 410, "message": "too old"}}).encode() + b"\n"


class Script:
    """What the server answers: a list as (status, body), a watch as chunks and how it ends. It notes what it was asked."""

    def __init__(self) -> None:
        self.lists: list[tuple[int, object]] = []
        self.watches: list[tuple[int, list[bytes], str]] = []
        self.asked: list[str] = []


class Told(Listener):
    """A listener that notes what it is told, and stops the following after so many notes."""

    def __init__(self, enough: int) -> None:
        self.notes: list[str] = []
        self.reasons: list[str] = []
        self.stopping = threading.Event()
        self._enough = enough

    def shown(self, document: Mapping[str, Any] | None) -> None:
        self._note("none" if document is None else f"shown {document['metadata']['generation']}")

    def confirmed(self) -> None:
        self._note("confirmed")

    def lost(self, reason: str) -> None:
        self.reasons.append(reason)
        self._note("lost")

    def _note(self, what: str) -> None:
        self.notes.append(what)
        if len(self.notes) >= self._enough:
            self.stopping.set()


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def connect(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Cluster]]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
            assert query["fieldSelector"] == "metadata.name=t", "rights on one name allow nothing else"
            if "watch" not in query:
                script.asked.append("list")
                status, answer = script.lists.pop(0)
                self._json(status, answer)
                return
            script.asked.append(f"watch {query['resourceVersion']}")
            status, chunks, end = script.watches.pop(0)
            if status != 200:
                self._json(status, {"message": "no"})
                return
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for chunk in chunks:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            if end == ENDED:
                self.wfile.write(b"0\r\n\r\n")
            else:
                self.close_connection = True

        def do_PATCH(self) -> None:
            script.asked.append(self.path)
            self.rfile.read(int(self.headers["Content-Length"]))
            self._json(*script.lists.pop(0))

        def _json(self, status: int, answer: object) -> None:
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    config = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "n"}}],
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
        "users": [{"name": "u", "user": {}}],
    }
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config), encoding="utf-8")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    yield Cluster
    server.shutdown()
    thread.join()
    server.server_close()


def listed(generation: int | None, version: int) -> tuple[int, object]:
    items = [] if generation is None else [seen(generation, version)]
    return 200, {"items": items, "metadata": {"resourceVersion": str(version)}}


def run(connect: type[Cluster], enough: int) -> Told:
    told = Told(enough)
    thread = threading.Thread(target=follow, args=("t", connect, told, told.stopping), daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive(), told.notes
    # It may be told once more before it looks whether to stop.
    del told.notes[enough:]
    return told


def test_a_watch_is_taken_up_where_the_last_one_ended(script: Script, connect: type[Cluster]) -> None:
    script.lists = [listed(1, 10)]
    # An event cut in two by the network is one event.
    second = event("MODIFIED", 2, 12)
    script.watches = [
        (200, [event("BOOKMARK", 0, 11), second[:20], second[20:]], ENDED),
        (200, [event("MODIFIED", 3, 15) + event("DELETED", 3, 16) + event("ADDED", 1, 17)], ENDED),
        (200, [event("BOOKMARK", 0, 20)], ENDED),
    ]
    told = run(connect, 8)
    assert told.notes == ["shown 1", "confirmed", "shown 2", "confirmed", "shown 3", "none", "shown 1", "confirmed"]
    assert script.asked[:3] == ["list", "watch 10", "watch 12"]


@pytest.mark.parametrize("gone", [(410, [], ENDED), (200, [GONE_EVENT], ENDED)], ids=["status", "event"])
def test_what_is_too_old_is_listed_anew(script: Script, connect: type[Cluster], gone: tuple[int, list[bytes], str]) -> None:
    script.lists = [listed(1, 10), listed(4, 90)]
    script.watches = [gone, (200, [event("MODIFIED", 5, 91)], ENDED)]
    told = run(connect, 4)
    assert told.notes == ["shown 1", "shown 4", "shown 5", "confirmed"], "this is no loss"
    assert script.asked == ["list", "watch 10", "list", "watch 90"]


def test_a_broken_watch_is_taken_up_and_after_more_failures_the_experiment_is_listed(
    script: Script, connect: type[Cluster]
) -> None:
    script.lists = [listed(1, 10), (503, {"message": "the server is starting"}), listed(None, 90)]
    script.watches = [
        (200, [event("MODIFIED", 2, 12)], BROKEN),
        (200, [event("MODIFIED", 3, 13)], BROKEN),
        (200, [event("ADDED", 1, 91)], ENDED),
    ]
    told = run(connect, 8)
    assert told.notes == ["shown 1", "shown 2", "lost", "shown 3", "lost", "lost", "none", "shown 1"]
    assert script.asked[:5] == ["list", "watch 10", "watch 12", "list", "list"]
    assert "experiment n/t" in told.reasons[0]
    assert told.reasons[2] == "experiments in namespace n: the server is starting"


def test_a_server_that_ends_every_watch_at_once_is_not_asked_without_pause(script: Script, connect: type[Cluster]) -> None:
    script.lists = [listed(1, 10)]
    script.watches = [(200, [], ENDED)] * 3 + [(200, [event("BOOKMARK", 0, 11)], ENDED)]
    begun = time.monotonic()
    told = run(connect, 2)
    assert told.notes == ["shown 1", "confirmed"]
    assert time.monotonic() - begun > FIRST_PAUSE * (1 + 2 + 4) / 2


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_pauses_grow_to_a_bound_and_are_spread(failures: int, chance: float) -> None:
    seconds = pause(failures, lambda: chance)
    assert FIRST_PAUSE / 2 <= seconds <= LONGEST_PAUSE
    assert pause(failures + 1, lambda: chance) >= seconds
    assert pause(failures, lambda: 0.0) == pause(failures, lambda: 1.0) / 2


def test_a_refusal_is_one_line_in_the_servers_words(script: Script, connect: type[Cluster]) -> None:
    cluster = connect(user="anna")
    script.lists = [
        (409, {"message": "modified"}),
        (422, {"message": "share is 25;\n a percentage"}),
        (500, "x"),
        (422, {"message": "y" * 9000}),
    ]
    with pytest.raises(ChangeConflict, match="modified"):
        cluster.change("t", {"share": "25%"}, "1")
    assert "fieldManager=contender-anna" in script.asked[0]
    with pytest.raises(ClusterError, match="experiment n/t: share is 25; a percentage"):
        cluster.change("t", {}, "1")
    with pytest.raises(ClusterError, match="500"):
        cluster.change("t", {}, "1")
    with pytest.raises(ClusterError) as caught:
        cluster.change("t", {}, "1")
    assert len(str(caught.value)) < 1100
    cluster.close()


def test_a_cluster_that_is_not_configured_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "missing"))
    with pytest.raises(ClusterError, match="no cluster is configured"):
        Cluster()
