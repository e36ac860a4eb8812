"""Foreign classes with Seldon's documented methods: in `contender serve` they answer what they do under Seldon's wrapper."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import importlib.util
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from harness.server import CONTENDER, ROOT, Server
from harness.units import WRAPPER
from router.assignment import bucket
from serving.errors import NodeFailed, ServingError
from serving.local_node import component_class
from serving.messages import Message
from serving.nodes import Call
from serving.seldon_node import SeldonNode

HERE = Path(__file__).parent / "foreign"

X = {"data": {"names": ["a", "b"], "ndarray": [[1, 2.5], [3, -4]]}}
TENSOR = {"data": {"names": ["a", "b"], "tensor": {"shape": [2, 2], "values": [1, 2.5, 3, -4]}}}
MIXED = {"data": {"names": ["id", "x"], "ndarray": [["-8076087639492063270", 1], ["b", None]]}}
META = {**X, "meta": {"puid": "p", "tags": {"mine": 1}, "metrics": [], "requestPath": {"before": "other:2"}}}
JSON, TEXT = {"jsonData": {"a": [1, None, 9007199254740993]}}, {"strData": "text"}
BYTES = {"binData": base64.b64encode(b"\x00\x01\xff").decode()}
PAYLOADS = [X, TENSOR, MIXED, META, JSON, TEXT, BYTES]
REFUSED: list[Any] = [{}, {"data": {"names": ["a"]}}, {"meta": {}}, [1, 2], {"data": {"ndarray": [[1], [2, 3]]}}, "text", 5]
FEEDBACK = {
    "request": X,
    "response": {"meta": {"routing": {"node": 1}}},
    "truth": {"data": {"ndarray": [[1], [0]]}},
    "reward": 0.5,
}


def calls(path: str, messages: list[Any]) -> list[Any]:
    return [[path, message] for message in messages]


CASES: list[Any] = [
    ["MeanClassifier", {"intercept": 0.5}, calls("/predict", [X, TENSOR, META, *REFUSED[:4]])],
    ["MeanClassifier", {}, [["/predict", {"data": {"ndarray": [[1, 2, 3, 4]]}}], ["/health/status", None]]],
    ["MeanClassifier", {"label": "up"}, [["/send-feedback", FEEDBACK], ["/send-feedback", {"reward": 2}], ["/predict", X]]],
    ["Echo", {}, calls("/predict", [*PAYLOADS, *REFUSED])],
    ["Echo", {}, calls("/transform-input", PAYLOADS) + calls("/transform-output", PAYLOADS)],
    ["Words", {}, calls("/predict", [{"strData": text} for text in ("text", "list", "json", "flat", "bytes", "else")])],
    ["Scaler", {"factor": 3}, calls("/transform-input", [X, TENSOR, META]) + calls("/transform-output", [X, TENSOR, META])],
    ["Greedy", {}, [["/route", X], ["/send-feedback", FEEDBACK], ["/route", X], ["/route", TENSOR], ["/route", TEXT]]],
    ["Average", {}, [["/aggregate", {"seldonMessages": each}] for each in ([X, TENSOR], [META, X], [X])]],
    [
        "Raw",
        {},
        [
            *calls("/predict", [X, TEXT]),
            *calls("/transform-input", [X]),
            *calls("/transform-output", [META]),
            *calls("/route", [X]),
            ["/aggregate", {"seldonMessages": [X, TEXT]}],
            ["/health/status", None],
        ],
    ],
    ["Nothing", {}, [*calls("/predict", [X]), *calls("/transform-input", [X]), *calls("/transform-output", [TEXT])]],
    ["Nothing", {}, [["/route", X], ["/aggregate", {"seldonMessages": [X]}], ["/send-feedback", FEEDBACK]]],
    ["Nothing", {}, [["/health/status", None]]],
    ["BadMetrics", {}, calls("/predict", [X])],
]


Unit = dict[str, Any]


class Silent:
    def node(self, node: str, method: str, status: int, seconds: float) -> None: ...


@pytest.fixture(scope="module")
def wrapped() -> list[Any]:
    """What the real wrapper answers to each case."""
    if not WRAPPER.exists():
        pytest.skip(".venv-units is missing: make units")
    command = [str(WRAPPER.with_name("python")), str(HERE / "under_wrapper.py")]
    done = subprocess.run(command, input=json.dumps(CASES), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    answers: list[Any] = json.loads(done.stdout)
    return answers


@pytest.fixture(scope="module")
def examples() -> Any:
    spec = importlib.util.spec_from_file_location("foreign_examples", HERE / "examples.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def told(node: SeldonNode, path: str, message: Any) -> list[Any]:
    """Return status and parsed body of one call of a node in this process."""
    method = getattr(node, {"/health/status": "status"}.get(path, path.strip("/").replace("-", "_")))
    if path == "/aggregate":
        given: Any = [Message(json.dumps(each).encode()) for each in message["seldonMessages"]]
    else:
        given = Message(json.dumps(message).encode())
    try:
        answer = asyncio.run(method(Call()) if message is None else method(given, Call()))
    except NodeFailed as failure:
        return [failure.status, json.loads(failure.body())]
    parsed = json.loads(answer.body)
    return [200, _without_defaults(parsed) if path == "/send-feedback" else parsed]


def _without_defaults(answer: Any) -> Any:
    """Leave out what protobuf's JSON leaves out: the wrapper makes its answer to feedback by way of protobuf."""
    data, metrics = answer.get("data", {}), answer["meta"].get("metrics", [])
    if not data.get("names"):
        data.pop("names", None)
    if "tensor" in data and not data["tensor"]["values"]:
        del data["tensor"]["values"]
    for metric in metrics:
        if metric["type"] == "COUNTER":
            del metric["type"]
    return answer


