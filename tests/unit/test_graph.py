"""Graphs as they are read: manifests with all their faults at once, the operator's variable with next to none."""

from __future__ import annotations

import base64
import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import GraphError
from serving.graph import TYPES, Endpoint, decode_predictor, load_deployment, load_predictor

Document = dict[str, Any]


def container(name: str, **env: str) -> Document:
    return {"name": name, "image": "units:1", "env": [{"name": key, "value": value} for key, value in env.items()]}


def manifest() -> Document:
    parameter = {"name": "bundle", "value": "models/champion", "type": "STRING"}
    children = [{"name": "champion", "type": "MODEL", "parameters": [parameter]}, {"name": "challenger", "type": "MODEL"}]
    router = {
        "name": "router",
        "type": "ROUTER",
        "parameters": [{"name": "contender", "value": "v1", "type": "STRING"}],
        "children": children,
    }
    names = ["campaigns", "router", "champion", "challenger"]
    return {
        "apiVersion": "machinelearning.seldon.io/v1",
        "kind": "SeldonDeployment",
        "metadata": {"name": "campaigns", "creationTimestamp": None},
        "spec": {
            "predictors": [
                {
                    "name": "main",
                    "graph": {"name": "campaigns", "type": "OUTPUT_TRANSFORMER", "children": [router]},
                    "componentSpecs": [{"spec": {"containers": [container(name, MODEL_NAME=f"x.{name}") for name in names]}}],
                }
            ]
        },
    }


def written(folder: Path, *documents: Document) -> Path:
    path = folder / "graph.yaml"
    path.write_text(yaml.safe_dump_all(documents))
    return path


def faults(folder: Path, document: Document) -> list[str]:
    path = written(folder, document)
    with pytest.raises(GraphError) as caught:
        load_deployment(path)
    assert all(fault.startswith(f"{path}: ") for fault in caught.value.faults)
    assert str(caught.value).splitlines() == list(caught.value.faults)
    return [fault.removeprefix(f"{path}: ") for fault in caught.value.faults]


def test_a_manifest_among_other_documents_is_read_with_types_and_environments(tmp_path: Path) -> None:
    document = manifest()
    document["spec"]["predictors"][0]["graph"]["parameters"] = [
        {"name": "limit", "value": "3", "type": "INT"},
        {"name": "ratio", "value": ".5", "type": "FLOAT"},
        {"name": "on", "value": "True", "type": "BOOL"},
    ]
    deployment = load_deployment(written(tmp_path, {"kind": "Service"}, document))
    assert [node.name for node in deployment.graph.walk()] == ["campaigns", "router", "champion", "challenger"]
    assert deployment.graph.parameter_values == {"limit": 3, "ratio": 0.5, "on": True}
    assert [node.name for node in deployment.graph.walk() if node.is_contender_router] == ["router"]
    assert deployment.environment("champion") == {"MODEL_NAME": "x.champion"}
    assert deployment.environment("nobody") == {}
    assert deployment.predictor("main").images["router"] == "units:1"
    assert deployment.namespace == "default"
    with pytest.raises(GraphError, match="no predictor 'other'; there is main"):
        deployment.predictor("other")


