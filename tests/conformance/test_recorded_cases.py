"""What the stock executor was recorded to do, asked of `contender executor` as a real process, in both of its modes.

`cases.json` came with the design, `more_cases.json` was recorded the same way. With CONTENDER_ORACLE set to a stock executor's
binary its answers are judged instead of ours: so the recordings themselves can be checked.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from harness.ports import free_port

HERE = Path(__file__).parent
ORACLE = os.environ.get("CONTENDER_ORACLE")
AHEAD = 3  # processes that start while the current one is asked
START_SECONDS = 30
MASKED = {"E11": 500, "I11": 500}  # of cases.json: recorded as 200 although a node failed
KNOWN_TYPES = {None, "", "UNKNOWN_TYPE", "MODEL", "ROUTER", "COMBINER", "TRANSFORMER", "OUTPUT_TRANSFORMER"}

Case = dict[str, Any]


def load() -> list[Case]:
    cases: list[Case] = []
    for name in ("cases.json", "more_cases.json"):
        recorded = json.loads((HERE / name).read_text())
        for case in recorded["cases"]:
            if "deviation" not in case and case["id"] in MASKED:
                case["deviation"] = {"status": MASKED[case["id"]]}
            cases.append({**case, "mocks": {**recorded["default_mocks"], **case["mocks"]}})
    return cases


class Setup(NamedTuple):
    """What needs a process of its own: cases with the same setup share one."""

    mode: str
    graph: str
    env: str
    options: str


def setup_of(case: Case, mode: str) -> Setup:
    parts = (case["graph"], case.get("env") or {}, case.get("executor") or {})
    return Setup(mode, *(json.dumps(part, sort_keys=True) for part in parts))


MODES = ["oracle"] if ORACLE else ["default", "strict"]
REPLAYS = sorted(
    ((setup_of(case, mode), case) for mode in MODES for case in load()), key=lambda replay: (replay[0], replay[1]["id"])
)


class Nodes:
    """The graph's nodes as stub servers: they answer as the case says, and keep what they were asked."""

    def __init__(self, graph: dict[str, Any]) -> None:
        self.mocks: dict[str, dict[str, Any]] = {}
        self.calls: list[dict[str, Any]] = []
        self._servers: list[ThreadingHTTPServer] = []
        for node in walk(graph):
            if (node.get("implementation") or "") not in ("", "UNKNOWN_IMPLEMENTATION"):
                continue
            unreachable = (node.get("endpoint") or {}).get("unreachable")
            port = free_port() if unreachable else self._serve(node["name"])
            node["endpoint"] = {
                "service_host": "127.0.0.1",
                "service_port": port,
                "httpPort": port,
                "grpcPort": free_port(),
                "type": "REST",
            }

    def _serve(self, node: str) -> int:
        nodes = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                asked = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode("utf-8", "replace")
                headers = {name.lower(): value for name, value in self.headers.items()}
                call = {"node": node, "method": self.command, "path": self.path, "body": asked, "headers": headers}
                nodes.calls.append(call)
                mock = nodes.mocks.get(f"{node} {self.path}") or nodes.mocks.get(node) or {}
                time.sleep(mock.get("sleep", 0))
                if "wrap" in mock:
                    text = f'{{"{mock["wrap"]}":{asked}}}'
                else:
                    text = asked if mock.get("echo") else mock.get("body", "{}")
                with contextlib.suppress(OSError):
                    self.send_response(mock.get("status", 200))
                    self.send_header("Content-Type", mock.get("content_type", "application/json"))
                    self.send_header("Content-Length", str(len(text.encode())))
                    self.end_headers()
                    self.wfile.write(text.encode())

            def do_POST(self) -> None:
                self.do_GET()

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        server.handle_error = lambda request, client_address: None  # type: ignore[method-assign]
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self._servers.append(server)
        return int(server.server_address[1])

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()