@pytest.mark.parametrize("number", range(len(CASES)), ids=[f"{i}-{case[0]}" for i, case in enumerate(CASES)])
def test_a_class_answers_what_it_answers_under_the_wrapper(number: int, wrapped: list[Any], examples: Any) -> None:
    name, parameters, asked = CASES[number]
    node = SeldonNode("node", getattr(examples, name)(**parameters), Silent(), image="image:1")
    for (path, message), theirs in zip(asked, wrapped[number], strict=True):
        assert told(node, path, message) == theirs, (path, message)


def unit(name: str, kind: str, *children: Unit, **parameters: object) -> Unit:
    types = {str: "STRING", int: "INT", float: "FLOAT"}
    listed = [{"name": key, "value": str(value), "type": types[type(value)]} for key, value in parameters.items()]
    return {"name": name, "type": kind, "parameters": listed, "children": list(children)}


class Foreign(Server):
    """A real `contender serve` in the examples' folder, on a graph of its own."""

    def __init__(self, folder: Path, graph: Unit, **classes: str) -> None:
        super().__init__(folder)
        self.cwd = HERE
        containers = [
            {"name": name, "image": f"{name}:1", "env": [{"name": "MODEL_NAME", "value": f"examples.{model}"}]}
            for name, model in classes.items()
        ]
        predictor = {"name": "main", "graph": graph, "componentSpecs": [{"spec": {"containers": containers}}]}
        document = {
            "apiVersion": "machinelearning.seldon.io/v1",
            "kind": "SeldonDeployment",
            "metadata": {"name": "foreign"},
            "spec": {"predictors": [predictor]},
        }
        self.graph.write_text(yaml.safe_dump(document))
        (folder / "experiment.yaml").unlink()


@contextlib.contextmanager
def serving(server: Server) -> Iterator[Server]:
    try:
        server.start()
        yield server
    finally:
        server.kill_group()