GRAPH = "spec.predictors[0].graph"


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ("d['apiVersion'] = 'v1'", "apiVersion: 'v1' is unknown; one of machinelearning.seldon.io/v1"),
        ("d['apiVersion'] = ''", "apiVersion: missing"),
        ("d['metadata'] = {}", "metadata.name: missing"),
        ("d['spec']['predictors'] = []", "spec.predictors: empty"),
        ("p['name'] = ''", "spec.predictors[0].name: missing"),
        ("d['spec']['predictors'].append(p)", "spec.predictors[1].name: 'main' is taken"),
        ("del p['graph']", f"{GRAPH}: missing"),
        ("g['type'] = 'OUTPUT_TRANSFORMR'", f"{GRAPH}.type: 'OUTPUT_TRANSFORMR' is unknown"),
        ("g['type'] = 'OUTPUT_TRANSFORMR'", "did you mean OUTPUT_TRANSFORMER?"),
        ("del g['type']", f"{GRAPH}.type: missing"),
        ("g['name'] = None", f"{GRAPH}.name: missing"),
        ("g['methods'] = ['ROUT']", f"{GRAPH}.methods[0]: 'ROUT' is unknown"),
        ("g['name'] = 'campaign'", "no container of componentSpecs is named 'campaign'; there is campaigns, router"),
        ("r['children'][1]['name'] = 'champion'", f"{GRAPH}.children[0].children[1].name: 'champion' is taken"),
        ("c.append({'name': 'router'})", "componentSpecs[0].spec.containers[4].name: 'router' is taken"),
        ("c.append({'image': 'x'})", "containers[4].name: missing"),
        ("c[0]['env'][0]['value'] = 1", 'containers[0].env[0].value: 1 is no string; write "1"'),
        ("r['parameters'][0]['value'] = 'v2'", "contender is 'v2'; v1 is expected"),
        ("r['type'] = 'MODEL'", f"{GRAPH}.children[0].type: MODEL with the parameter contender; ROUTER is expected"),
        ("r['children'].pop()", f"{GRAPH}.children[0].children: 1 below a router with contender=v1"),
        ("r['children'].reverse()", f"{GRAPH}.children[0].children[0].name: 'challenger'; the first child"),
        ("r.update(parameters=[], children=[])", f"{GRAPH}.children[0].children: none below a ROUTER"),
        ("g.update(type='COMBINER', children=[])", f"{GRAPH}.children: none below a COMBINER"),
        ("g.update(implementation='RANDOM_ABTEST')", f"{GRAPH}.children: 1 below RANDOM_ABTEST; two are expected"),
        ("g['parameters'] = [{'name': 'n', 'value': 'x', 'type': 'INT'}]", f"{GRAPH}.parameters[0].value: 'x' is no INT"),
        ("g['parameters'] = [{'name': 'n', 'value': 'x', 'type': 'BOOL'}]", "'x' is no BOOL"),
        ("g['parameters'] = [{'name': 'n', 'value': 3, 'type': 'INT'}]", "3 is no string; Seldon wants it quoted"),
        ("g['parameters'] = [{'name': 'n', 'value': '3', 'type': 'LONG'}]", "parameters[0].type: 'LONG' is unknown"),
        ("g['parameters'] = [{'value': '3'}]", "parameters[0].name: missing"),
        ("g['parameters'] = [{'name': 'n'}, {'name': 'n'}]", "parameters[1].name: 'n' is taken"),
        ("g['children'] = 'router'", "spec.predictors[0].graph.children: expected `array | null`, got `str`"),
    ],
)
def test_each_fault_names_its_field_and_what_would_be_right(change: str, fault: str, tmp_path: Path) -> None:
    document = manifest()
    predictor = document["spec"]["predictors"][0]
    names = {"d": document, "p": predictor, "g": predictor["graph"], "r": predictor["graph"]["children"][0]}
    names["c"] = predictor["componentSpecs"][0]["spec"]["containers"]
    exec(change, names)  # noqa: S102 - a change is most legible as the statement it is
    assert any(fault in found for found in faults(tmp_path, document))


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    document = manifest()
    predictor = document["spec"]["predictors"][0]
    predictor["graph"]["type"] = "NOPE"
    predictor["graph"]["children"][0]["children"].pop()
    predictor["componentSpecs"] = []
    found = faults(tmp_path, document)
    assert [fault.partition(":")[0] for fault in found] == [
        f"{GRAPH}.type",
        f"{GRAPH}.name",
        f"{GRAPH}.children[0].name",
        f"{GRAPH}.children[0].children",
        f"{GRAPH}.children[0].children[0].name",
    ]


