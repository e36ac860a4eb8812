"""The API of a Kubernetes cluster, as far as a test needs it: one Experiment is read, changed and watched, pods are asked.

This is the one module that imports `kubernetes`, which takes half a second: only making a Cluster does so.
Invariant: every call ends within a bound, a watch that hears nothing included, so a dead connection is found in seconds.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from router.errors import ChangeConflict, ClusterError
from router.resource import GROUP, MANAGER, PLURAL, VERSION

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")

CONNECT_SECONDS = 3.0
READ_SECONDS = 10.0
SCRAPE_SECONDS = 3.0
WATCH_SECONDS = 6
"""After this the API server ends a watch, after a bookmark, and the next one begins where it ended. The bound on a watch's
silence follows from it, and with that how soon a dead connection is found; a replica costs ten small requests a minute."""
SILENCE_SECONDS = WATCH_SECONDS + 2.0

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0
"""Seconds between attempts after a failure, doubled each time."""

LONGEST_MESSAGE = 1000
"""Characters of what the API server says; it may repeat a whole object."""

SCRAPE_PORT, SCRAPE_PATH = "8000", "/prometheus"
"""Where an engine's metrics are, unless its pod's annotations prometheus.io/port and /path say otherwise."""


class Listener(Protocol):
    """Who is told what a watch sees."""

    def shown(self, document: Mapping[str, Any] | None) -> None:
        """The Experiment as it is now; None: there is none."""

    def confirmed(self) -> None:
        """The API server stands by what was shown last."""

    def lost(self, reason: str) -> None:
        """The API server can't be asked; it is tried again after a pause."""


class Pod(NamedTuple):
    """A pod that is ready, and where its metrics are."""

    name: str
    port: str
    path: str


class Gone(Exception):
    """The API server no longer knows what happened since the version that a watch began with."""


