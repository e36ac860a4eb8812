"""The graph's nodes as processes under Seldon's own wrapper, and engines in front of them."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import lzma
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.ports import free_port
from harness.server import CONTENDER, ROOT, Answer, Server

WRAPPER = ROOT / ".venv-units/bin/seldon-core-microservice"
PACKED_EXECUTOR = ROOT.parent / "shared/cluster/bin/seldon-executor.xz"
UNITS = {"champion": "Model", "challenger": "Model", "campaigns": "Campaigns", "router": "Router"}


def predictor() -> dict[str, Any]:
    """Return the shipped graph's predictor."""
    document = yaml.safe_load((ROOT / "manifests/base/seldondeployment.yaml").read_text(encoding="utf-8"))
    first: dict[str, Any] = document["spec"]["predictors"][0]
    return first


class Units:
    """The four nodes, each a real `seldon-core-microservice` with the graph's parameters. The router reads `epoch_file`."""

    def __init__(self, folder: Path, epoch_file: Path) -> None:
        if not WRAPPER.exists():
            pytest.skip(".venv-units is missing: make units")
        self._folder = folder
        self._epoch_file = epoch_file
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.ports = {name: free_port() for name in UNITS}
        self._graph = {node["name"]: node for node in _walk(predictor()["graph"])}

    def start(self, *names: str) -> None:
        for name in names or UNITS:
            self._processes[name] = self._process(name)
        for name in names or UNITS:
            self._wait(name)

    def kill(self, name: str) -> None:
        """End a node at once, with all its processes."""
        process = self._processes.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)

    def close(self) -> None:
        for name in list(self._processes):
            self.kill(name)

    def post(self, name: str, path: str, message: object) -> Answer:
        """Ask a node itself."""
        connection = http.client.HTTPConnection("127.0.0.1", self.ports[name], timeout=30)
        try:
            connection.request("POST", path, json.dumps(message), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return Answer(answer.status, answer.read(), {})
        finally:
            connection.close()

    def engine_predictor(self) -> str:
        """Return the graph with these nodes' endpoints, as the operator hands it to an engine."""
        spec = predictor()
        for node in _walk(spec["graph"]):
            port = self.ports[node["name"]]
            node["endpoint"] = {"service_host": "127.0.0.1", "service_port": port, "httpPort": port, "type": "REST"}
        return base64.b64encode(json.dumps(spec).encode()).decode()

    def _process(self, name: str) -> subprocess.Popen[bytes]:
        command = [str(WRAPPER), f"serving.components.{UNITS[name]}", "--service-type", "MODEL"]
        command += ["--parameters", json.dumps(self._graph[name]["parameters"])]
        command += ["--http-port", str(self.ports[name]), "--metrics-port", str(free_port())]
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "GUNICORN_WORKERS": "1",
            "GRPC_WORKERS": "0",
            "SELDON_LOG_LEVEL": "WARNING",
            "PREDICTIVE_UNIT_ID": name,
            "CONTENDER_EPOCH_FILE": str(self._epoch_file),
        }
        with (self._folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)

    def _wait(self, name: str) -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            assert self._processes[name].poll() is None, (self._folder / f"{name}.log").read_text()
            connection = http.client.HTTPConnection("127.0.0.1", self.ports[name], timeout=5)
            try:
                connection.request("GET", "/health/ping")
                if connection.getresponse().status == 200:
                    return
            except OSError:
                time.sleep(0.05)
            finally:
                connection.close()
        pytest.fail(f"{name} was not ready in time: {(self._folder / f'{name}.log').read_text()}")


class Executor(Server):
    """`contender executor` in front of units; its working directory decides whether the bundles lie beside it."""

    def __init__(self, folder: Path, units: Units, *options: object, cwd: Path = ROOT) -> None:
        super().__init__(folder)
        self._units = units
        self._options = options
        self.cwd = cwd

    def start(self) -> None:
        self.launch([CONTENDER, "executor", "--prometheus_path", "/prometheus", *self._options], {"CONTENDER_HOME": self.home})

    def launch(self, command: list[Any], variables: dict[str, Any]) -> None:
        command += ["--sdep", "campaigns", "--namespace", "default", "--predictor", "main", "--http_port", self.port]
        given = {"ENGINE_PREDICTOR": self._units.engine_predictor(), **variables}
        environment = {**os.environ, **{name: str(value) for name, value in given.items()}}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                list(map(str, command)), cwd=self.cwd, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        self.wait_ready()


class StockExecutor(Executor):
    """Seldon's own executor in front of units."""

    def start(self) -> None:
        if not PACKED_EXECUTOR.exists():
            pytest.skip(f"{PACKED_EXECUTOR.name} is missing; it is no part of the repository")
        binary = self.log.with_name("seldon-executor")
        binary.write_bytes(lzma.decompress(PACKED_EXECUTOR.read_bytes()))
        binary.chmod(0o755)
        variables = {"REQUEST_LOGGER_DEFAULT_ENDPOINT": "http://127.0.0.1:9", "SELDON_LOG_LEVEL": "ERROR"}
        self.launch([binary, "--grpc_port", free_port()], variables)


def _walk(node: dict[str, Any]) -> list[dict[str, Any]]:
    return [node, *(each for child in node.get("children") or [] for each in _walk(child))]
