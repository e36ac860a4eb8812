"""The other placements of the same graph answer the same, and what each of them loses is shown, not only said."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from harness.kube import ENGINE, PREDICTIONS, UNITS, Kube, run, wait_until
from harness.server import ROOT
from router.assignment import bucket
from serving.bundle import load_manifest
from training.population import population

pytestmark = [pytest.mark.drill, pytest.mark.timeout(900)]

NAMES, ROWS = population(load_manifest(ROOT / "models/champion/campaigns"), 120, seed=11)
EXECUTOR = "EXECUTOR_CONTAINER_IMAGE_AND_VERSION"
STOCK_IMAGE, OUR_IMAGE = "seldonio/seldon-core-executor:1.17.1", "contender-executor:0.1.0"
PLATFORM = "contender-platform:0.1.0"
ENGINES = {
    "kind": ("seldon-container-engine", PLATFORM),
    "fused": ("contender", PLATFORM),
    "executor-swap": ("seldon-container-engine", OUR_IMAGE),
    "stock": ("seldon-container-engine", STOCK_IMAGE),
}
COLUMNS = ("device_id", "gender_decile", "gender", "age_band", "campaigns")

RUN = uuid.uuid4().hex[:8]
FUSED, SWAP, STOCK = (f"{name}-{RUN}" for name in ("fused", "swap", "stock"))
"""Request ids of this run: the ledger keeps those of former ones."""

Row = dict[str, Any]


def rows_of(kube: Kube, rows: list[list[Any]], puid: str = "") -> list[Row]:
    message: Row = {"data": {"names": NAMES, "ndarray": rows}} | ({"meta": {"puid": puid}} if puid else {})
    status, body = kube.post(message)
    assert status == 200, body
    data = json.loads(body)["data"]
    return [dict(zip(data["names"], row, strict=True)) for row in data["ndarray"]]


def ask_each(kube: Kube) -> list[Row]:
    """Return the answer to each row, asked alone: under Seldon's executor a request has one arm."""
    return [rows_of(kube, [row])[0] for row in ROWS]


@pytest.fixture(scope="module")
def expected(kube: Kube) -> list[Row]:
    """What the base answers. Half of the customers have the challenger, so that both arms are compared."""
    place(kube, "kind")
    kube.share("50%")
    return ask_each(kube)


@pytest.fixture(scope="module", autouse=True)
def base_again(kube: Kube) -> Iterator[None]:
    yield
    place(kube, "kind")
    kube.share("10%")


@contextmanager
def executor_image(kube: Kube, image: str) -> Iterator[None]:
    """Let the operator give every graph this engine, for a while."""
    try:
        set_executor(kube, image)
        yield
    finally:
        set_executor(kube, STOCK_IMAGE)


def set_executor(kube: Kube, image: str) -> None:
    operator = "deployment/seldon-controller-manager"
    kube.kubectl("set", "env", operator, f"{EXECUTOR}={image}", namespace="seldon-system")
    kube.kubectl("rollout", "status", operator, "--timeout=120s", namespace="seldon-system")


def place(kube: Kube, overlay: str) -> None:
    """Apply an overlay, and wait until its pods alone are there and answer through the ingress."""
    kube.kubectl("delete", "job", "ledger-migrate", "--ignore-not-found")
    wait_until(lambda: applied(kube, overlay), 60, f"overlay {overlay} applied")
    wait_until(lambda: engine(kube) == ENGINES[overlay], 120, f"the operator has taken {overlay} over")
    kube.settled()
    wait_until(lambda: kube.post({"data": {"names": NAMES, "ndarray": ROWS[:1]}})[0] == 200, 60, "an answer")


def engine(kube: Kube) -> tuple[str, str] | None:
    """Return name and image of the container that takes the requests; None while the operator makes its Deployment anew."""
    for each in kube.get("deployments", "-l", UNITS)["items"]:
        for container in each["spec"]["template"]["spec"]["containers"]:
            if container["name"] in ("seldon-container-engine", "contender"):
                return container["name"], container["image"]
    return None


def applied(kube: Kube, overlay: str) -> bool:
    done = run(["kubectl", "--context", kube.context, "apply", "-k", str(ROOT / "manifests/overlays" / overlay)], check=False)
    assert not done.returncode or "webhook" in done.stderr, done.stderr
    return done.returncode == 0


