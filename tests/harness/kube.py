"""The cluster that `make kind` made, as tests see it: its objects by kubectl, its answers through the ingress."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

PREDICTIONS = "/api/v1.0/predictions"
NAMESPACE = "contender"
ENGINE = "seldon-app=campaigns-main"
UNITS = "seldon-deployment-id=campaigns"


class Kube:
    """One kind cluster. `name` is kind's; requests go to its ingress."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.context = f"kind-{name}"
        port = run(["docker", "port", f"{name}-control-plane", "80/tcp"]).stdout.split()[0].rpartition(":")[2]
        self.host, self.port = "127.0.0.1", int(port)
        self.url = f"http://{self.host}:{self.port}"

    def kubectl(self, *arguments: str, stdin: str | None = None, namespace: str = NAMESPACE, check: bool = True) -> str:
        """Run kubectl and return what it printed; fail with its own words if it fails and `check` is on."""
        done = run(["kubectl", "--context", self.context, "--namespace", namespace, *arguments], stdin=stdin, check=check)
        return done.stdout

    def get(self, *what: str, namespace: str = NAMESPACE) -> Any:
        return json.loads(self.kubectl("get", *what, "-o", "json", namespace=namespace))

    def pods(self, selector: str, namespace: str = NAMESPACE) -> list[dict[str, Any]]:
        """Return the pods that are not on their way out."""
        found: list[dict[str, Any]] = self.get("pods", "-l", selector, namespace=namespace)["items"]
        return [each for each in found if "deletionTimestamp" not in each["metadata"]]

    def ready_pods(self, selector: str) -> list[str]:
        """Return the names of the pods that are ready by their own word."""
        return [
            each["metadata"]["name"]
            for each in self.pods(selector)
            if any(c["type"] == "Ready" and c["status"] == "True" for c in each["status"].get("conditions", []))
        ]

    def deployment(self, role: str) -> str:
        """Return the name of a Deployment that the operator made: of the engine, champion or challenger."""
        names = [each["metadata"]["name"] for each in self.get("deployments", "-l", UNITS)["items"]]
        (found,) = [name for name in names if name.endswith(f"-{role}")]
        return str(found)

    def rolled_out(self, role: str, timeout_s: int = 180) -> None:
        self.kubectl("rollout", "status", f"deployment/{self.deployment(role)}", f"--timeout={timeout_s}s")

    def settled(self, timeout_s: int = 240) -> None:
        """Wait until every Deployment has as many ready pods as it wants, and no pod is on its way out."""

        def quiet() -> bool:
            wanted = self.get("deployments", "-l", UNITS)["items"]
            done = all(
                each["status"].get("observedGeneration") == each["metadata"]["generation"]
                and each["spec"]["replicas"]
                == each["status"].get("readyReplicas", 0)
                == each["status"].get("updatedReplicas", 0)
                for each in wanted
            )
            pods = self.get("pods", "-l", UNITS)["items"]
            return done and len(pods) == sum(each["spec"]["replicas"] for each in wanted)

        wait_until(quiet, timeout_s, "the deployment settled")

    def metrics(self, pod: str, port: int = 8000) -> str:
        """Return a pod's own metrics, through the API server."""
        return self.kubectl("get", "--raw", f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}:{port}/proxy/prometheus")

    def metric(self, pod: str, series: str) -> float:
        """Return the sum of the series whose line begins so."""
        lines = self.metrics(pod).splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(series))

    def sql(self, query: str) -> list[list[str]]:
        """Return the rows of a query in the ledger's database."""
        text = self.kubectl(
            "exec", "-i", "postgres-0", "-c", "postgres", "--",
            "psql", "-U", "contender", "-d", "contender", "-X", "-A", "-t", "-q", "-F", "\t", "-v", "ON_ERROR_STOP=1",
            stdin=query,
        )  # fmt: skip
        return [line.split("\t") for line in text.splitlines()]

    def post(self, message: object, path: str = PREDICTIONS) -> tuple[int, bytes]:
        return self.request("POST", path, json.dumps(message).encode())

    def request(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=30)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def share(self, text: str, timeout_s: int = 30) -> int:
        """Set the challenger's share as a person would, wait for every engine, and return the epoch."""
        patch = json.dumps({"spec": {"share": text}})
        self.kubectl("patch", "experiment", "campaigns", "--type", "merge", "-p", patch)
        return self.epoch_everywhere(timeout_s)

    def epoch_everywhere(self, timeout_s: int = 30) -> int:
        """Wait until every ready engine uses the Experiment's epoch, by metric."""
        resource = self.get("experiment", "campaigns")
        epoch = int(resource["metadata"]["generation"]) + int(resource["spec"].get("firstEpoch", 1)) - 1

        def taken() -> bool:
            return all(self.metric(pod, "contender_epoch{") == epoch for pod in self.ready_pods(ENGINE))

        wait_until(taken, timeout_s, f"epoch {epoch} taken over by every engine")
        return epoch


def run(command: list[str], stdin: str | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=600, check=False)
    if check and done.returncode:
        pytest.fail(f"{' '.join(command)}: {done.stderr or done.stdout}")
    return done


def wait_until(true: Callable[[], bool], timeout_s: float, what: str, pause_s: float = 0.5) -> None:
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end, f"not within {timeout_s:g} s: {what}"
        time.sleep(pause_s)


def cluster_name() -> str:
    return os.environ.get("KIND_NAME", "contender")


def missing() -> str | None:
    """Return why there is no cluster to test, None if there is one."""
    for tool in ("docker", "kind", "kubectl"):
        if shutil.which(tool) is None:
            return f"{tool} is missing"
    if run(["docker", "info"], check=False).returncode:
        return "docker's daemon does not answer"
    name = cluster_name()
    if name not in run(["kind", "get", "clusters"], check=False).stdout.split():
        return f"there is no kind cluster {name}; `make kind` makes it"
    return None


@contextmanager
def deleted_after(kube: Kube, *what: str) -> Iterator[None]:
    """Delete objects that a test makes, whatever becomes of it."""
    try:
        yield
    finally:
        kube.kubectl("delete", *what, "--ignore-not-found", "--wait=true")