def test_a_built_in_unit_needs_no_container(tmp_path: Path) -> None:
    document = manifest()
    router = document["spec"]["predictors"][0]["graph"]["children"][0]
    router.update(name="ab", implementation="RANDOM_ABTEST", parameters=[])
    del router["type"]
    assert load_deployment(written(tmp_path, document)).graph.children[0].implementation == "RANDOM_ABTEST"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "there is none"),
        ("kind: Service", "there is Service"),
        ("[1]", "there is list"),
        ("kind: SeldonDeployment\n---\nkind: SeldonDeployment", "there is SeldonDeployment, SeldonDeployment"),
        ("a: [", "graph.yaml: while parsing"),
        ("a: \x00", "graph.yaml: "),
    ],
)
def test_a_file_without_one_deployment_is_refused(text: str, fault: str, tmp_path: Path) -> None:
    path = tmp_path / "graph.yaml"
    path.write_text(text)
    with pytest.raises(GraphError, match=r"graph\.yaml") as caught:
        load_deployment(path)
    assert fault in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match=r"nowhere\.yaml: No such file"):
        load_deployment(tmp_path / "nowhere.yaml")


def test_the_executor_reads_the_named_predictor_of_a_manifest_unvalidated(tmp_path: Path) -> None:
    document = manifest()
    second = deepcopy(document["spec"]["predictors"][0])
    second.update(name="canary", componentSpecs=None)
    document["spec"]["predictors"].append(second)
    path = written(tmp_path, document)
    assert load_predictor(path, "canary").environments == {}
    with pytest.raises(GraphError, match="no predictor is named 'nope'; there is main, canary"):
        load_predictor(path, "nope")


def encoded(spec: Any) -> str:
    return base64.b64encode(json.dumps(spec).encode()).decode()


def test_from_the_operator_null_is_absent_and_unknown_fields_are_ignored() -> None:
    empty = dict.fromkeys(("type", "implementation", "parameters", "methods", "children", "endpoint"))
    endpoint = {"service_host": "h", "service_port": 1, "httpPort": 2, "grpcPort": 3, "type": "REST"}
    child = {"name": "m", "type": "UNKNOWN_TYPE", "endpoint": endpoint, "logger": {"mode": "all"}}
    spec = {"name": "main", "replicas": 1, "componentSpecs": None, "graph": {**empty, "name": "r", "children": [child]}}
    root = decode_predictor(encoded(spec)).graph
    assert (root.type, root.methods, root.endpoint, root.parameters) == ("", frozenset(), None, {})
    assert root.children[0].endpoint == Endpoint("h", 2, 1)


def test_from_the_operator_a_parameter_that_its_type_contradicts_stays_text() -> None:
    spec = {"graph": {"name": "ab", "parameters": [{"name": "ratioA", "value": "abc", "type": "FLOAT"}]}}
    assert decode_predictor(encoded(spec)).graph.parameter_values == {"ratioA": "abc"}


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ("%%%", "ENGINE_PREDICTOR: .*base64 of a PredictorSpec as JSON is expected"),
        (base64.b64encode(b"{").decode(), "ENGINE_PREDICTOR: .*base64 of a PredictorSpec as JSON is expected"),
        (encoded([]), r"ENGINE_PREDICTOR: \[\] is no object"),
        (encoded({"graph": []}), r"ENGINE_PREDICTOR: graph: \[\] is no dict"),
        (encoded({"graph": {"name": 1}}), "ENGINE_PREDICTOR: name: 1 is no str"),
        (encoded({"graph": {"children": [1]}}), "ENGINE_PREDICTOR: 1 is no object"),
        (encoded({"graph": {"name": "m", "type": "MODLE"}}), "node m: type 'MODLE' is unknown; one of MODEL, ROUTER"),
    ],
)
def test_from_the_operator_only_the_unreadable_and_unknown_types_are_refused(value: str, fault: str) -> None:
    with pytest.raises(GraphError, match=fault):
        decode_predictor(value)


def trees() -> st.SearchStrategy[Document]:
    node = st.fixed_dictionaries({"name": st.sampled_from("abc"), "type": st.sampled_from(TYPES)})
    return st.recursive(node, lambda below: st.builds(lambda n, c: {**n, "children": c}, node, st.lists(below, max_size=3)))


@given(trees())
def test_every_node_of_any_tree_has_a_key_of_its_own(tree: Document) -> None:
    def count(node: Document) -> int:
        return 1 + sum(count(child) for child in node.get("children", []))

    nodes = list(decode_predictor(encoded({"graph": tree})).graph.walk())
    assert len(nodes) == count(tree) == len({node.key for node in nodes})
    assert {node.key for node in nodes} >= {node.name for node in nodes}