def test_a_graph_of_foreign_classes_serves_and_learns_from_feedback(tmp_path: Path) -> None:
    first, second, third = (
        unit(name, "MODEL", intercept=value) for name, value in (("one", 0.0), ("two", 1.0), ("three", 2.0))
    )
    graph = unit(
        "round",
        "OUTPUT_TRANSFORMER",
        unit("scale", "TRANSFORMER", unit("mean", "COMBINER", unit("greedy", "ROUTER", first, second), third), factor=2),
    )
    models = dict.fromkeys(("one", "two", "three"), "MeanClassifier")
    with serving(Foreign(tmp_path, graph, round="Scaler", scale="Scaler", mean="Average", greedy="Greedy", **models)) as server:

        def sigmoid(x: float) -> float:
            return float(1 / (1 + np.exp(-x)))

        for kind, message in (("ndarray", X), ("tensor", TENSOR)):
            answer = json.loads(server.post(message).body)
            positive = [round((sigmoid(mean) + sigmoid(mean + 2)) / 2, 3) for mean in (3.5, -1.0)]
            rows = [[each, round(1 - each, 3)] for each in positive]
            assert answer["data"]["names"] == ["t:0", "t:1"]
            values = answer["data"]["tensor"]["values"] if kind == "tensor" else answer["data"]["ndarray"]
            assert np.ravel(values) == pytest.approx(np.ravel(rows), abs=2e-3)
            assert answer["meta"]["requestPath"]["mean"] == "mean:1"
            assert {each["key"] for each in answer["meta"]["metrics"]} >= {"averaged", "calls_total"}
        told = {"request": X, "response": {"meta": {"routing": {"greedy": 1}}}, "reward": 1.0}
        assert server.request("POST", "/api/v1.0/feedback", json.dumps(told).encode()).status == 200
        after = json.loads(server.post(X).body)["data"]["ndarray"][0][0]
        assert after == pytest.approx((sigmoid(4.5) + sigmoid(5.5)) / 2, abs=2e-3)
        failed = server.post({"data": {"ndarray": [[1, 2, 3, 4]]}})
        assert (failed.status, json.loads(failed.body)["status"]["reason"]) == (500, "MICROSERVICE_INTERNAL_ERROR")
        assert server.post({"meta": {}}).status == 400
        assert json.loads(server.get("/api/v1.0/metadata/one").body)["versions"] == ["v1"]
        assert server.get("/api/v1.0/status/one").status == 200
        assert server.contender("exposures").returncode != 0, "a graph that splits nobody has no test"


def test_foreign_models_below_contender_s_router_are_split_by_customer_and_recorded(tmp_path: Path) -> None:
    arms = unit("champion", "MODEL", factor=1.0), unit("challenger", "MODEL", factor=10.0)
    graph = unit("router", "ROUTER", *arms, contender="v1", key="customer")
    server = Foreign(tmp_path, graph, router="Nothing", champion="Spend", challenger="Spend")
    rows: list[list[Any]] = [[2**62 + i, 1.5 * i] for i in range(60)]
    for _ in range(2):
        with serving(server):
            answer = server.predict(["customer", "spend"], rows)
            assert answer["data"]["names"] == ["customer", "arm", "score"]
            for (key, spend), row in zip(rows, answer["data"]["ndarray"], strict=True):
                arm = "challenger" if bucket("foreign-1", str(key)) < 1000 else "champion"
                assert row == [key, arm, spend * (10 if arm == "challenger" else 1)]
            assert answer["meta"]["tags"]["epoch"] == 1
    exposures = server.exposures()
    assert [each["customer"] for each in exposures] == [str(key) for key, _ in rows] * 2
    assert {each["served"] for each in exposures} == {"champion", "challenger"}


def test_a_class_that_can_t_be_made_is_told_with_what_is_wrong(tmp_path: Path) -> None:
    server = Foreign(tmp_path, unit("one", "MODEL", speed=1), one="Spend")
    command = [str(CONTENDER), "serve", str(server.graph), "--home", str(server.home), "--port", str(server.port)]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "one: examples.Spend can't be made with {'speed': 1}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("nowhere.Model", "No module named 'nowhere'"),
        ("json.Model", "no attribute 'Model'"),
        ("needs_seldon.Model", "needn't be"),
    ],
)
def test_a_class_that_can_t_be_loaded_is_told_by_name(
    path: str, wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "needs_seldon.py").write_text("from seldon_core.user_model import SeldonComponent")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ServingError, match=wanted) as told:
        component_class(path)
    assert path in str(told.value)


def test_the_documented_example_answers_what_the_page_says(tmp_path: Path) -> None:
    page = (ROOT / "docs/seldon.md").read_text(encoding="utf-8")
    asked = re.search(r"-d '(\{.*\})' localhost", page)
    said = re.search(r'^    (\{"data".*\})$', page, re.MULTILINE)
    assert asked is not None
    assert said is not None
    server = Server(tmp_path)
    server.cwd = ROOT / "docs/examples"
    server.graph = server.cwd / "mean.yaml"
    with serving(server):
        answer = server.post(asked[1].encode())
    assert json.loads(answer.body) == json.loads(said[1])
