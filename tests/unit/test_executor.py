"""`contender executor` as a command: its flags, what it refuses, and how it leaves."""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from console.executor import Options, UsageError, parse, rest_timeout
from harness.ports import free_port

COMMAND = [str(Path(sys.executable).with_name("contender")), "executor"]


def test_flags_are_read_in_go_s_style() -> None:
    arguments = "--sdep d -namespace=n --http_port 81 -shutdown_delay=1m30s --graceful_timeout 500ms --strict"
    options = parse([*arguments.split(), "--full_health_checks=false", "-predictor", "-x"])
    assert (options.sdep, options.namespace, options.predictor, options.http_port) == ("d", "n", "-x", 81)
    assert (options.shutdown_delay, options.graceful_timeout) == (90.0, 0.5)
    assert (options.strict, options.full_health_checks) == (True, False)
    assert parse([]) == Options()


def test_flags_without_a_meaning_here_take_their_values_and_unknown_ones_are_collected() -> None:
    line = "--log_work_buffer_size 9 --debug --kafka_workers=3 --new a --newer --newest=1 stray -strict"
    options = parse(line.split())
    assert options.unknown == ["--new", "--newer", "--newest=1", "stray"]
    assert options.strict


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["--http_port", "x"], "--http_port: 'x'; a whole number is expected"),
        (["--http_port"], "--http_port: a value is expected"),
        (["--strict=perhaps"], "--strict: 'perhaps'; true or false is expected"),
        (["--shutdown_delay=5"], "--shutdown_delay: '5'; a time such as 15s"),
    ],
)
def test_a_wrong_value_names_its_flag(arguments: list[str], fault: str) -> None:
    with pytest.raises(UsageError, match=fault):
        parse(arguments)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ('a="b"\nseldon.io/rest-timeout="200"\n', 0.2),
        ('seldon.io/rest-timeout="0"', None),
        ("", None),
        ('seldon.io/rest-timeout-other="1"', None),
    ],
)
def test_the_time_budget_comes_from_the_annotations(text: str, seconds: float | None, tmp_path: Path) -> None:
    path = tmp_path / "annotations"
    path.write_text(text)
    assert rest_timeout(str(path)) == seconds


def test_wrong_annotations_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "annotations"
    with pytest.raises(UsageError, match="no such file"):
        rest_timeout(str(path))
    path.write_text('seldon.io/rest-timeout="2s"')
    with pytest.raises(UsageError, match=r"seldon\.io/rest-timeout is '2s'; milliseconds are expected"):
        rest_timeout(str(path))


def spec(graph: Mapping[str, Any]) -> str:
    return base64.b64encode(json.dumps({"name": "main", "graph": graph}).encode()).decode()


@pytest.mark.parametrize(
    ("environment", "arguments", "code", "fault"),
    [
        ({}, [], 2, "there is no graph: ENGINE_PREDICTOR is not set, and --file isn't given"),
        ({"ENGINE_PREDICTOR": "x"}, [], 1, "ENGINE_PREDICTOR: "),
        ({"ENGINE_PREDICTOR": spec({"name": "m", "type": "MODLE"})}, [], 1, "node m: type 'MODLE' is unknown"),
        ({"ENGINE_PREDICTOR": spec({})}, ["--protocol", "v2"], 2, "--protocol v2: only seldon is supported"),
        ({"ENGINE_PREDICTOR": spec({})}, ["--server_type=kafka"], 2, "--server_type kafka: only rpc is supported"),
        ({"ENGINE_PREDICTOR": spec({})}, ["--log_level=LOUD"], 2, "log level 'LOUD'"),
        ({"ENGINE_PREDICTOR": spec({}), "SELDON_CERT_MOUNT_PATH": "/c"}, [], 2, "TLS is not supported here"),
        ({}, ["--file", "nowhere.yaml"], 1, "nowhere.yaml: No such file"),
    ],
)
def test_what_can_t_be_served_is_refused_with_one_line(
    environment: dict[str, str], arguments: list[str], code: int, fault: str
) -> None:
    kept = {name: value for name, value in os.environ.items() if name != "ENGINE_PREDICTOR"}
    done = subprocess.run(
        [*COMMAND, *arguments], env={**kept, **environment}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code
    assert fault in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_help_names_every_flag_that_means_something() -> None:
    text = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, check=True, timeout=60).stdout
    unserved = {"unknown", "grpc_port", "protocol", "transport", "server_type"}
    assert all(f"--{name}" in text for name in Options.__dataclass_fields__ if name not in unserved)


