"""`contender executor`: the engine in the place of Seldon's stock executor, with its flags and its environment.

Invariant: a graph that can't be served as its operator asks is refused at start, with a reason; a flag that isn't known
doesn't keep it from starting.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.app import App
from serving.engine import Engine
from serving.errors import GraphError
from serving.graph import Deployment, Predictor, decode_predictor, load_predictor
from serving.http_client import HttpClient
from serving.http_node import HttpNode
from serving.stock_series import StockLabels

if TYPE_CHECKING:
    from serving.call_metrics import CallMetrics

log = logging.getLogger("contender.executor")

PODINFO = Path("/etc/podinfo/annotations")
REST_TIMEOUT = "seldon.io/rest-timeout"

# The stock executor's flags that have no meaning here. They are accepted so that an operator's command line works.
IGNORED_TEXT = frozenset(
    [
        "config",
        "graceful_timeout_grpc",
        "hostname",
        "kafka_broker",
        "kafka_input_topic",
        "kafka_output_topic",
        "kafka_workers",
        "kubeconfig",
        "log_kafka_broker",
        "log_kafka_topic",
        "log_work_buffer_size",
        "log_write_timeout_ms",
        "logger_workers",
    ]
)
IGNORED_SWITCHES = frozenset(["debug", "kafka_auto_commit", "kafka_full_graph"])

HELP = """contender executor: serves a Seldon graph in the place of Seldon's stock executor.

The graph is a PredictorSpec in the environment variable ENGINE_PREDICTOR (JSON as base64), or a manifest:
  --file FILE               SeldonDeployment; --predictor names the one to serve
  --sdep, --namespace, --predictor NAME
  --http_port PORT          default 8080
  --prometheus_path PATH    default /metrics
  --graceful_timeout TIME   for requests under way after SIGTERM, such as 15s (default) or 1m30s
  --shutdown_delay TIME     between SIGTERM and closing the port, default 0s
  --full_health_checks      ready means that every node says so, not only that its port is open
  --annotations FILE        where seldon.io/rest-timeout (ms) is read; default /etc/podinfo/annotations if it exists
  --experiment FILE, --home DIR, --workers N
                            for a graph with Contender's router: the Experiment, the folder of its state (default
                            CONTENDER_HOME or ./var) and the serving processes; all settings of `contender serve` apply
  --strict                  errors leave as text/plain, as the stock executor sends them
  --log_level LEVEL         DEBUG, INFO, WARNING, ERROR or FATAL; default SELDON_LOG_LEVEL or INFO
Every other flag of the stock executor is accepted and ignored. gRPC, Kafka and payload logging are not served.
"""


class UsageError(Exception):
    """The command line or the environment asks for what can't be done; the message names the flag and what would be right."""


@dataclass
class Options:
    """The flags that mean something; times in seconds."""

    sdep: str = ""
    namespace: str = ""
    predictor: str = ""
    file: str = ""
    http_port: int = 8080
    grpc_port: int = 5000
    prometheus_path: str = "/metrics"
    graceful_timeout: float = 15.0
    shutdown_delay: float = 0.0
    full_health_checks: bool = False
    annotations: str = ""
    strict: bool = False
    experiment: str = ""
    home: str = ""
    workers: int = 0
    log_level: str = ""
    protocol: str = "seldon"
    transport: str = "rest"
    server_type: str = "rpc"
    unknown: list[str] = field(default_factory=list)