class Cluster:
    """One namespace, by the service account within a pod, else by the user's kubeconfig."""

    def __init__(self, *, context: str | None = None, namespace: str | None = None, user: str = "") -> None:
        """`user` stands in the field manager of every change. Raises ClusterError if there is no configuration."""
        from kubernetes import config
        from kubernetes.client import Configuration
        from kubernetes.client.api_client import ApiClient

        settings = Configuration()
        try:
            if context is None and "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ:
                config.load_incluster_config(client_configuration=settings)
                self.context, own = "this cluster", (SERVICE_ACCOUNT / "namespace").read_text(encoding="utf-8").strip()
            else:
                # The library looks at the variable once, when it is imported.
                file = os.environ.get("KUBECONFIG")
                contexts, active = config.list_kube_config_contexts(config_file=file)
                chosen = active if context is None else next((each for each in contexts if each["name"] == context), None)
                if chosen is None:
                    known = ", ".join(each["name"] for each in contexts)
                    raise ClusterError(f"no context {context!r} in the kubeconfig; known: {known}")
                config.load_kube_config(config_file=file, context=chosen["name"], client_configuration=settings)
                self.context, own = chosen["name"], chosen["context"].get("namespace") or "default"
        except (config.ConfigException, OSError) as error:
            raise ClusterError(f"no cluster is configured: {_line(error)}; set KUBECONFIG, or run in a pod") from None
        # Retries are ours: the library's would multiply every bound above.
        settings.retries = False
        self.namespace = namespace or own
        self._manager = f"{MANAGER}{user}"[:128]
        self._client = ApiClient(settings)

    def close(self) -> None:
        """Let go of the connections."""
        self._client.rest_client.pool_manager.clear()

    def experiments(self, name: str | None = None) -> tuple[list[dict[str, Any]], str]:
        """Return the namespace's Experiments, or the one of this name, and the version of the list. Raises ClusterError."""
        with _asking(f"experiments in namespace {self.namespace}"):
            found = json.loads(self._call("GET", self._experiments, _chosen(name)).data)
        return found["items"], found["metadata"]["resourceVersion"]

    def change(self, name: str, spec: Mapping[str, Any], version: str) -> dict[str, Any]:
        """Change fields of the spec (None takes one out), and return the Experiment as it is then.

        Raises ChangeConflict if its resourceVersion is no longer `version`, ClusterError with the API server's sentence if
        the content is refused.
        """
        body = {"metadata": {"resourceVersion": version}, "spec": dict(spec)}
        query = {"fieldManager": self._manager, "fieldValidation": "Strict"}
        with _asking(f"experiment {self.namespace}/{name}"):
            changed: dict[str, Any] = json.loads(self._call("PATCH", f"{self._experiments}/{name}", query, body).data)
        return changed

    def ready_pods(self, selector: str) -> list[Pod]:
        """Return the pods with these labels that are ready and not about to end, by name. Raises ClusterError."""
        with _asking(f"pods in namespace {self.namespace}"):
            pods = json.loads(self._call("GET", self._pods, {"labelSelector": selector}).data)["items"]
        ready = []
        for pod in pods:
            conditions = {each["type"]: each["status"] for each in pod["status"].get("conditions", ())}
            if conditions.get("Ready") == "True" and "deletionTimestamp" not in pod["metadata"]:
                told = pod["metadata"].get("annotations", {})
                port, path = told.get("prometheus.io/port", SCRAPE_PORT), told.get("prometheus.io/path", SCRAPE_PATH)
                ready.append(Pod(pod["metadata"]["name"], port, path))
        return sorted(ready)

    def scrape(self, pod: Pod) -> str:
        """Return a pod's metrics, fetched by the API server's proxy: from wherever the API is reached. Raises ClusterError."""
        with _asking(f"pods/proxy of {self.namespace}/{pod.name}"):
            path = f"{self._pods}/{pod.name}:{pod.port}/proxy/{pod.path.lstrip('/')}"
            text: str = self._call("GET", path, seconds=SCRAPE_SECONDS).data.decode()
        return text

    def watch(self, name: str, version: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield each event on one Experiment after `version`: its type (ADDED, MODIFIED, DELETED, BOOKMARK) and its object.

        Ends after WATCH_SECONDS. Raises Gone, or ClusterError if the connection breaks or is silent for too long.
        """
        query = {
            **_chosen(name),
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(WATCH_SECONDS),
        }
        with _asking(f"experiment {self.namespace}/{name}"):
            answer = self._call("GET", self._experiments, query, seconds=SILENCE_SECONDS, read=False).response
            try:
                for line in _lines(answer.stream(amt=None, decode_content=False)):
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        status = event["object"]
                        if status.get("code") == 410:
                            raise Gone
                        raise ClusterError(f"experiment {self.namespace}/{name}: {status.get('message', status)}")
                    yield event["type"], event["object"]
            finally:
                # Of no use to anybody else: an unread rest may be under way.
                answer.close()

    @property
    def _experiments(self) -> str:
        return f"/apis/{GROUP}/{VERSION}/namespaces/{self.namespace}/{PLURAL}"

    @property
    def _pods(self) -> str:
        return f"/api/v1/namespaces/{self.namespace}/pods"

    def _call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        *,
        seconds: float = READ_SECONDS,
        read: bool = True,
    ) -> Any:
        """Return the client's answer, read whole unless `read` is off.

        The generic call, because the client's class for pods alone takes 70 MB of memory and seconds to import.
        """
        from kubernetes.client.exceptions import ApiException

        headers = {"Accept": "*/*"}
        if body is not None:
            headers["Content-Type"] = "application/merge-patch+json"
        request = self._client.param_serialize(
            method,
            path,
            query_params=list((query or {}).items()),
            header_params=headers,
            body=body,
            auth_settings=["BearerToken"],
        )
        answer = self._client.call_api(*request, _request_timeout=(CONNECT_SECONDS, seconds))
        if not 200 <= answer.status < 300:
            answer.read()
            raise ApiException.from_response(http_resp=answer, body=answer.data.decode(errors="replace"), data=None)
        if read:
            answer.read()
        return answer


def follow(name: str, connect: Callable[[], Cluster], listener: Listener, stopping: threading.Event) -> None:
    """Tell `listener` of one Experiment until `stopping` is set: list it, then watch from there on.

    A watch that ends is taken up where it ended; after 410 Gone the Experiment is listed anew; after a failure everything
    is tried again, with pauses that grow.
    """
    cluster: Cluster | None = None
    version, failures = "", 0
    while not stopping.is_set():
        begun, heard = time.monotonic(), False
        try:
            cluster = cluster or connect()
            if not version:
                found, version = cluster.experiments(name)
                listener.shown(found[0] if found else None)
            for kind, document in cluster.watch(name, version):
                version, heard = document["metadata"]["resourceVersion"], True
                if kind == "BOOKMARK":
                    listener.confirmed()
                else:
                    listener.shown(None if kind == "DELETED" else document)
            # An API server that ends every watch at once is about to stop.
            if heard or time.monotonic() - begun > WATCH_SECONDS / 2:
                failures = 0
                listener.confirmed()
                continue
        except Gone:
            version = ""
        except (ClusterError, OSError) as error:
            listener.lost(str(error))
            if cluster is not None:
                # The next one reads the configuration again: tokens and certificates are renewed.
                cluster.close()
                cluster = None
            if failures:
                # A short outage is bridged by the watch; after more, a list says whether it is still the same Experiment.
                version = ""
        failures += 1
        stopping.wait(pause(failures))


def pause(failures: int, chance: Callable[[], float] = random.random) -> float:
    """Return the seconds to wait after so many failures in a row: doubled each time, and spread, as replicas fail together."""
    return min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(failures - 1, 16)) * (0.5 + chance() / 2)


@contextmanager
def _asking(what: str) -> Iterator[None]:
    """Turn whatever a call to the API may raise into a ClusterError of one line that names `what`."""
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ApiException as error:
        if error.status == 410:
            raise Gone from None
        message = _message(error)
        if error.status == 409:
            raise ChangeConflict(f"{what}: {message}") from None
        raise ClusterError(f"{what}: {message}") from None
    except (HTTPError, OSError, json.JSONDecodeError) as error:
        raise ClusterError(f"{what}: the API server can't be asked: {_line(error)}") from None


def _chosen(name: str | None) -> dict[str, str]:
    """Return the query for one Experiment: rights on a single name allow a list of nothing else."""
    return {} if name is None else {"fieldSelector": f"metadata.name={name}"}


def _message(error: Any) -> str:
    """Return the API server's own sentence."""
    try:
        said = _line(json.loads(error.body)["message"])
    except (TypeError, KeyError, json.JSONDecodeError):
        return f"{error.status} {error.reason}"
    return said if len(said) <= LONGEST_MESSAGE else f"{said[: LONGEST_MESSAGE // 2]} … {said[-LONGEST_MESSAGE // 2 :]}"


def _line(error: object) -> str:
    return " ".join(str(error).split())


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield each line once it is whole."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from filter(None, lines)
