"""The graph of a deployment: which node calls which, what each is, and the containers behind them.

It is read from a SeldonDeployment manifest, which is validated in full, or from the PredictorSpec that Seldon's operator
hands to its engine, of which only an unknown node type is refused. Invariant: a graph that was read can be walked.
"""

from __future__ import annotations

import base64
import binascii
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

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
    def is_built_in(self) -> bool:
        """Tell whether Seldon provides the unit, so that no container of the manifest bears its name."""
        return self.implementation not in NOT_BUILT_IN


@dataclass(frozen=True, slots=True)
class Predictor:
    """One graph of a deployment with its containers' environments. `image` is looked up by the container's name."""

    name: str
    graph: GraphNode
    environments: Mapping[str, Mapping[str, str]]
    images: Mapping[str, str]
    annotations: Mapping[str, str]

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


class ParameterSpec(msgspec.Struct):
    name: str = ""
    value: Any = ""
    type: str | None = None


class EndpointSpec(msgspec.Struct):
    service_host: str = ""
    service_port: int = 0
    http_port: int = msgspec.field(name="httpPort", default=0)


class UnitSpec(msgspec.Struct):
    name: str | None = None
    type: str | None = None
    implementation: str | None = None
    parameters: list[ParameterSpec] | None = None
    methods: list[str] | None = None
    children: list[UnitSpec] | None = None
    endpoint: EndpointSpec | None = None


class EnvSpec(msgspec.Struct):
    name: str = ""
    value: Any = ""


class ContainerSpec(msgspec.Struct):
    name: str = ""
    image: str | None = None
    env: list[EnvSpec] | None = None


class PodSpec(msgspec.Struct):
    containers: list[ContainerSpec] | None = None


class ComponentSpec(msgspec.Struct):
    spec: PodSpec | None = None


class PredictorSpec(msgspec.Struct, rename="camel"):
    name: str = ""
    graph: UnitSpec | None = None
    component_specs: list[ComponentSpec] | None = None
    annotations: dict[str, str] | None = None

    def containers(self) -> Iterator[tuple[str, ContainerSpec]]:
        """Yield the path of each container, and the container."""
        for i, component in enumerate(self.component_specs or []):
            for j, container in enumerate((component.spec and component.spec.containers) or []):
                yield f"componentSpecs[{i}].spec.containers[{j}]", container


class DeploymentSpec(msgspec.Struct):
    predictors: list[PredictorSpec] | None = None
    annotations: dict[str, str] | None = None


class Metadata(msgspec.Struct):
    name: str = ""
    namespace: str | None = None
    annotations: dict[str, str] | None = None


class SeldonDeployment(msgspec.Struct, rename="camel"):
    api_version: str = ""
    kind: str = ""
    metadata: Metadata = msgspec.field(default_factory=Metadata)
    spec: DeploymentSpec = msgspec.field(default_factory=DeploymentSpec)


def decode_predictor(encoded: str) -> Predictor:
    """Return the predictor in ENGINE_PREDICTOR, a PredictorSpec as base64 of JSON. Raises GraphError."""
    try:
        spec = msgspec.json.decode(base64.b64decode(encoded, validate=True), type=PredictorSpec)
    except (binascii.Error, UnicodeDecodeError, msgspec.MsgspecError) as error:
        raise GraphError(f"ENGINE_PREDICTOR: {error}; base64 of a PredictorSpec as JSON is expected") from None
    return _checked_types(spec, "ENGINE_PREDICTOR")


def load_predictor(path: Path, name: str) -> Predictor:
    """Return one predictor of a manifest, unvalidated but for its node types, as the executor reads it. Raises GraphError."""
    for spec in _read(path).spec.predictors or []:
        if spec.name == name:
            return _checked_types(spec, f"{path}: predictor {name}")
    raise GraphError(f"{path}: no predictor is named {name!r}")


def load_deployment(path: Path) -> Deployment:
    """Return the SeldonDeployment of a manifest, which may hold other documents too.

    Raises GraphError with one line for each fault: the file, the field's path, what is there and what would be right.
    """
    from serving.manifest import faults

    read = _read(path)
    found = faults(read)
    if found:
        raise GraphError(*(f"{path}: {fault}" for fault in found))
    return Deployment(
        read.metadata.name,
        read.metadata.namespace or "default",
        {**(read.metadata.annotations or {}), **(read.spec.annotations or {})},
        tuple(_predictor(spec) for spec in read.spec.predictors or []),
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


def _read(path: Path) -> SeldonDeployment:
    import yaml

    try:
        documents = [each for each in yaml.load_all(path.read_bytes(), Loader=_loader(yaml)) if each is not None]
    except OSError as error:
        raise GraphError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise GraphError(f"{path}: {' '.join(str(error).split())}") from None
    kinds = [each.get("kind") if isinstance(each, dict) else type(each).__name__ for each in documents]
    if kinds.count("SeldonDeployment") != 1:
        raise GraphError(f"{path}: one document of kind SeldonDeployment is expected; there is {_listed(kinds)}")
    try:
        return msgspec.convert(documents[kinds.index("SeldonDeployment")], SeldonDeployment)
    except msgspec.ValidationError as error:
        what, _, where = str(error).rpartition(" - at `$.")
        raise GraphError(f"{path}: {where.rstrip('`')}: {what}") from None


def _loader(yaml: Any) -> Any:
    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _checked_types(spec: PredictorSpec, source: str) -> Predictor:
    predictor = _predictor(spec)
    unknown = [
        f"{source}: node {node.name}: type {node.type!r} is unknown; one of {', '.join(TYPES)} is expected"
        for node in predictor.graph.walk()
        if node.type not in (*TYPES, *UNTYPED)
    ]
    if unknown:
        raise GraphError(*unknown)
    return predictor


def _predictor(spec: PredictorSpec) -> Predictor:
    containers = [container for _, container in spec.containers()]
    return Predictor(
        spec.name,
        _node(spec.graph or UnitSpec(), Counter()),
        {c.name: {env.name: str(env.value) for env in c.env or [] if env.value is not None} for c in containers},
        {c.name: c.image or "" for c in containers},
        spec.annotations or {},
    )


def _node(spec: UnitSpec, seen: Counter[str]) -> GraphNode:
    name = spec.name or ""
    seen[name] += 1
    at = spec.endpoint
    return GraphNode(
        name,
        spec.type or "",
        spec.implementation or "",
        {parameter.name: _parameter(parameter) for parameter in spec.parameters or []},
        frozenset(spec.methods or []),
        key=name if seen[name] == 1 else f"{name}#{seen[name]}",
        children=tuple([_node(child, seen) for child in spec.children or []]),
        endpoint=None if at is None else Endpoint(at.service_host, at.http_port, at.service_port),
    )


def _parameter(spec: ParameterSpec) -> Parameter:
    text = spec.value if type(spec.value) is str else msgspec.json.encode(spec.value).decode()
    kind = spec.type or "STRING"
    try:
        value = type_of(text, kind)
    except ValueError:
        value = text
    return Parameter(text, kind, value)


def _listed(names: Sequence[Any] | Iterator[Any]) -> str:
    return ", ".join(str(name) for name in names) or "none"
