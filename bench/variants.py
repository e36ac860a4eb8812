"""The ways to serve the graph that are compared, each as the processes that it takes.

Invariant: whoever starts a variant ends it, with all of its processes, and each run begins with an empty ledger.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import lzma
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from bench.load import PATH

ROOT = Path(__file__).parents[1]
BASE = ROOT / "manifests/base"
GRAPH, RULES, MODELS = BASE / "seldondeployment.yaml", BASE / "campaigns.yaml", ROOT / "models"
CHAMPION, CHALLENGER = "models/champion/campaigns", "models/challenger/campaigns"
UNITS = ROOT / ".venv-units/bin/seldon-core-microservice"
STOCK_EXECUTOR = ROOT.parent / "shared/cluster/bin/seldon-executor.xz"
CORES = os.cpu_count() or 1
START_SECONDS = 90

DOCUMENTED = {"campaigns": "Campaigns", "router": "Router", "champion": "Model", "challenger": "Model"}
TUNED = {"GUNICORN_WORKERS": str(CORES), "GUNICORN_THREADS": "1", "GRPC_WORKERS": "0", "OMP_NUM_THREADS": "1"}
SERVICES = {"campaigns": "TRANSFORMER", "router": "ROUTER", "champion": "MODEL", "challenger": "MODEL"}
PARAMETERS = {
    "campaigns": {"decision": "manifests/base/campaigns.yaml"},
    "router": {},
    "champion": {"bundle": CHAMPION},
    "challenger": {"bundle": CHALLENGER},
}


class Unavailable(Exception):
    """A variant can't be measured here; the message says what is missing."""


class Running(NamedTuple):
    """A variant that answers on `port`. `roots` are the processes it consists of, with their descendants."""

    port: int
    roots: list[int]
    supervisor: int | None = None
    """The process that ships the ledger, where there is one; its workers are its children."""
    ledger: Path | None = None
    spool: Path | None = None


class Variant(NamedTuple):
    """One way to serve. `letter` is the issue's."""

    name: str
    letter: str
    what: str


VARIANTS = [
    Variant("fused-1", "a", "fused engine, ONNX, 1 worker"),
    Variant("fused-2", "a", "fused engine, ONNX, 2 workers"),
    Variant("fused-sklearn", "b", "fused engine, scikit-learn, 1 worker"),
    Variant("documented", "c", "4 Seldon units as documented, stock executor"),
    Variant("tuned-ours", "d", "4 Seldon units tuned, `contender executor`"),
    Variant("tuned-stock", "d", "4 Seldon units tuned, stock executor"),
    Variant("ceiling-1", "e", "ceiling: bare ASGI, ONNX, 1 worker"),
    Variant("ceiling-2", "e", "ceiling: bare ASGI, ONNX, 2 workers"),
]


@contextmanager
def running(variant: Variant, folder: Path) -> Iterator[Running]:
    """Start a variant with its state in an empty folder, wait until it predicts, and end it. Raises Unavailable."""
    folder.mkdir(parents=True)
    with ExitStack() as stack:
        match variant.name:
            case "fused-1" | "fused-2":
                found = _fused(stack, folder, GRAPH, workers=int(variant.name[-1]))
            case "fused-sklearn":
                found = _fused(stack, folder, sklearn_graph(folder), workers=1)
            case "documented":
                ports, roots = _units(stack, folder, "bench.documented.", {})
                found = _stock(stack, folder, ports, roots)
            case "tuned-stock":
                ports, roots = _units(stack, folder, "serving.components.", TUNED)
                found = _stock(stack, folder, ports, roots)
            case "tuned-ours":
                ports, roots = _units(stack, folder, "serving.components.", TUNED, router=False)
                found = _ours(stack, folder, ports, roots)
            case _:
                found = _ceiling(stack, folder, workers=int(variant.name[-1]))
        yield found


