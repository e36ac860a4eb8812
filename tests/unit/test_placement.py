"""Where the operator puts containers. The addresses were read off SeldonDeployments that the real operator had completed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from serving.graph import load_deployment
from serving.placement import behind_http, service_name

ENGINE = {"name": "seldon-container-engine", "image": "engine:1"}


def deployment(tmp_path: Path, *components: list[dict[str, Any]]) -> Path:
    document = {
        "apiVersion": "machinelearning.seldon.io/v1",
        "kind": "SeldonDeployment",
        "metadata": {"name": "d"},
        "spec": {
            "predictors": [
                {
                    "name": "p",
                    "graph": {
                        "name": "t",
                        "type": "TRANSFORMER",
                        "children": [{"name": "m", "type": "MODEL"}],
                    },
                    "componentSpecs": [{"spec": {"containers": containers}} for containers in components],
                }
            ]
        },
    }
    path = tmp_path / "deployment.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def placed(path: Path) -> dict[str, tuple[str, int]]:
    graph = behind_http(load_deployment(path)).graph
    return {node.name: (node.endpoint.host, node.endpoint.port) for node in graph.walk() if node.endpoint is not None}


def test_the_first_pod_is_the_engine_s_own_and_the_others_have_services(tmp_path: Path) -> None:
    path = deployment(tmp_path, [{"name": "t", "image": "u:1"}], [{"name": "m", "image": "u:1"}])
    assert placed(path) == {"t": ("localhost", 9000), "m": ("d-p-m", 9001)}


def test_an_engine_of_ours_shifts_the_ports_and_a_named_port_stays(tmp_path: Path) -> None:
    named = {
        "name": "m",
        "image": "u:1",
        "ports": [{"name": "grpc", "containerPort": 5}, {"name": "http", "containerPort": 9100}],
    }
    path = deployment(tmp_path, [ENGINE, {"name": "t", "image": "u:1"}], [named])
    assert placed(path) == {"t": ("localhost", 9001), "m": ("d-p-m", 9100)}


def test_names_too_long_for_a_service_are_hashed_as_the_operator_does() -> None:
    assert service_name("d", "p", "c" * 59) == "d-p-" + "c" * 59
    assert service_name("d", "p", "c" * 60) == "seldon-ceaab22922cf95b5d04b36a5b5657c5a"
