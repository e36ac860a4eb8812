"""The kind Experiment at a real API server: what is refused and how, who changed what, and what applying it keeps."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from harness.experiments import MANIFEST, NAME, Namespace
from harness.kube import wait_until
from router.cluster import Cluster
from router.errors import ChangeConflict, ClusterError
from router.resource import Resource

pytestmark = pytest.mark.drill

HASH = "ab" * 32
ONE, OTHER, THIRD = "1" * 64, "2" * 64, "3" * 64


@pytest.fixture
def cluster(own: Namespace) -> Iterator[Cluster]:
    made = Cluster(context=own.context, namespace=own.name, user="anna")
    yield made
    made.close()


def generation(space: Namespace) -> int:
    return int(space.get()["metadata"]["generation"])


def shown(space: Namespace, *options: str) -> list[str]:
    return space.kubectl("get", "experiments", "--no-headers", *options).stdout.split()


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({"share": 25}, "share is 25; a percentage with its sign is expected"),
        ({"share": "25"}, "share is 25; a percentage with its sign is expected"),
        ({"share": "-1%"}, "share is -1%; a percentage"),
        ({"share": "100.01%"}, "share is 100.01%; a percentage"),
        ({"share": "0.125%"}, "share is 0.125%; a percentage"),
        ({"share": ""}, "a percentage with its sign is expected"),
        ({"salt": ""}, "salt is 1 to 100 letters"),
        ({"salt": "a b"}, "salt is 1 to 100 letters"),
        ({"salt": "a/2"}, "salt is 1 to 100 letters"),
        ({"salt": None}, "spec.salt: Required value"),
        ({"arms": ["champion"]}, "arms is [champion, NAME]"),
        ({"arms": ["challenger", "champion"]}, "arms is [champion, NAME]"),
        ({"arms": ["champion", "champion"]}, "arms is [champion, NAME]"),
        ({"arms": ["champion", "a", "b"]}, "arms is [champion, NAME]"),
        ({"arms": ["champion", "other"]}, "other arms are another test"),
        ({"pins": {"customer-42": "challenger"}}, "a pin names its customer by the hash of the key"),
        ({"pins": {HASH.upper(): "challenger"}}, "a pin names its customer by the hash of the key"),
        ({"pins": {HASH: "other"}}, "a pin's arm must be one of arms"),
        ({"pins": {f"{n:064x}": "champion" for n in range(201)}}, "must have at most 200 items"),
        ({"digests": {"champion": "abc"}}, "a digest is 64 digits 0 to f"),
        ({"digests": {"other": ONE}}, "digests names an arm that is none of arms"),
        ({"decision": "abc"}, "decision is the digest of the rules"),
        ({"holdout": {"salt": "h", "share": 5}}, "holdout.share is 5; a percentage"),
        ({"holdout": {"salt": "h"}}, "spec.holdout.share: Required value"),
        ({"holdout": {"salt": "", "share": "5%"}}, "holdout.salt is 1 to 100 letters"),
        ({"run": 0}, "spec.run in body should be greater than or equal to 1"),
        ({"firstEpoch": 0}, "spec.firstEpoch in body should be greater than or equal to 1"),
        ({"kill": "yes"}, "must be of type boolean"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else None,
)
def test_what_an_engine_could_not_use_is_refused_with_a_sentence(space: Namespace, spec: dict[str, Any], sentence: str) -> None:
    if not space.kubectl("get", "experiment", NAME, check=False).stdout:
        space.apply()
    before = space.get()
    done = space.patch(check=False, **spec)
    assert (done.returncode, sentence in done.stderr) == (1, True), done.stderr
    assert space.get() == before
    if None not in spec.values():
        document = {**json.loads(json.dumps(before)), "metadata": {"name": "made"}}
        document["spec"] |= spec
        made = space.kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(document), check=False)
        # Other arms are wrong for a test that runs only.
        assert made.returncode == (0 if "another test" in sentence else 1), made.stderr


@pytest.mark.parametrize(
    "spec",
    [
        {"share": "0%"},
        {"share": "100%"},
        {"share": "0.01%"},
        {"share": "99.5%"},
        {"pins": {HASH: "challenger", ONE: "champion"}},
        {"holdout": {"salt": "h-1", "share": "5%"}},
        {"arms": ["champion", "other"], "run": 2},
        {"salt": "campaigns-2"},
    ],
    ids=str,
)
def test_what_is_accepted_becomes_an_epoch(own: Namespace, spec: dict[str, Any]) -> None:
    own.patch(**spec)
    epoch = Resource.read(own.get()).epoch()
    assert epoch.epoch == 2
    (arm,) = epoch.arms.values()
    assert arm.share == round(float(spec.get("share", "10%")[:-1]) * 100)
    assert epoch.pins == spec.get("pins", {})
    assert (epoch.holdout is not None) == ("holdout" in spec)


def test_evidence_keeps_its_bundles_and_rules(own: Namespace) -> None:
    own.patch(digests={"champion": ONE})
    own.patch(digests={"champion": ONE, "challenger": OTHER}, decision=HASH)
    before = generation(own)
    for spec in (
        {"digests": {"challenger": THIRD}},
        {"digests": {"champion": None}},
        {"digests": None},
        {"decision": THIRD},
        {"decision": None},
    ):
        done = own.patch(check=False, **spec)
        assert "evidence belongs to the" in done.stderr, (spec, done.stderr)
    assert generation(own) == before
    # A promotion: the bundles change roles.
    own.patch(digests={"champion": OTHER, "challenger": ONE}, share="0%")
    own.patch(digests={"champion": OTHER, "challenger": THIRD}, decision=None, run=2)
    done = own.patch(check=False, run=1)
    assert "run never goes back under the same salt" in done.stderr
    own.patch(salt="campaigns-9", run=1, digests={"champion": ONE})
    own.patch(firstEpoch=20)
    assert "firstEpoch never goes back" in own.patch(check=False, firstEpoch=19).stderr
    assert Resource.read(own.get()).epoch().epoch == generation(own) + 19


def test_columns_show_share_switch_and_epoch(own: Namespace) -> None:
    assert shown(own)[:4] == [NAME, "10%", "false", "1"]
    own.patch(share="12.5%", kill=True)
    assert shown(own)[:4] == [NAME, "12.5%", "true", "2"]
    own.kubectl("patch", "experiment", NAME, "--subresource=status", "--type=merge", "-p", '{"status":{"verdict":"hold"}}')
    assert shown(own)[:5] == [NAME, "12.5%", "true", "2", "hold"], "a verdict is no change of the test"


@pytest.mark.parametrize("options", [(), ("--server-side",)], ids=["client-side", "server-side"])
def test_applying_the_manifest_again_keeps_what_commands_have_changed(space: Namespace, options: tuple[str, ...]) -> None:
    space.kubectl("delete", "experiment", "--all")
    space.apply(*options)
    space.patch(share="33%", shadow=True)
    assert space.contender("new-test", "--reason", "fresh").returncode == 0
    before = space.get()
    space.apply(*options)
    after = space.get()
    assert after["spec"] == before["spec"]
    assert after["metadata"]["generation"] == before["metadata"]["generation"] == 3
    assert (after["spec"]["share"], after["spec"]["run"]) == ("33%", 2)
    # What Git declares it still changes, and nothing beside it.
    text = MANIFEST.read_text(encoding="utf-8").replace("salt: campaigns-1", "salt: campaigns-2")
    space.kubectl("apply", *options, "-f", "-", stdin=text)
    changed = space.get()["spec"]
    assert changed.pop("salt") == "campaigns-2"
    assert changed == {name: value for name, value in before["spec"].items() if name != "salt"}


def test_blind_patches_make_an_epoch_each_with_the_name_of_who_made_it(own: Namespace) -> None:
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda n: own.patch(share=f"{n}%"), range(20, 26)))
    assert generation(own) == 7
    epoch = Resource.read(own.get()).epoch()
    assert (epoch.epoch, epoch.actor, epoch.reason) == (7, "kubectl-patch", "")
    assert epoch.at.startswith("20")
    body = json.dumps({"spec": {"share": "1%"}})
    own.kubectl("patch", "experiment", NAME, "--type=merge", "-p", body, "--field-manager=berta")
    own.kubectl("annotate", "experiment", NAME, "note=later")
    assert Resource.read(own.get()).epoch().actor == "berta"


def test_kubectl_edit_changes_the_share_and_an_invalid_edit_does_not(own: Namespace, tmp_path: Path) -> None:
    seen = tmp_path / "seen"

    def edit(share: str) -> subprocess.CompletedProcess[str]:
        editor = tmp_path / "editor"
        editor.write_text(f'#!/bin/sh\ncp "$1" {seen}\nsed -i \'s/  share: .*/  share: {share}/\' "$1"\n', encoding="utf-8")
        editor.chmod(0o700)
        command = ["kubectl", "--context", own.context, "-n", own.name, "edit", "experiment", NAME]
        environment = {**os.environ, "KUBE_EDITOR": str(editor), "TMPDIR": str(tmp_path)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)

    assert edit("40%").returncode == 0
    assert edit("140%").returncode == 1
    # kubectl opens the editor again, with the API server's sentence above.
    assert "share is 140%; a percentage" in seen.read_text(encoding="utf-8")
    assert own.get()["spec"]["share"] == "40%"
    assert Resource.read(own.get()).epoch().actor == "kubectl-edit"


def test_of_two_writers_on_one_version_the_second_is_told_and_changes_nothing(own: Namespace, cluster: Cluster) -> None:
    version = own.get()["metadata"]["resourceVersion"]
    first = Resource.read(cluster.change(NAME, {"share": "20%"}, version)).epoch()
    with pytest.raises(ChangeConflict):
        cluster.change(NAME, {"share": "30%"}, version)
    assert first == Resource.read(own.get()).epoch()
    assert (first.epoch, first.actor) == (2, "anna")
    with pytest.raises(ClusterError, match="share is 300%; a percentage with its sign is expected"):
        cluster.change(NAME, {"share": "300%"}, own.get()["metadata"]["resourceVersion"])


def test_racing_commands_never_share_an_epoch(own: Namespace) -> None:
    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(lambda n: own.contender("share", f"{n}%", "--json", "--reason", f"to {n}"), range(50, 56)))
    made = [json.loads(each.stdout) for each in done if each.returncode == 0]
    told = [each.stderr for each in done if each.returncode]
    assert sorted(each["epoch"] for each in made) == list(range(2, len(made) + 2))
    assert all(each["reason"] == f"to {each['arms']['challenger']['to'] // 100}" for each in made)
    assert all("the object has been modified" in each for each in told)
    assert generation(own) == len(made) + 1


def test_commands_steer_the_test(own: Namespace) -> None:
    def told(*command: str) -> dict[str, Any]:
        done = own.contender(*command)
        assert done.returncode == 0, done.stderr
        return dict(own.get()["spec"])

    assert told("share", "25%", "--reason", "second step")["share"] == "25%"
    assert told("kill")["kill"] is True
    before = generation(own)
    assert told("kill")["kill"] is True
    assert generation(own) == before, "what is so already is no change"
    assert told("revive")["kill"] is False
    assert told("shadow", "on")["shadow"] is True
    begun = told("new-test", "--reason", "other bundles")
    assert (begun["run"], begun["share"], sorted(begun["digests"])) == (2, "25%", ["challenger", "champion"])
    aa = told("new-test", "--aa", "--reason", "test of the test")
    assert aa["digests"]["challenger"] == aa["digests"]["champion"] == begun["digests"]["champion"]
    epoch = Resource.read(own.get()).epoch()
    assert (epoch.salt, epoch.reason) == ("campaigns-1/3", "test of the test")
    own.patch(share="1%")
    assert Resource.read(own.get()).epoch().reason == "", "the note was to the change before"
    listed = own.contender("epochs")
    assert listed.returncode == 0
    assert "kubectl-patch" in listed.stdout


def test_commands_say_what_keeps_them_from_it(own: Namespace) -> None:
    for command, sentence in (
        (("share", "250%"), "'250%' is no share"),
        (("share", "5%", "--arm", "other"), "'other' is no challenger of campaigns"),
        (("share", "5%", "--experiment", "other"), "there is no experiment 'other' in namespace"),
        (("share", "5%", "--home", "var"), "--home is of a ledger"),
        (("rollback", "--timeout", "0"), "no pod with the label seldon-app=campaigns-main is ready"),
        (("share", "5%", "--wait", "--timeout", "0", "--pods", "a=b"), "no pod with the label a=b is ready"),
    ):
        done = own.contender(*command)
        assert (done.returncode, sentence in done.stderr) == (1, True), done.stderr
    own.kubectl("create", "-f", "-", stdin=MANIFEST.read_text().replace("name: campaigns", "name: second"))
    assert "there are: campaigns, second" in own.contender("share").stderr


PODS = """
apiVersion: v1
kind: ConfigMap
metadata: {{ name: {name} }}
data: {{ prometheus: "contender_epoch{{test=\\"campaigns\\"}} {epoch}.0\\n" }}
---
apiVersion: v1
kind: Pod
metadata: {{ name: {name}, labels: {{ seldon-app: campaigns-main }}, annotations: {{ prometheus.io/port: "8001" }} }}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - name: metrics
      image: contender-platform:0.1.0
      command: [python, -m, http.server, "8001", -d, /data]
      readinessProbe: {{ httpGet: {{ path: /prometheus, port: 8001 }}, periodSeconds: 1 }}
      volumeMounts: [{{ name: data, mountPath: /data }}]
  volumes: [{{ name: data, configMap: {{ name: {name} }} }}]