@contextmanager
def process(
    command: Sequence[str | Path | int], log: Path, environment: Mapping[str, str] | None = None, *, grace: float = 30
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in the repository's root and in a group of its own.

    Afterwards it has `grace` seconds to end by itself; whatever is left of its group then is killed.
    """
    with log.open("ab") as output:
        started = subprocess.Popen(
            [str(part) for part in command],
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield started
    finally:
        if grace:
            started.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                started.wait(grace)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.wait()


def contender(*arguments: object) -> list[str]:
    """Return the command line of a `contender` command, by this interpreter."""
    return [str(Path(sys.executable).with_name("contender")), *map(str, arguments)]


def free_port() -> int:
    """Return a TCP port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def ask(port: int, path: str, body: bytes | None = None, *, timeout: float = 30) -> tuple[int, bytes]:
    """Return status and body of one request; POST where there is a body. Raises OSError while nobody listens."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("GET" if body is None else "POST", path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    except http.client.HTTPException as error:
        raise ConnectionError(str(error)) from error
    finally:
        connection.close()


def until_predicts(port: int, body: bytes, started: Sequence[int], *, pause: float = 0.1) -> None:
    """Wait until predictions succeed. Raises Unavailable if they don't in time, or one of the processes has ended."""
    end = time.monotonic() + START_SECONDS
    last: object = "no answer"
    while time.monotonic() < end:
        if not all(Path(f"/proc/{pid}").exists() for pid in started):
            raise Unavailable("a process ended before it was ready")
        try:
            status, answer = ask(port, PATH, body)
            if status == 200:
                return
            last = answer[:300]
        except OSError as error:
            last = error
        time.sleep(pause)
    raise Unavailable(f"no prediction within {START_SECONDS} s: {last!r}")


def sklearn_graph(folder: Path) -> Path:
    """Return a copy of the graph whose bundles are served by scikit-learn."""
    text = GRAPH.read_text(encoding="utf-8")
    for bundle in (CHAMPION, CHALLENGER):
        copy = folder / bundle
        shutil.copytree(ROOT / bundle, copy)
        manifest = copy / "model.json"
        document = json.loads(manifest.read_text(encoding="utf-8"))
        manifest.write_text(json.dumps({**document, "runtime": "sklearn"}), encoding="utf-8")
        text = text.replace(bundle, str(copy))
    graph = folder / "seldondeployment.yaml"
    graph.write_text(text, encoding="utf-8")
    shutil.copy(BASE / "experiment.yaml", folder)
    return graph


def stock_executor(folder: Path) -> Path:
    """Unpack Seldon's own executor, which is no part of this repository. Raises Unavailable."""
    if not STOCK_EXECUTOR.exists():
        raise Unavailable("Seldon's stock executor isn't there")
    binary = folder / "seldon-executor"
    if not binary.exists():
        with lzma.open(STOCK_EXECUTOR) as packed, binary.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked)
        binary.chmod(0o755)
    return binary


def predictor(ports: Mapping[str, int], *, ours: bool) -> str:
    """Return ENGINE_PREDICTOR: the shipped graph over units at these ports. With `ours` the router is the engine's."""
    types = {"campaigns": "OUTPUT_TRANSFORMER", "router": "ROUTER", "champion": "MODEL", "challenger": "MODEL"}

    def node(name: str, *children: dict[str, Any]) -> dict[str, Any]:
        parameters = PARAMETERS[name] | ({"contender": "v1"} if name == "router" and ours else {})
        made: dict[str, Any] = {
            "name": name,
            "type": types[name],
            "children": list(children),
            "parameters": [{"name": key, "type": "STRING", "value": value} for key, value in parameters.items()],
        }
        if name in ports:
            port = ports[name]
            made["endpoint"] = {
                "service_host": "127.0.0.1",
                "service_port": port,
                "httpPort": port,
                "grpcPort": port,
                "type": "REST",
            }
        return made

    graph = node("campaigns", node("router", node("champion"), node("challenger")))
    document = {"name": "main", "replicas": 1, "graph": graph, "componentSpecs": [], "annotations": {}}
    return base64.b64encode(json.dumps(document).encode()).decode()


def stock_command(binary: Path, port: int) -> list[str | Path | int]:
    """Return the stock executor's command line, as the operator writes it."""
    named: list[str | Path | int] = ["--sdep", "campaigns", "--namespace", "default", "--predictor", "main"]
    ports: list[str | Path | int] = ["--http_port", port, "--grpc_port", free_port(), "--prometheus_path", "/prometheus"]
    return [binary, *named, *ports, "--protocol", "seldon", "--transport", "rest"]


