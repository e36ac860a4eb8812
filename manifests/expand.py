"""Prints rendered manifests with a Pod for each componentSpec, so that checkers look into a SeldonDeployment as well.

kubectl kustomize manifests/overlays/kind | python manifests/expand.py | kubernetes-validate --strict -
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import yaml


def pods(deployment: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the pods of a SeldonDeployment as the operator makes them, as far as security and validity go."""
    metadata = deployment["metadata"]
    for predictor in deployment["spec"]["predictors"]:
        for index, component in enumerate(predictor["componentSpecs"]):
            name = f"{metadata['name']}-{predictor['name']}-{index}"
            labels = {"seldon-deployment-id": metadata["name"], **component["metadata"].get("labels", {})}
            annotations = component["metadata"].get("annotations", {})
            yield {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "namespace": metadata["namespace"], "labels": labels, "annotations": annotations},
                # The operator's default for the pod, see DEFAULT_USER_ID in its Deployment.
                "spec": {"securityContext": {"runAsUser": 8888}, **component["spec"]},
            }


def main() -> None:
    documents = [each for each in yaml.safe_load_all(sys.stdin) if each]
    for document in documents:
        if document["kind"] == "SeldonDeployment":
            documents.extend(pods(document))
    yaml.safe_dump_all(documents, sys.stdout)


if __name__ == "__main__":
    main()
