"""What is wrong with a SeldonDeployment, before anybody runs it: all faults at once, each with its field's path.

Invariant: a manifest without faults can be served, as far as the manifest alone can tell.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from serving.graph import COMBINER, NOT_BUILT_IN, RANDOM_ABTEST, ROUTER, TYPES, UNTYPED, type_of

API_VERSIONS = ("machinelearning.seldon.io/v1", "machinelearning.seldon.io/v1alpha3", "machinelearning.seldon.io/v1alpha2")
METHODS = ("TRANSFORM_INPUT", "TRANSFORM_OUTPUT", "ROUTE", "AGGREGATE", "SEND_FEEDBACK")
PARAMETER_TYPES = ("STRING", "INT", "FLOAT", "DOUBLE", "BOOL")


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


def faults(document: Any) -> list[str]:
    """Return a line for each fault of a parsed manifest, in its order; of those in its structure only the first."""
    try:
        return list(_deployment(msgspec.convert(document, SeldonDeployment)))
    except msgspec.ValidationError as error:
        what, _, where = str(error).rpartition(" - at `$.")
        return [f"{where.rstrip('`')}: {what[:1].lower()}{what[1:]}" if what else str(error)]


def _deployment(deployment: SeldonDeployment) -> Iterator[str]:
    yield from _known("apiVersion", deployment.api_version, API_VERSIONS)
    yield from _known("kind", deployment.kind, ("SeldonDeployment",))
    if not deployment.metadata.name:
        yield "metadata.name: missing; the deployment's name is expected"
    predictors = deployment.spec.predictors or []
    if not predictors:
        yield "spec.predictors: empty; at least one predictor with a graph is expected"
    yield from _unique((f"spec.predictors[{i}].name", predictor.name) for i, predictor in enumerate(predictors))
    for i, predictor in enumerate(predictors):
        yield from _predictor(f"spec.predictors[{i}]", predictor)


def _predictor(path: str, predictor: PredictorSpec) -> Iterator[str]:
    if not predictor.name:
        yield f"{path}.name: missing; the predictor's name is expected"
    containers = [(f"{path}.{where}", container) for where, container in predictor.containers()]
    yield from _unique((f"{where}.name", container.name) for where, container in containers)
    for where, container in containers:
        yield from _container(where, container)
    if predictor.graph is None:
        yield f"{path}.graph: missing; the root node is expected"
        return
    units = list(_walk(f"{path}.graph", predictor.graph))
    yield from _unique((f"{where}.name", unit.name or "") for where, unit in units)
    names = [container.name for _, container in containers]
    for where, unit in units:
        yield from _unit(where, unit, names)


def _walk(path: str, unit: UnitSpec) -> Iterator[tuple[str, UnitSpec]]:
    yield path, unit
    for i, child in enumerate(unit.children or []):
        yield from _walk(f"{path}.children[{i}]", child)


def _container(path: str, container: ContainerSpec) -> Iterator[str]:
    if not container.name:
        yield f"{path}.name: missing; the name of the node that it runs is expected"
    for i, env in enumerate(container.env or []):
        if not isinstance(env.value, str | None):
            yield f'{path}.env[{i}].value: {env.value!r} is no string; write "{env.value}"'


def _unit(path: str, unit: UnitSpec, containers: list[str]) -> Iterator[str]:
    if not unit.name:
        yield f"{path}.name: missing; the node's name is expected"
    built_in = (unit.implementation or "") not in NOT_BUILT_IN
    kind = unit.type or ""
    if kind not in UNTYPED:
        yield from _known(f"{path}.type", kind, TYPES)
    elif not built_in and not unit.methods:
        yield f"{path}.type: missing; one of {', '.join(TYPES)} is expected"
    for i, method in enumerate(unit.methods or []):
        yield from _known(f"{path}.methods[{i}]", method, METHODS)
    if unit.name and not built_in and unit.name not in containers:
        there = (", ".join(containers) or "none") + _meant(unit.name, containers)
        yield f"{path}.name: no container of componentSpecs is named {unit.name!r}; there is {there}"
    yield from _parameters(path, unit)
    yield from _children(path, unit, kind)


def _parameters(path: str, unit: UnitSpec) -> Iterator[str]:
    parameters = unit.parameters or []
    yield from _unique((f"{path}.parameters[{i}].name", parameter.name) for i, parameter in enumerate(parameters))
    for i, parameter in enumerate(parameters):
        yield from _parameter(f"{path}.parameters[{i}]", parameter)


def _parameter(path: str, parameter: ParameterSpec) -> Iterator[str]:
    if not parameter.name:
        yield f"{path}.name: missing; the parameter's name is expected"
    kind = parameter.type or "STRING"
    if kind not in PARAMETER_TYPES:
        yield from _known(f"{path}.type", kind, PARAMETER_TYPES)
    elif not isinstance(parameter.value, str):
        yield f"{path}.value: {parameter.value!r} is no string; Seldon wants it quoted, with its type beside it"
    else:
        try:
            type_of(parameter.value, kind)
        except ValueError:
            yield f"{path}.value: {parameter.value!r} is no {kind}"


def _children(path: str, unit: UnitSpec, kind: str) -> Iterator[str]:
    children = unit.children or []
    contender = {parameter.name: parameter.value for parameter in unit.parameters or []}.get("contender")
    if contender is not None:
        if kind != ROUTER:
            yield f"{path}.type: {kind or 'none'} with the parameter contender; {ROUTER} is expected"
        if contender != "v1":
            yield f"{path}.parameters: contender is {contender!r}; v1 is expected"
        if len(children) < 2:
            yield f"{path}.children: {len(children)} below a router with contender=v1; champion and challenger are expected"
        elif children[0].name != "champion":
            yield f"{path}.children[0].name: {children[0].name!r}; the first child of a contender=v1 router is the champion"
    elif unit.implementation == RANDOM_ABTEST and len(children) != 2:
        yield f"{path}.children: {len(children)} below {RANDOM_ABTEST}; two are expected"
    elif kind in (ROUTER, COMBINER) and not children:
        yield f"{path}.children: none below a {kind}; at least one is expected"


def _known(path: str, value: str, known: Iterable[str]) -> Iterator[str]:
    names = list(known)
    if value not in names:
        expected = names[0] if len(names) == 1 else f"one of {', '.join(names)}"
        yield (
            f"{path}: {value!r} is unknown; {expected} is expected{_meant(value, names)}"
            if value
            else (f"{path}: missing; {expected} is expected")
        )


def _meant(value: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(value, list(names), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _unique(named: Iterable[tuple[str, str]]) -> Iterator[str]:
    seen: Counter[str] = Counter()
    for path, name in named:
        seen[name] += 1
        if name and seen[name] == 2:
            yield f"{path}: {name!r} is taken; names are unique"
