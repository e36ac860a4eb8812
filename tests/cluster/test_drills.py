"""What a cluster does to a service, done to this one under load: nothing that was asked for fails, nothing answered is lost."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from harness.kube import ENGINE, NAMESPACE, UNITS, Kube, run, wait_until
from harness.report import Report
from harness.traffic import Traffic, missing_rows

pytestmark = [pytest.mark.drill, pytest.mark.timeout(900)]

UNIT, PLATFORM = "contender-unit:0.1.0", "contender-platform:0.1.0"
ENGINE_SPEC, CHAMPION_SPEC, CHALLENGER_SPEC = range(3)
APISERVER = "/etc/kubernetes/manifests/kube-apiserver.yaml"
ASIDE = "/etc/kubernetes/kube-apiserver.yaml"
"""Where the node's kubelet does not look for it."""


@pytest.fixture(autouse=True)
def quiet(kube: Kube) -> Iterator[None]:
    """Each drill begins and ends with everything ready."""
    kube.settled()
    kube.epoch_everywhere()
    yield
    kube.settled()


def next_image(kube: Kube, image: str) -> str:
    """Return another image that differs by one label, loaded into the nodes."""
    following = f"{image}-drill"
    run(["docker", "build", "--quiet", "--tag", following, "-"], stdin=f"FROM {image}\nLABEL drill=1\n")
    run(["kind", "load", "docker-image", "--name", kube.name, following])
    return following


def patch_component(kube: Kube, index: int, path: str, value: object) -> None:
    """Change one field of a componentSpec, as a person would who rolls a model."""
    where = f"/spec/predictors/0/componentSpecs/{index}/{path}"
    kube.kubectl(
        "patch", "sdep", "campaigns", "--type", "json", "-p", json.dumps([{"op": "replace", "path": where, "value": value}])
    )


def generation(kube: Kube, role: str) -> int:
    return int(kube.get("deployment", kube.deployment(role))["metadata"]["generation"])


def roll(kube: Kube, index: int, role: str, image: str) -> None:
    """Give a model another image, and wait until the operator has rolled it out."""
    before = generation(kube, role)
    patch_component(kube, index, "spec/containers/0/image", image)
    wait_until(lambda: generation(kube, role) > before, 60, f"the operator rolls the {role}")
    kube.rolled_out(role)


def succeeded(kube: Kube, pod: str, count: int) -> None:
    """Wait until a pod is gone and another one is ready in its place."""
    wait_until(lambda: pod not in kube.ready_pods(UNITS), 60, f"{pod} is gone")
    wait_until(lambda: len(kube.ready_pods(UNITS)) == count, 120, f"the successor of {pod} is ready")


def nothing_lost(kube: Kube, report: Report, drill: str, traffic: Traffic, remark: str = "") -> None:
    """Compare the clients' list with the ledger, note the figures, and require zero and zero."""
    counts = traffic.counts
    missing = missing_rows(kube, counts)
    report.add(drill, counts, missing, remark)
    assert counts.rows > 0
    assert not counts.failed, counts.failed[:5]
    assert missing == 0


def arms(traffic: Traffic) -> Counter[str]:
    return Counter(arm for served in traffic.counts.answered.values() for arm in served)


def test_steady_traffic_alone(kube: Kube, report: Report) -> None:
    with Traffic(kube) as traffic:
        traffic.run_for(20)
    nothing_lost(kube, report, "nothing happens", traffic)
    report.measure()


def test_a_new_challenger_rolls_alone(kube: Kube, report: Report) -> None:
    image = next_image(kube, UNIT)
    engine, champion = generation(kube, "engine"), generation(kube, "champion")
    with Traffic(kube) as traffic:
        roll(kube, CHALLENGER_SPEC, "challenger", image)
        roll(kube, CHALLENGER_SPEC, "challenger", UNIT)
        traffic.run_for(5)
    assert (generation(kube, "engine"), generation(kube, "champion")) == (engine, champion)
    nothing_lost(kube, report, "challenger rolled to a new image and back", traffic)


def test_a_new_champion_rolls(kube: Kube, report: Report) -> None:
    image = next_image(kube, UNIT)
    with Traffic(kube) as traffic:
        roll(kube, CHAMPION_SPEC, "champion", image)
        roll(kube, CHAMPION_SPEC, "champion", UNIT)
        traffic.run_for(12)
    nothing_lost(kube, report, "champion rolled to a new image and back", traffic)


def test_the_engine_rolls(kube: Kube, report: Report) -> None:
    image = next_image(kube, PLATFORM)
    before = set(kube.ready_pods(ENGINE))
    with Traffic(kube) as traffic:
        roll(kube, ENGINE_SPEC, "engine", image)
        roll(kube, ENGINE_SPEC, "engine", PLATFORM)
        kube.settled()
        traffic.run_for(5)
    assert not before & set(kube.ready_pods(ENGINE))
    nothing_lost(kube, report, "engine rolled to a new image and back", traffic)


def test_pods_are_killed_one_by_one(kube: Kube, report: Report) -> None:
    victims = kube.ready_pods(UNITS)
    with Traffic(kube) as traffic:
        for pod in victims:
            kube.kubectl("delete", "pod", pod, "--wait=false")
            succeeded(kube, pod, len(victims))
        traffic.run_for(5)
    nothing_lost(kube, report, f"{len(victims)} pods deleted one by one", traffic)