"""


def test_a_rollback_waits_for_every_ready_pod_and_names_who_is_missing(own: Namespace) -> None:
    node = own.kubectl("get", "nodes", "-o", "jsonpath={.items[*].status.images[*].names}").stdout
    if "contender-platform:0.1.0" not in node:
        pytest.skip("the image contender-platform:0.1.0 is not in the cluster; `make kind` loads it")
    # Two stand-ins, one of which has an epoch to come, the other never takes one over.
    for name, epoch in (("prompt", 99), ("late", 1)):
        own.kubectl("apply", "-f", "-", stdin=PODS.format(name=name, epoch=epoch))
    own.kubectl("wait", "--for=condition=Ready", "pod/prompt", "pod/late", "--timeout=60s")
    done = own.contender("rollback", "--timeout", "1")
    assert done.returncode == 1
    assert "missing: late (epoch 1)\n" in done.stderr, done.stderr
    assert own.get()["spec"]["share"] == "0%", "whoever can roll back has done so"
    own.kubectl("delete", "pod", "late")
    wait_until(lambda: own.kubectl("get", "pod", "late", check=False).returncode != 0, 30, "the pod gone")
    done = own.contender("rollback", "--timeout", "30")
    assert done.returncode == 0, done.stderr
    assert generation(own) == 2, "the share was 0% already"
    assert own.contender("share", "7%", "--wait").returncode == 0
