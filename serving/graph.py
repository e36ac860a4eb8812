"""The graph of a deployment: which node calls which, what each is, and the containers behind them.

It is read from a SeldonDeployment manifest, which is validated in full, or from the PredictorSpec that Seldon's operator
hands to its engine, of which only an unknown node type is refused. Invariant: a graph that was read can be walked.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from serving.errors import GraphError

ROUTER, COMBINER, MODEL, TRANSFORMER, OUTPUT_TRANSFORMER = "ROUTER", "COMBINER", "MODEL", "TRANSFORMER", "OUTPUT_TRANSFORMER"
UNTYPED = ("", "UNKNOWN_TYPE")
TYPES = (MODEL, ROUTER, COMBINER, TRANSFORMER, OUTPUT_TRANSFORMER)

RANDOM_ABTEST = "RANDOM_ABTEST"
NOT_BUILT_IN = ("", "UNKNOWN_IMPLEMENTATION")

Value = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Parameter:
    """A node's parameter: the text of the manifest, and the value that its type makes of it (the text where it can't)."""

    text: str
    type: str
    value: Value


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a node's container listens. `port` takes calls, `probe_port` tells whether it is up; 0 where none is named."""

    host: str
    port: int
    probe_port: int


@dataclass(frozen=True, slots=True)
class GraphNode:
    """One unit of the graph. `key` is its name, numbered where several nodes bear it (only recorded graphs do)."""

    name: str
    type: str = ""
    implementation: str = ""
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    methods: frozenset[str] = frozenset()
    children: tuple[GraphNode, ...] = ()
    endpoint: Endpoint | None = None
    key: str = ""

    def walk(self) -> Iterator[GraphNode]:
        """Yield this node, then its children and theirs, first child first."""
        yield self
        for child in self.children:
            yield from child.walk()

    @property
    def parameter_values(self) -> dict[str, Value]:
        return {name: parameter.value for name, parameter in self.parameters.items()}

    @property
    def is_contender_router(self) -> bool:
        """Tell whether the engine itself splits the rows here, instead of asking a container for one route."""
        return self.type == ROUTER and self.parameter_values.get("contender") == "v1"

    @property
    def splits(self) -> bool:
        """Tell whether the graph from here on holds a router of Contender's."""
        return any(node.is_contender_router for node in self.walk())

    @property
    def is_remote(self) -> bool:
        """Tell whether the unit is behind HTTP: an endpoint names its host, as the operator's always do."""
        return self.endpoint is not None and bool(self.endpoint.host)


@dataclass(frozen=True, slots=True)
class Container:
    """A container of the componentSpecs: which of them it is in, and its port named `http` (0: none is named)."""

    name: str
    component: int
    http_port: int


@dataclass(frozen=True, slots=True)
class Predictor:
    """One graph of a deployment with its containers' environments. `image` is looked up by the container's name."""

    name: str
    graph: GraphNode
    environments: Mapping[str, Mapping[str, str]]
    images: Mapping[str, str]
    annotations: Mapping[str, str]
    containers: tuple[Container, ...] = ()

    def environment(self, container: str) -> Mapping[str, str]:
        """Return the environment of a node's container; {} where it has none."""
        return self.environments.get(container, {})


@dataclass(frozen=True, slots=True)
class Deployment:
    """A SeldonDeployment: one or more predictors, of which the first is served unless another is named."""

    name: str
    namespace: str
    annotations: Mapping[str, str]
    predictors: tuple[Predictor, ...]

    @property
    def graph(self) -> GraphNode:
        return self.predictors[0].graph

    def environment(self, container: str) -> Mapping[str, str]:
        return self.predictors[0].environment(container)

    def predictor(self, name: str) -> Predictor:
        """Return the predictor of this name. Raises GraphError."""
        for predictor in self.predictors:
            if predictor.name == name:
                return predictor
        raise GraphError(f"deployment {self.name}: no predictor {name!r}; there is {_listed(p.name for p in self.predictors)}")


def decode_predictor(encoded: str) -> Predictor:
    """Return the predictor in ENGINE_PREDICTOR, a PredictorSpec as base64 of JSON. Raises GraphError."""
    try:
        spec = orjson.loads(base64.b64decode(encoded, validate=True))
    except ValueError as error:
        raise GraphError(f"ENGINE_PREDICTOR: {error}; base64 of a PredictorSpec as JSON is expected") from None
    return _checked_types(spec, "ENGINE_PREDICTOR")


def load_predictor(path: Path, name: str) -> Predictor:
    """Return one predictor of a manifest, unvalidated but for its node types, as the executor reads it. Raises GraphError."""
    predictors = _list(_object(_read(path), "spec"), "predictors")
    for spec in predictors:
        if _text(spec, "name") == name:
            return _checked_types(spec, f"{path}: predictor {name}")
    raise GraphError(f"{path}: no predictor is named {name!r}; there is {_listed(_text(p, 'name') for p in predictors)}")