class Node:
    """A node that answers each request once `go` is set, and tells by `asked` that one has come."""

    def __init__(self) -> None:
        self.asked, self.go = threading.Event(), threading.Event()
        node = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_POST(self) -> None:
                node.asked.set()
                node.go.wait(30)
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = int(self.server.server_address[1])
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()


@pytest.fixture
def node() -> Iterator[Node]:
    node = Node()
    yield node
    node.go.set()
    node.server.shutdown()
    node.server.server_close()


class Running:
    """An executor process in front of one MODEL node, its graph read from a manifest."""

    def __init__(self, node: Node, folder: Path, *arguments: str) -> None:
        endpoint = {"service_host": "127.0.0.1", "service_port": node.port, "httpPort": node.port}
        graph = {"name": "m", "type": "MODEL", "endpoint": endpoint}
        predictors = [{"name": "other", "graph": {"name": "x"}}, {"name": "main", "graph": graph}]
        file = folder / "graph.yaml"
        file.write_text(yaml.safe_dump({"kind": "SeldonDeployment", "spec": {"predictors": predictors}}))
        self.port, self.grpc_port = free_port(), free_port()
        command = [*COMMAND, "--file", str(file), "--predictor", "main", "--http_port", str(self.port), *arguments]
        self.process = subprocess.Popen([*command, "--grpc_port", str(self.grpc_port)], stderr=subprocess.PIPE, text=True)
        end = time.monotonic() + 30
        while self.process.poll() is None and time.monotonic() < end:
            try:
                if self.ask("GET", "/live") == 200:
                    return
            except OSError:
                time.sleep(0.01)
        raise AssertionError(f"did not start: {self.process.poll()}")

    def ask(self, method: str, path: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, b"{}" if method == "POST" else None)
            answer = connection.getresponse()
            answer.read()
            return answer.status
        finally:
            connection.close()

    def end(self) -> str:
        """Return what it said, once it has ended."""
        return self.process.communicate(timeout=30)[1]


def refused(port: int) -> bool:
    with socket.socket() as sock:
        sock.settimeout(5)
        return sock.connect_ex(("127.0.0.1", port)) != 0


def test_after_sigterm_nobody_new_is_let_in_and_the_request_under_way_is_answered(node: Node, tmp_path: Path) -> None:
    running = Running(node, tmp_path, "--unheard_of=1")
    statuses: list[int] = []
    client = threading.Thread(target=lambda: statuses.append(running.ask("POST", "/api/v1.0/predictions")))
    client.start()
    assert node.asked.wait(30)
    assert refused(running.grpc_port)
    running.process.send_signal(signal.SIGTERM)
    while not refused(running.port):
        time.sleep(0.01)
    assert running.process.poll() is None
    node.go.set()
    said = running.end()
    client.join()
    assert (statuses, running.process.returncode) == ([200], 0)
    assert "unknown flag --unheard_of=1 ignored" in said
    assert f"gRPC is not served; port {running.grpc_port} stays closed" in said


def test_during_the_shutdown_delay_it_still_serves_but_says_that_it_is_leaving(node: Node, tmp_path: Path) -> None:
    running = Running(node, tmp_path, "--shutdown_delay", "60s")
    assert running.ask("GET", "/ready") == 200
    running.process.send_signal(signal.SIGTERM)
    while running.ask("GET", "/ready") == 200:
        time.sleep(0.01)
    node.go.set()
    assert running.ask("POST", "/api/v1.0/predictions") == 200
    running.process.send_signal(signal.SIGTERM)  # a second one ends the delay
    running.end()
    assert running.process.returncode == 0


def test_a_request_over_the_grace_period_doesn_t_keep_it(node: Node, tmp_path: Path) -> None:
    running = Running(node, tmp_path, "--graceful_timeout", "1s")
    client = socket.create_connection(("127.0.0.1", running.port), 30)
    client.sendall(b"POST /api/v1.0/predictions HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
    assert node.asked.wait(30)
    running.process.send_signal(signal.SIGTERM)
    running.end()
    client.close()
    assert running.process.returncode == 0