def stock_environment(ports: Mapping[str, int]) -> dict[str, str]:
    """Return the stock executor's environment."""
    return {
        "ENGINE_PREDICTOR": predictor(ports, ours=False),
        "REQUEST_LOGGER_DEFAULT_ENDPOINT": "http://127.0.0.1:9",
        "SELDON_LOG_LEVEL": "ERROR",
    }


def _fused(stack: ExitStack, folder: Path, graph: Path, *, workers: int) -> Running:
    port, home = free_port(), folder / "home"
    command = contender("serve", graph, "--port", port, "--workers", workers, "--home", home)
    pid = stack.enter_context(process(command, folder / "log")).pid
    return Running(port, [pid], pid, home / "ledger.db", home / "spool")


def _units(
    stack: ExitStack, folder: Path, module: str, environment: Mapping[str, str], *, router: bool = True
) -> tuple[dict[str, int], list[int]]:
    """Start the graph's nodes as Seldon's wrapper runs them; return their ports and processes."""
    if not UNITS.exists():
        raise Unavailable("the units' environment isn't there; make it by `make units`")
    ports: dict[str, int] = {}
    pids = []
    for name, service in SERVICES.items():
        if name == "router" and not router:
            continue
        ports[name] = free_port()
        parameters = [{"name": key, "type": "STRING", "value": value} for key, value in PARAMETERS[name].items()]
        command: list[str | Path | int] = [UNITS, module + DOCUMENTED[name], "--service-type", service]
        command += ["--http-port", ports[name], "--metrics-port", free_port(), "--grpc-port", free_port()]
        command += ["--parameters", json.dumps(parameters)]
        own = {"CONTENDER_EPOCH_FILE": str(_epoch_file(folder))} if name == "router" else {}
        # They keep nothing, and take their time to end.
        unit = process(command, folder / f"{name}.log", {"PYTHONPATH": str(ROOT), **environment, **own}, grace=0)
        pids.append(stack.enter_context(unit).pid)
    return ports, pids


def _epoch_file(folder: Path) -> Path:
    """Write the epoch that the wrapped router reads: the shipped experiment's first."""
    from console.home import Home
    from console.serve import declaration_for, prepare
    from router.sources import write_epoch_file
    from serving.graph import load_deployment

    deployment = load_deployment(GRAPH)
    home = Home(folder / "epochs")
    path = folder / "epoch.json"
    with contextlib.chdir(ROOT):
        write_epoch_file(path, prepare(home, deployment, declaration_for(GRAPH, deployment, None)))
    return path


def _stock(stack: ExitStack, folder: Path, ports: Mapping[str, int], units: list[int]) -> Running:
    port = free_port()
    command = stock_command(stock_executor(folder.parent), port)
    pid = stack.enter_context(process(command, folder / "log", stock_environment(ports))).pid
    return Running(port, [pid, *units])


def _ours(stack: ExitStack, folder: Path, ports: Mapping[str, int], units: list[int]) -> Running:
    """Put our engine before the units. It splits rows and keeps the ledger itself, so there is no unit for the router."""
    port, home = free_port(), folder / "home"
    command = contender("executor", "--sdep", "campaigns", "--http_port", port, "--home", home)
    command += ["--experiment", str(BASE / "experiment.yaml"), "--prometheus_path", "/prometheus", "--log_level", "WARNING"]
    command += ["--annotations", os.devnull]
    pid = stack.enter_context(process(command, folder / "log", {"ENGINE_PREDICTOR": predictor(ports, ours=True)})).pid
    return Running(port, [pid, *units], pid, home / "ledger.db", home / "spool")


def _ceiling(stack: ExitStack, folder: Path, *, workers: int) -> Running:
    port = free_port()
    command: list[str | Path | int] = [
        sys.executable,
        "-m",
        "bench.ceiling",
        port,
        ROOT / CHAMPION,
        RULES,
        workers,
    ]
    return Running(port, [stack.enter_context(process(command, folder / "log")).pid])