def load_deployment(path: Path) -> Deployment:
    """Return the SeldonDeployment of a manifest, which may hold other documents too.

    Raises GraphError with one line for each fault: the file, the field's path, what is there and what would be right.
    """
    from serving.manifest import faults

    document = _read(path)
    found = faults(document)
    if found:
        raise GraphError(*(f"{path}: {fault}" for fault in found))
    metadata, spec = document["metadata"], document["spec"]
    return Deployment(
        metadata["name"],
        metadata.get("namespace") or "default",
        {**(metadata.get("annotations") or {}), **(spec.get("annotations") or {})},
        tuple(_predictor(each) for each in spec["predictors"]),
    )


def type_of(text: str, kind: str) -> Value:
    """Return the value of a parameter's text under its type (STRING, INT, FLOAT, DOUBLE or BOOL). Raises ValueError."""
    if kind == "INT":
        return int(text)
    if kind in ("FLOAT", "DOUBLE"):
        return float(text)
    if kind == "BOOL":
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{text!r} is neither true nor false")
        return text.lower() == "true"
    return text


def _read(path: Path) -> Any:
    """Return the one document of a file that is a SeldonDeployment. Raises GraphError."""
    import yaml

    try:
        documents = [each for each in yaml.load_all(path.read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader)) if each]
    except OSError as error:
        raise GraphError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise GraphError(f"{path}: {' '.join(str(error).split())}") from None
    kinds = [each.get("kind") if isinstance(each, dict) else type(each).__name__ for each in documents]
    if kinds.count("SeldonDeployment") != 1:
        raise GraphError(f"{path}: one document of kind SeldonDeployment is expected; there is {_listed(kinds)}")
    return documents[kinds.index("SeldonDeployment")]


def _checked_types(spec: Any, source: str) -> Predictor:
    try:
        predictor = _predictor(spec)
    except GraphError as error:
        raise GraphError(f"{source}: {error}") from None
    unknown = [
        f"{source}: node {node.name}: type {node.type!r} is unknown; one of {', '.join(TYPES)} is expected"
        for node in predictor.graph.walk()
        if node.type not in (*TYPES, *UNTYPED)
    ]
    if unknown:
        raise GraphError(*unknown)
    return predictor


def _predictor(spec: Any) -> Predictor:
    placed = [
        (index, container)
        for index, component in enumerate(_list(spec, "componentSpecs"))
        for container in _list(_object(component, "spec"), "containers")
    ]
    containers = [container for _, container in placed]
    return Predictor(
        _text(spec, "name"),
        _node(_object(spec, "graph"), Counter()),
        {_text(each, "name"): _environment(each) for each in containers},
        {_text(each, "name"): _text(each, "image") for each in containers},
        _object(spec, "annotations"),
        tuple([Container(_text(each, "name"), index, _http_port(each)) for index, each in placed]),
    )


def _http_port(container: Any) -> int:
    ports: dict[str, int] = {_text(each, "name"): _member(each, "containerPort", int) for each in _list(container, "ports")}
    return ports.get("http", 0)


def _environment(container: Any) -> dict[str, str]:
    """Return the variables with a value; those that a Secret or the like gives are not known here."""
    named = [(_text(each, "name"), each.get("value")) for each in _list(container, "env")]
    return {name: str(value) for name, value in named if value is not None}


def _node(spec: Any, seen: Counter[str]) -> GraphNode:
    name = _text(spec, "name")
    seen[name] += 1
    return GraphNode(
        name,
        _text(spec, "type"),
        _text(spec, "implementation"),
        {_text(each, "name"): _parameter(each) for each in _list(spec, "parameters")},
        frozenset(_list(spec, "methods")),
        key=name if seen[name] == 1 else f"{name}#{seen[name]}",
        children=tuple([_node(child, seen) for child in _list(spec, "children")]),
        endpoint=_endpoint(spec["endpoint"]) if spec.get("endpoint") else None,
    )


def _endpoint(spec: Any) -> Endpoint:
    return Endpoint(_text(spec, "service_host"), _member(spec, "httpPort", int), _member(spec, "service_port", int))


def _parameter(spec: Any) -> Parameter:
    given = spec.get("value", "")
    text = given if type(given) is str else orjson.dumps(given).decode()
    kind = _text(spec, "type") or "STRING"
    try:
        return Parameter(text, kind, type_of(text, kind))
    except ValueError:
        return Parameter(text, kind, text)


def _text(spec: Any, name: str) -> str:
    text: str = _member(spec, name, str)
    return text


def _list(spec: Any, name: str) -> list[Any]:
    values: list[Any] = _member(spec, name, list)
    return values


def _object(spec: Any, name: str) -> dict[str, Any]:
    members: dict[str, Any] = _member(spec, name, dict)
    return members


def _member(spec: Any, name: str, kind: type) -> Any:
    """Return a member of a JSON object, which must be of this type; an empty one where it is absent or null.

    Raises GraphError.
    """
    if not isinstance(spec, dict):
        raise GraphError(f"{spec!r:.60} is no object; one with {name} is expected")
    value = spec.get(name)
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise GraphError(f"{name}: {value!r:.60} is no {kind.__name__}")
    return value


def _listed(names: Iterable[Any]) -> str:
    return ", ".join(str(name) for name in names) or "none"
