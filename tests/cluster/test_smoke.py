"""What a user of the cluster does: ask through the ingress, move the share, look who may do so."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.kube import ENGINE, NAMESPACE, UNITS, Kube, deleted_after, wait_until
from harness.server import ROOT, Server
from router.assignment import bucket
from serving.bundle import load_manifest
from training.population import population

NAMES, ROWS = population(load_manifest(ROOT / "models/champion/campaigns"), 300, seed=5)
CUSTOMERS = 20_000
PIN = "0" * 64


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, kube: Kube) -> Iterator[Server]:
    """The same graph in one process, under the salt and share of the cluster's epoch."""
    server = Server(tmp_path_factory.mktemp("local"))
    spec = kube.get("experiment", "campaigns")["spec"]
    experiment = server.graph.parent / "experiment.yaml"
    text = experiment.read_text().replace("spec:\n", f'spec:\n  share: "{spec["share"]}"\n')
    experiment.write_text(text)
    try:
        server.start()
        yield server
    finally:
        if server.process is not None:
            server.kill_group()


def rows_of(body: bytes) -> list[dict[str, Any]]:
    data = json.loads(body)["data"]
    return [dict(zip(data["names"], row, strict=True)) for row in data["ndarray"]]


def test_everything_is_ready_and_runs_with_few_rights(kube: Kube) -> None:
    kube.settled()
    pods = kube.pods(UNITS)
    assert len(pods) == 5, [each["metadata"]["name"] for each in pods]
    for pod in pods:
        assert all(each["ready"] for each in pod["status"]["containerStatuses"])
        for container in pod["spec"]["containers"]:
            security = container["securityContext"]
            assert (security["readOnlyRootFilesystem"], security["runAsUser"]) == (True, 8888)
            assert not container["image"].endswith(":latest")
    assert kube.get("namespace", NAMESPACE)["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_the_operator_is_at_rest(kube: Kube) -> None:
    """A default that is left out of a list makes it update a Deployment for ever, at the API server's cost."""

    def generations() -> dict[str, int]:
        return {each["metadata"]["name"]: each["metadata"]["generation"] for each in kube.get("deployments")["items"]}

    before = generations()
    time.sleep(5)
    assert generations() == before


def test_answers_through_the_ingress_are_the_local_ones(kube: Kube, local: Server) -> None:
    found, expected = [], []
    for start in range(0, len(ROWS), 50):
        message = {"data": {"names": NAMES, "ndarray": ROWS[start : start + 50]}}
        status, body = kube.post(message)
        assert status == 200, body
        found += rows_of(body)
        expected += rows_of(local.post(message).body)
    assert [row["device_id"] for row in found] == [row[0] for row in ROWS]
    assert {row["arm"] for row in found} == {"champion", "challenger"}
    for there, here in zip(found, expected, strict=True):
        for name in ("device_id", "arm", "gender_decile", "gender", "age_band", "campaigns"):
            assert there[name] == here[name], (name, there, here)
        assert there["gender_score"] == pytest.approx(here["gender_score"], abs=1e-5)
        assert there["age"] == (None if here["age"] is None else pytest.approx(here["age"], abs=1e-4))


def test_bad_input_is_refused_with_its_field_and_other_paths_are_not_public(kube: Kube) -> None:
    status, body = kube.post({"data": {"names": ["device_id", "phone_brand", "device_model"], "ndarray": [[1.5, "a", "b"]]}})
    assert status == 400
    assert "device_id" in json.loads(body)["status"]["info"]
    for path in ("/api/v1.0/feedback", "/prometheus", "/ready", "/api/v1.0/predictions/x", "/"):
        assert kube.post({}, path)[0] == 404, path
    assert kube.request("GET", "/api/v1.0/metadata")[0] == 200


def test_customers_are_split_exactly_by_every_replica(kube: Kube) -> None:
    resource = kube.get("experiment", "campaigns")
    to = round(float(resource["spec"]["share"].rstrip("%")) * 100)
    engines = kube.ready_pods(ENGINE)
    assert len(engines) == 2
    before = {pod: kube.metric(pod, "contender_rows_total{") for pod in engines}
    wrong: Counter[str] = Counter()
    challenged = 0
    for start in range(0, CUSTOMERS, 200):
        keys = [f"smoke-{number}" for number in range(start, start + 200)]
        rows = [[key, "小米", "MI 2"] for key in keys]
        status, body = kube.post({"data": {"names": ["device_id", "phone_brand", "device_model"], "ndarray": rows}})
        assert status == 200, body
        for key, row in zip(keys, rows_of(body), strict=True):
            due = "challenger" if bucket(resource["spec"]["salt"], key) < to else "champion"
            challenged += due == "challenger"
            wrong[f"{due} got {row['arm']}"] += row["arm"] != due
    assert +wrong == Counter()
    assert abs(challenged / CUSTOMERS - to / 10_000) < 0.01
    answered = {pod: kube.metric(pod, "contender_rows_total{") - count for pod, count in before.items()}
    assert sum(answered.values()) >= CUSTOMERS
    assert all(answered.values()), f"one replica alone answered: {answered}"


def test_a_changed_share_reaches_every_engine_and_restarts_nothing(kube: Kube) -> None:
    def running() -> dict[str, list[tuple[str, int]]]:
        return {
            pod["metadata"]["name"]: [(c["containerID"], c["restartCount"]) for c in pod["status"]["containerStatuses"]]
            for pod in kube.pods(UNITS)
        }

    def arm(key: str) -> Any:
        row = [[key, "小米", "MI 2"]]
        status, body = kube.post({"data": {"names": ["device_id", "phone_brand", "device_model"], "ndarray": row}})
        assert status == 200, body
        return rows_of(body)[0]["arm"]

    spec = kube.get("experiment", "campaigns")["spec"]
    key = next(key for key in map(str, range(10_000)) if 2000 <= bucket(spec["salt"], key) < 2500)
    before = running()
    epoch = kube.share("25%")
    assert arm(key) == "challenger"
    assert kube.share("20%") == epoch + 1
    assert arm(key) == "champion"
    kube.kubectl("apply", "-f", str(ROOT / "manifests/base/experiment.yaml"))
    assert kube.get("experiment", "campaigns")["spec"]["share"] == "20%"
    kube.share(spec["share"])
    assert running() == before


def test_the_ledger_has_every_row_under_a_pseudonym_and_every_epoch(kube: Kube) -> None:
    puid = "smoke-ledger-1"
    rows = [[f"known-{number}", "小米", "MI 2"] for number in range(10)]
    message = {"data": {"names": ["device_id", "phone_brand", "device_model"], "ndarray": rows}, "meta": {"puid": puid}}
    assert kube.post(message)[0] == 200
    query = f"SELECT row, customer FROM exposures WHERE puid = '{puid}'"
    wait_until(lambda: len({row[0] for row in kube.sql(query)}) == 10, 30, "ten exposures in PostgreSQL")
    assert all(len(customer) == 64 for _, customer in kube.sql(query))
    epoch = int(kube.get("experiment", "campaigns")["metadata"]["generation"])
    wait_until(lambda: [str(epoch)] in kube.sql("SELECT epoch FROM epochs WHERE test = 'campaigns'"), 30, "the epoch's record")


def test_the_api_server_refuses_what_no_engine_could_use(kube: Kube) -> None:
    patch = json.dumps({"spec": {"share": "120%"}})
    done = kube.kubectl("patch", "experiment", "campaigns", "--type", "merge", "-p", patch, check=False)
    assert done == ""
    assert kube.get("experiment", "campaigns")["spec"]["share"] != "120%"


def test_a_pod_without_rights_can_neither_move_the_share_nor_read_it(kube: Kube, tmp_path: Path) -> None:
    """Of all accounts here only the engine's may read Experiments, none may write them, and only the engine has a token."""
    for account, may_read in (("contender-engine", "yes"), ("contender-unit", "no"), ("default", "no")):
        who = f"--as=system:serviceaccount:{NAMESPACE}:{account}"
        for verb, right in (("get", may_read), ("watch", may_read), ("patch", "no"), ("update", "no"), ("delete", "no")):
            said = kube.kubectl("auth", "can-i", verb, "experiments/campaigns", who, check=False)
            assert said.strip() == right, (account, verb)
        assert kube.kubectl("auth", "can-i", "get", "secrets", who, check=False).strip() == "no"
    token = "/var/run/secrets/kubernetes.io/serviceaccount/token"
    engine = kube.ready_pods(ENGINE)[0]
    for container, has in (("seldon-container-engine", True), ("campaigns", False), ("router", False)):
        listed = kube.kubectl("exec", engine, "-c", container, "--", "ls", token, check=False)
        assert (token in listed) == has, container
    champion = kube.ready_pods("contender.dev/role=champion")[0]
    assert token not in kube.kubectl("exec", champion, "--", "ls", token, check=False)


def test_network_policies_hold_where_the_cluster_enforces_them(kube: Kube) -> None:
    """A probe that must not get through tells whether this cluster enforces policies at all."""
    overrides = {
        "spec": {
            "securityContext": {"runAsNonRoot": True, "runAsUser": 8888, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {
                    "name": "probe",
                    "image": "contender-unit:0.1.0",
                    "command": ["sleep", "600"],
                    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                }
            ],
        }
    }
    with deleted_after(kube, "pod", "probe", "--grace-period=0", "--force"):
        kube.kubectl("run", "probe", "--image=contender-unit:0.1.0", f"--overrides={json.dumps(overrides)}")
        kube.kubectl("wait", "--for=condition=Ready", "pod/probe", "--timeout=60s")
        reach = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 3); print('reached')"
        said = kube.kubectl("exec", "probe", "--", "python", "-c", reach, "postgres", "5432", check=False)
        if "reached" in said:
            pytest.skip("this cluster's network plug-in accepts policies without enforcing them")
        assert "reached" not in kube.kubectl(
            "exec", "probe", "--", "python", "-c", reach, "campaigns-main", "8000", check=False
        )