class Executor:
    """One executor process with the nodes of its graph."""

    def __init__(self, setup: Setup) -> None:
        graph = json.loads(setup.graph)
        options = json.loads(setup.options)
        self.misspelt = [node["type"] for node in walk(graph) if node.get("type") not in KNOWN_TYPES]
        self.nodes = Nodes(graph)
        self.port = free_port()
        self._folder = tempfile.TemporaryDirectory()
        self._log = Path(self._folder.name) / "log"
        notes = Path(self._folder.name) / "annotations"
        notes.write_text(f'seldon.io/rest-timeout="{options["rest_timeout_ms"]}"\n' if "rest_timeout_ms" in options else "")
        predictor = {"name": "main", "replicas": 1, "graph": graph, "componentSpecs": [], "annotations": {}}
        command = [ORACLE] if ORACLE else [str(Path(sys.executable).with_name("contender")), "executor"]
        command += ["--sdep", "mydep", "--namespace=default", "-predictor", "main", "-http_port", str(self.port)]
        command += ["--grpc_port", str(free_port()), "--prometheus_path", "/prometheus", "--protocol", "seldon"]
        command += [f"--full_health_checks={'true' if options.get('full_health_checks') else 'false'}"]
        if not ORACLE:
            command += ["--annotations", str(notes)] + (["--strict"] if setup.mode == "strict" else [])
        environment = {
            **os.environ,
            **json.loads(setup.env),
            "ENGINE_PREDICTOR": base64.b64encode(json.dumps(predictor).encode()).decode(),
            "REQUEST_LOGGER_DEFAULT_ENDPOINT": "http://127.0.0.1:9",
            "SELDON_LOG_LEVEL": "ERROR",
        }
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def wait(self) -> None:
        """Wait until the process answers, or ends."""
        end = time.monotonic() + START_SECONDS
        while self.process.poll() is None and time.monotonic() < end:
            if self.ask({"method": "GET", "path": "/live"}) is not None:
                return
            time.sleep(0.01)

    def ask(self, request: dict[str, Any]) -> tuple[int, dict[str, str], str] | None:
        """Return status, headers (names in lower case) and body of the answer; None if there was none."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        body = request.get("body")
        try:
            connection.request(
                request["method"], request["path"], None if body is None else body.encode(), request.get("headers") or {}
            )
            answer = connection.getresponse()
            headers = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, headers, answer.read().decode("utf-8", "replace")
        except (http.client.HTTPException, OSError):
            return None
        finally:
            connection.close()

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.nodes.close()
        self._folder.cleanup()


class Fleet:
    """Keeps the process of the current setup, and starts the next ones meanwhile: starting is what takes the time."""

    def __init__(self, setups: list[Setup]) -> None:
        self._setups = setups
        self._running: dict[Setup, Executor] = {}

    def executor(self, setup: Setup) -> Executor:
        at = self._setups.index(setup)
        wanted = self._setups[at : at + 1 + AHEAD]
        for other in [other for other in self._running if other not in wanted]:
            self._running.pop(other).close()
        if setup in self._running and self._running[setup].process.poll() is not None and ORACLE:
            self._running.pop(setup).close()
        for other in wanted:
            if other not in self._running:
                self._running[other] = Executor(other)
        self._running[setup].wait()
        return self._running[setup]

    def close(self) -> None:
        for executor in self._running.values():
            executor.close()


@pytest.fixture(scope="module")
def fleet(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    chosen = [item.callspec.params["setup"] for item in request.session.items if item.fspath == request.path]  # type: ignore[attr-defined]
    fleet = Fleet(list(dict.fromkeys(chosen)))
    yield fleet
    fleet.close()


@pytest.mark.parametrize(("setup", "case"), REPLAYS, ids=[f"{setup.mode}-{case['id']}" for setup, case in REPLAYS])
def test_recorded_case(setup: Setup, case: Case, fleet: Fleet) -> None:
    if ORACLE and "rest_timeout_ms" in (case.get("executor") or {}):
        pytest.skip("the stock executor reads its annotations from a fixed place")
    executor = fleet.executor(setup)
    if executor.misspelt and not ORACLE:
        assert executor.process.poll() not in (None, 0), "a misspelt type is refused at start"
        assert repr(executor.misspelt[0]) in executor.log()
        return
    assert executor.process.poll() is None, executor.log()
    executor.nodes.mocks = case["mocks"]
    executor.nodes.calls = []
    answer = executor.ask(case["request"])
    if case["expect"]["outcome"] == "response":
        assert answer is not None, "dropped the connection"
        check_answer(case, setup.mode, *answer)
        check_calls(case, executor.nodes.calls)
    elif ORACLE:
        assert answer is None
        if case["expect"]["executor_process_died"]:
            executor.process.wait(START_SECONDS)
    else:
        assert answer is not None, "dropped the connection"
        check_fault(case, answer[0], answer[2])
        assert executor.ask({"method": "GET", "path": "/live"}) is not None, "the process died"


def check_answer(case: Case, mode: str, status: int, headers: dict[str, str], body: str) -> None:
    expect = case["expect"]
    due = expect["status"] if ORACLE else (case.get("deviation") or {}).get("status", expect["status"])
    assert status == due
    recorded = expect.get("body")
    if recorded and '"status":"FAILURE"' in recorded:  # the wording is the recorded program's own
        mine, theirs = json.loads(body)["status"], json.loads(recorded)["status"]
        assert mine["status"] == "FAILURE"
        assert mine["code"] == theirs["code"]
        assert mine["info"]
    elif case["id"] == "P01":
        assert body == recorded
    elif recorded is not None:
        assert parsed(body) == parsed(recorded)
    kind = (expect["content_type"] or "").partition(";")[0]
    if mode == "default" and status >= 400 and isinstance(parsed(body), Json):
        kind = kind and "application/json"
    if kind:
        assert headers.get("content-type", "").partition(";")[0] == kind
    for name, value in (expect.get("headers") or {}).items():
        if name.lower() not in ("content-type", "content-length", "date", "seldon-puid"):
            assert headers.get(name.lower()) == value, name


def check_fault(case: Case, status: int, body: str) -> None:
    """The stock executor dropped the connection or died. What is due: the data asked for, or a Status JSON."""
    get, feedback = case["request"]["method"] == "GET", case["id"][0] == "F"
    assert status in ((200, 500) if get else (400, 500) if feedback else (500,))
    assert status == 200 or json.loads(body)["status"]["status"] == "FAILURE"


def check_calls(case: Case, calls: list[dict[str, Any]]) -> None:
    mine = [(call["node"], call["method"], call["path"], str(parsed(call["body"]))) for call in calls]
    due = [
        (call["node"], call["method"], call["path"], str(parsed(call["body"]))) for call in case["expect"].get("calls") or []
    ]
    if case["expect"].get("sibling_calls_in_any_order"):
        assert sorted(mine) == sorted(due)
    else:
        assert mine == due
    for due_headers in case["expect"].get("child_headers") or []:
        for call in calls:
            if call["node"] == due_headers["node"]:
                check_headers(due_headers, call["headers"])


def check_headers(due: dict[str, Any], headers: dict[str, str]) -> None:
    for key, name in (("puid", "seldon-puid"), ("x_unit", "x-unit"), ("content_type", "content-type")):
        if due.get(key) == "*":
            assert headers.get(name)
        elif key in due:
            assert (headers.get(name) or None) == (due[key] or None), name


class Json(NamedTuple):
    """A JSON value, so that it is told from text that happens to equal it."""

    value: Any


def parsed(text: str) -> Json | str:
    try:
        return Json(json.loads(text))
    except ValueError:
        return text


def walk(node: dict[str, Any]) -> list[dict[str, Any]]:
    return [node, *(below for child in node.get("children") or [] for below in walk(child))]