def same(found: list[Row], expected: list[Row], *columns: str) -> None:
    for there, here in zip(found, expected, strict=True):
        assert {name: there[name] for name in columns} == {name: here[name] for name in columns}
        assert there["gender_score"] == pytest.approx(here["gender_score"], abs=1e-5)
        assert there["age"] == (None if here["age"] is None else pytest.approx(here["age"], abs=1e-4))


def recorded(kube: Kube, puid: str) -> list[list[str]]:
    return kube.sql(f"SELECT customer, assigned FROM exposures WHERE puid = '{puid}' ORDER BY row")


def test_the_fused_pod_answers_the_same_and_records_the_same(kube: Kube, expected: list[Row]) -> None:
    place(kube, "fused")
    assert len(kube.pods(ENGINE)) == 2
    same(rows_of(kube, ROWS, FUSED), expected, *COLUMNS, "arm")
    wait_until(lambda: len(recorded(kube, FUSED)) == len(ROWS), 30, "the exposures in PostgreSQL")
    assert all(len(customer) == 64 for customer, _ in recorded(kube, FUSED))


def test_our_engine_in_the_operator_s_container_answers_the_same(kube: Kube, expected: list[Row]) -> None:
    run(["docker", "build", "--quiet", "--target", "executor", "--tag", OUR_IMAGE, str(ROOT)])
    run(["kind", "load", "docker-image", "--name", kube.name, OUR_IMAGE])
    with executor_image(kube, OUR_IMAGE):
        place(kube, "executor-swap")
        kube.epoch_everywhere()
        same(rows_of(kube, ROWS, SWAP), expected, *COLUMNS, "arm")
        wait_until(lambda: len(recorded(kube, SWAP)) == len(ROWS), 30, "the exposures in PostgreSQL")
        # Lost: no Secret can be mounted, so customers are not under a pseudonym; and no volume holds the spool.
        assert [customer for customer, _ in recorded(kube, SWAP)] == [str(row[0]) for row in ROWS]
        engine = next(each for each in kube.pods(ENGINE)[0]["spec"]["containers"] if each["name"] == "seldon-container-engine")
        assert all(each["mountPath"] != "/var/lib/contender" for each in engine["volumeMounts"])


def test_seldon_s_own_executor_answers_each_row_alone_the_same(kube: Kube, expected: list[Row]) -> None:
    place(kube, "stock")
    salt = kube.get("experiment", "campaigns")["spec"]["salt"]
    found: list[Row] = []

    def follows() -> bool:
        found[:] = ask_each(kube)
        return [row["gender_score"] for row in found] == pytest.approx([row["gender_score"] for row in expected], abs=1e-5)

    wait_until(follows, 60, "the router unit has the epoch")
    same(found, expected, *COLUMNS)
    assert "arm" not in found[0]
    # Lost: a request has one arm, so customers of the challenger get the champion beside others.
    mixed = rows_of(kube, ROWS)
    challenged = [i for i, row in enumerate(ROWS) if bucket(salt, str(row[0])) < 5000]
    assert any(mixed[i]["gender_score"] != pytest.approx(expected[i]["gender_score"], abs=1e-5) for i in challenged)
    # Lost: no exposures.
    rows_of(kube, ROWS[:1], STOCK)
    assert recorded(kube, STOCK) == []


def test_under_seldon_s_own_executor_a_dead_challenger_fails_its_customers(kube: Kube) -> None:
    """Lost: no fallback. Under our engine the champion answers them (tests/cluster/test_drills.py)."""
    salt = kube.get("experiment", "campaigns")["spec"]["salt"]
    challenged = next(row for row in ROWS if bucket(salt, str(row[0])) < 5000)
    path = "/spec/predictors/0/componentSpecs/2/replicas"
    patch = json.dumps([{"op": "replace", "path": path, "value": 0}])
    kube.kubectl("patch", "sdep", "campaigns", "--type", "json", "-p", patch)
    wait_until(lambda: not kube.ready_pods("contender.dev/role=challenger"), 90, "the challenger is gone")
    message = {"data": {"names": NAMES, "ndarray": [challenged]}}
    wait_until(lambda: kube.post(message, PREDICTIONS)[0] >= 500, 30, "its customer gets an error")


def test_applying_the_base_again_changes_the_placement_and_not_the_share(kube: Kube) -> None:
    share = kube.get("experiment", "campaigns")["spec"]["share"]
    place(kube, "kind")
    assert kube.get("experiment", "campaigns")["spec"]["share"] == share == "50%"
    assert kube.get("namespace", "contender")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