def main(arguments: Sequence[str]) -> int:
    """Serve until SIGTERM. Returns the exit code: 0 after a clean end, 2 for a wrong command line, 1 for a wrong graph."""
    if any(argument in ("-h", "-help", "--help") for argument in arguments):
        sys.stdout.write(HELP)
        return 0
    try:
        options = parse(arguments)
        logging.basicConfig(level=_level(options, os.environ), format="%(levelname)s %(name)s: %(message)s")
        predictor = _predictor(options, os.environ)
        timeout = rest_timeout(options.annotations)
        _say_what_is_not_served(options, os.environ)
    except UsageError as error:
        sys.stderr.write(f"contender executor: {error}\n")
        return 2
    except GraphError as error:
        sys.stderr.write(f"contender executor: {error}\n")
        return 1
    if predictor.graph.splits:
        return _split(options, predictor, timeout, os.environ)
    _serve(options, predictor, timeout, inject_routing=bool(os.environ.get("SELDON_ENABLE_ROUTING_INJECTION")))
    return 0


def parse(arguments: Sequence[str]) -> Options:
    """Return the options of a command line in Go's style: -x v, --x v, -x=v, --x=v; a switch takes a value after = only.

    Unknown flags are collected. Raises UsageError.
    """
    options = Options()
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        name, given, text = argument.lstrip("-").partition("=")
        kind = type(getattr(options, name, None)) if name in Options.__dataclass_fields__ and name != "unknown" else None
        if not argument.startswith("-") or (kind is None and name not in IGNORED_TEXT | IGNORED_SWITCHES):
            options.unknown.append(argument)
            if argument.startswith("-") and not given and rest and not rest[0].startswith("-"):
                rest.pop(0)
            continue
        if not given and (kind is bool or name in IGNORED_SWITCHES):
            text = "true"
        elif not given:
            if not rest:
                raise UsageError(f"{argument}: a value is expected")
            text = rest.pop(0)
        if kind is not None:
            setattr(options, name, _value(argument.partition("=")[0], text, kind))
    return options


def rest_timeout(annotations: str) -> float | None:
    """Return how long a node may take, in seconds, from a file of annotations as Kubernetes' downward API writes them.

    None: no limit. "" stands for the operator's file, which may be missing. Raises UsageError.
    """
    path = Path(annotations) if annotations else PODINFO
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        if not annotations:
            return None
        raise UsageError(f"--annotations {path}: no such file") from None
    for line in lines:
        name, _, quoted = line.partition("=")
        if name.strip() == REST_TIMEOUT:
            text = quoted.strip().strip('"')
            if not re.fullmatch("[0-9]{1,9}", text):
                raise UsageError(f"{path}: {REST_TIMEOUT} is {text!r}; milliseconds are expected")
            return int(text) / 1000 or None
    return None


def _value(flag: str, text: str, kind: type) -> Any:
    if kind is bool:
        if text.lower() not in ("true", "false", "1", "0", "t", "f"):
            raise UsageError(f"{flag}: {text!r}; true or false is expected")
        return text.lower() in ("true", "1", "t")
    if kind is int:
        if not re.fullmatch("[0-9]{1,5}", text):
            raise UsageError(f"{flag}: {text!r}; a whole number is expected")
        return int(text)
    return _duration(flag, text) if kind is float else text


def _duration(flag: str, text: str) -> float:
    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
    if not re.fullmatch(r"0|((\d+\.?\d*|\.\d+)(h|ms|m|s|us|µs|ns))+", text):
        raise UsageError(f"{flag}: {text!r}; a time such as 15s or 1m30s is expected")
    return sum(float(number) * units[unit] for number, unit in re.findall(r"([\d.]+)(h|ms|m|s|us|µs|ns)", text))


def _level(options: Options, environment: Mapping[str, str]) -> int:
    name = (options.log_level or environment.get("SELDON_LOG_LEVEL") or "INFO").upper()
    level = logging.getLevelNamesMapping().get(name)
    if level is None:
        raise UsageError(f"log level {name!r}; DEBUG, INFO, WARNING, ERROR or FATAL is expected")
    return level


def _predictor(options: Options, environment: Mapping[str, str]) -> Predictor:
    if options.file:
        return load_predictor(Path(options.file), options.predictor)
    encoded = environment.get("ENGINE_PREDICTOR")
    if not encoded:
        raise UsageError("there is no graph: ENGINE_PREDICTOR is not set, and --file isn't given")
    return decode_predictor(encoded)


