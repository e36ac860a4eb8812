"""Where Seldon's operator puts the containers of a deployment, so that an engine of our own finds them without being told.

Invariant: a node that has a container is behind HTTP afterwards, at the address that the operator gives the container.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping

from serving.graph import Deployment, Endpoint, GraphNode, Predictor

FIRST_PORT = 9000
"""Of the first container; each further one, the engine's own included, has the next."""

LONGEST_NAME = 63
"""Characters of a Service's name in Kubernetes."""


def behind_http(deployment: Deployment) -> Deployment:
    """Return the deployment with an endpoint on every node that has a container, as the operator's defaults would set it.

    Containers of the first componentSpec share the engine's pod; the others are behind a Service of their own, in the
    engine's namespace. Source: operator/apis/machinelearning.seldon.io/v1/defaults.go of Seldon Core 1.17.1.
    """
    placed = []
    for predictor in deployment.predictors:
        graph = _placed(predictor.graph, _endpoints(deployment.name, predictor))
        placed.append(dataclasses.replace(predictor, graph=graph))
    return dataclasses.replace(deployment, predictors=tuple(placed))


def service_name(deployment: str, predictor: str, container: str) -> str:
    """Return the name of a container's Service; a hash of it where Kubernetes would find it too long."""
    name = f"{deployment}-{predictor}-{container}"
    if len(name) <= LONGEST_NAME:
        return name
    return f"seldon-{hashlib.md5(name.encode(), usedforsecurity=False).hexdigest()}"


def _endpoints(deployment: str, predictor: Predictor) -> dict[str, Endpoint]:
    found = {}
    for number, container in enumerate(predictor.containers):
        port = container.http_port or FIRST_PORT + number
        host = "localhost" if container.component == 0 else service_name(deployment, predictor.name, container.name)
        found[container.name] = Endpoint(host, port, port)
    return found


def _placed(node: GraphNode, endpoints: Mapping[str, Endpoint]) -> GraphNode:
    children = tuple([_placed(child, endpoints) for child in node.children])
    return dataclasses.replace(node, children=children, endpoint=endpoints.get(node.name, node.endpoint))