def test_an_engine_killed_without_warning_loses_nothing_that_it_answered(kube: Kube, report: Report) -> None:
    """SIGKILL for the whole container: what was under way has no answer; the successor ships what was answered."""
    pod = kube.pods(ENGINE)[0]
    status = next(each for each in pod["status"]["containerStatuses"] if each["name"] == "seldon-container-engine")
    name, node = pod["metadata"]["name"], pod["spec"]["nodeName"]
    with Traffic(kube) as traffic:
        traffic.run_for(5)
        identity = status["containerID"].removeprefix("containerd://")
        run(["docker", "exec", node, "ctr", "-n", "k8s.io", "task", "kill", "--signal", "SIGKILL", "--all", identity])
        wait_until(
            lambda: any(
                each["restartCount"] > status["restartCount"] and each["ready"]
                for each in kube.get("pod", name)["status"]["containerStatuses"]
                if each["name"] == "seldon-container-engine"
            ),
            120,
            "the engine's container is back",
        )
        traffic.run_for(5)
    counts = traffic.counts
    missing = missing_rows(kube, counts)
    report.add("an engine killed by SIGKILL", counts, missing, "what was under way in it failed")
    assert missing == 0
    assert len(counts.failed) <= 4, counts.failed[:8]


def test_postgresql_is_away_for_two_minutes(kube: Kube, report: Report) -> None:
    with Traffic(kube) as traffic:
        kube.kubectl("scale", "statefulset", "postgres", "--replicas=0")
        traffic.run_for(120)
        lag = max(kube.metric(pod, "contender_ledger_lag_bytes") for pod in kube.ready_pods(ENGINE))
        assert lag > 0
        kube.kubectl("scale", "statefulset", "postgres", "--replicas=1")
        kube.kubectl("rollout", "status", "statefulset/postgres", "--timeout=120s")
        traffic.run_for(5)
    nothing_lost(kube, report, "PostgreSQL away for two minutes", traffic, f"{lag / 1024:.0f} KiB behind at its return")


def test_the_api_server_is_stopped_for_a_minute(kube: Kube, report: Report) -> None:
    node = f"{kube.name}-control-plane"
    with Traffic(kube) as traffic:
        run(["docker", "exec", node, "mv", APISERVER, ASIDE])
        try:
            traffic.run_for(60)
        finally:
            run(["docker", "exec", node, "mv", ASIDE, APISERVER])
        wait_until(
            lambda: run(["kubectl", "--context", kube.context, "get", "--raw", "/readyz"], check=False).stdout == "ok",
            120,
            "the API server is back",
        )
        # The way to the API server goes through kube-proxy, which itself takes up to a minute to find it again.
        epoch = kube.share("12%", timeout_s=120)
        traffic.run_for(5)
    kube.share("10%")
    nothing_lost(kube, report, "API server stopped for a minute", traffic, f"epoch {epoch} taken over after it")


def test_a_challenger_without_replicas_costs_nothing_but_itself(kube: Kube, report: Report) -> None:
    kube.share("50%")
    try:
        with Traffic(kube) as traffic:
            patch_component(kube, CHALLENGER_SPEC, "replicas", 0)
            wait_until(lambda: not kube.ready_pods("contender.dev/role=challenger"), 90, "the challenger is gone")
            gone = dict(traffic.counts.answered)
            traffic.run_for(15)
            meanwhile = {puid: served for puid, served in traffic.counts.answered.items() if puid not in gone}
            assert len(kube.ready_pods(ENGINE)) == 2, "a dead challenger must not take the service away"
            patch_component(kube, CHALLENGER_SPEC, "replicas", 1)
            wait_until(lambda: bool(kube.ready_pods("contender.dev/role=challenger")), 120, "the challenger is back")
            before_return = dict(traffic.counts.answered)
            traffic.run_for(20)
        after = {puid: served for puid, served in traffic.counts.answered.items() if puid not in before_return}
    finally:
        kube.share("10%")
    assert {arm for served in list(meanwhile.values())[-50:] for arm in served} == {"champion"}
    assert "challenger" in {arm for served in after.values() for arm in served}
    nothing_lost(kube, report, "challenger at replicas: 0 and back", traffic, f"{dict(arms(traffic))}")


def test_the_operator_restarts(kube: Kube, report: Report) -> None:
    with Traffic(kube) as traffic:
        kube.kubectl("rollout", "restart", "deployment/seldon-controller-manager", namespace="seldon-system")
        kube.kubectl("rollout", "status", "deployment/seldon-controller-manager", "--timeout=120s", namespace="seldon-system")
        traffic.run_for(15)
    nothing_lost(kube, report, "operator restarted", traffic)


def test_a_node_is_drained_and_restarted(kube: Kube, report: Report) -> None:
    postgres = kube.get("pod", "postgres-0")["spec"]["nodeName"]
    nodes = [each["metadata"]["name"] for each in kube.get("nodes")["items"]]
    workers = [name for name in nodes if "control-plane" not in name and name != postgres]
    if not workers:
        pytest.skip("no node without the database and the control plane; KIND_CONFIG=manifests/kind/three-nodes.yaml make kind")
    node = workers[0]
    with Traffic(kube) as traffic:
        kube.kubectl("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=300s")
        run(["docker", "restart", node])
        kube.kubectl("wait", "--for=condition=Ready", f"node/{node}", "--timeout=180s")
        kube.kubectl("uncordon", node)
        time.sleep(5)
    nothing_lost(kube, report, "a node drained and restarted", traffic, f"namespace {NAMESPACE}")