def _say_what_is_not_served(options: Options, environment: Mapping[str, str]) -> None:
    """Log what a graph can do without, and raise UsageError for what it can't."""
    for flag in options.unknown:
        log.warning("unknown flag %s ignored", flag)
    if options.protocol != "seldon":
        raise UsageError(f"--protocol {options.protocol}: only seldon is supported")
    if options.server_type != "rpc":
        raise UsageError(f"--server_type {options.server_type}: only rpc is supported")
    if environment.get("SELDON_CERT_MOUNT_PATH"):
        raise UsageError("SELDON_CERT_MOUNT_PATH: TLS is not supported here; let the mesh or the ingress end it")
    log.info("gRPC is not served; port %d stays closed", options.grpc_port)


def _split(options: Options, predictor: Predictor, timeout: float | None, environment: Mapping[str, str]) -> int:
    """Serve a graph with Contender's router as `contender serve` does: supervisor, workers, epochs, spool."""
    from console.cli import ERRORS
    from console.home import Home
    from console.serve import declaration_for, run

    deployment = Deployment(options.sdep or predictor.name, options.namespace, predictor.annotations, (predictor,))
    home = Home(Path(options.home or environment.get("CONTENDER_HOME", "var")))
    try:
        run(
            deployment,
            declaration_for(None, deployment, Path(options.experiment) if options.experiment else None),
            home,
            host="0.0.0.0",  # noqa: S104 - a pod's engine is there for the whole cluster
            port=options.http_port,
            workers=options.workers or None,
            prometheus_path=options.prometheus_path,
            node_timeout_seconds=timeout,
            full_health_checks=options.full_health_checks or None,
            drain_seconds=options.shutdown_delay or None,
            grace_seconds=round(options.graceful_timeout),
        )
    except ERRORS as error:
        sys.stderr.write(f"contender executor: {error}\n")
        return 1
    return 0


def _serve(options: Options, predictor: Predictor, timeout: float | None, *, inject_routing: bool) -> None:
    from serving.server import Server

    metrics = LateMetrics(StockLabels(options.sdep, predictor))
    client = HttpClient(timeout)
    nodes = {
        unit.key: HttpNode(unit.name, unit.endpoint, client, full_health_checks=options.full_health_checks, observer=metrics)
        for unit in predictor.graph.walk()
        if unit.endpoint is not None
    }
    app = App(
        Engine(predictor.graph, nodes, inject_routing=inject_routing),
        prometheus=metrics.render,
        observer=metrics,
        prometheus_path=options.prometheus_path,
        strict=options.strict,
        ready_hooks=[lambda: not server.leaving],
        deployment=options.sdep,
        namespace=options.namespace,
        predictor=predictor.name,
    )
    server = Server(
        app,
        host="0.0.0.0",  # noqa: S104 - a pod's engine is there for the whole cluster
        port=options.http_port,
        delay_seconds=options.shutdown_delay,
        grace_seconds=options.graceful_timeout,
    )
    log.info("serving %s on port %d", predictor.name, options.http_port)
    server.run()
    client.close()


class LateMetrics:
    """Metrics made when there is something to count: after the first probe was answered, not before the port is open."""

    def __init__(self, labels: StockLabels) -> None:
        self._labels = labels

    @cached_property
    def made(self) -> CallMetrics:
        """The metrics, with those of the process."""
        from prometheus_client import CollectorRegistry, ProcessCollector

        from serving.call_metrics import CallMetrics

        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        metrics = CallMetrics(registry)
        metrics.serves(self._labels)
        return metrics

    def request(self, route: str, status: int, seconds: float) -> None:
        self.made.request(route, status, seconds)

    def node(self, node: str, method: str, status: int, seconds: float) -> None:
        self.made.node(node, method, status, seconds)

    def render(self) -> tuple[bytes, str]:
        return self.made.render()
