"""The series of Seldon's stock executor, so that dashboards made for it show this engine too.

Invariant: names, labels, label values and buckets are those that executor 1.17.1 was seen to expose. Its summaries (quantiles
by time window) are left out: quantiles can't be added up over processes.
"""

from __future__ import annotations

from serving.graph import Predictor

SERVER = "seldon_api_executor_server_requests_seconds"
CLIENT = "seldon_api_executor_client_requests_seconds"
SERVER_LABELS = ("deployment_name", "predictor_name", "predictor_version", "service", "method", "code")
CLIENT_LABELS = (*SERVER_LABELS, "model_name", "model_image", "model_version")
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)

POST_SERVICES = ("predictions", "feedback")
GET_METHODS = ("metadata", "health/status")


class StockLabels:
    """Label values for one predictor. The stock executor takes its version from the annotation `version`."""

    def __init__(self, deployment: str, predictor: Predictor) -> None:
        self._predictor = deployment, predictor.name, str(predictor.annotations.get("version", ""))
        self._models = {node.name: _image(predictor.images.get(node.name, "")) for node in predictor.graph.walk()}

    def server(self, route: str, status: int) -> tuple[str, ...] | None:
        """Return the labels of a request to this route's path; None where the stock executor doesn't count it."""
        parts = route.split("/")
        if parts[1:2] != ["api"] or status == 405:
            return None
        service = "status" if parts[3] == "health" else parts[3]
        return *self._predictor, service, "post" if service in POST_SERVICES else "get", str(status)

    def client(self, node: str, method: str, status: int) -> tuple[str, ...]:
        """Return the labels of a call of a node's method, such as "predict"."""
        verb = "get" if method in GET_METHODS else "post"
        return *self._predictor, f"/{method}", verb, str(status), node, *self._models.get(node, ("", ""))


def _image(name: str) -> tuple[str, str]:
    """Split at the first two colons, as the stock executor does: a registry's port is taken for the version."""
    parts = name.split(":")
    return parts[0], parts[1] if len(parts) > 1 else ""
