"""Dashboards, rules and manifests of manifests/monitoring hold what docs/monitoring.md promises; promtool has the last word."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.monitoring import DASHBOARDS, MONITORING, dashboard, program, queries, rules
from harness.server import ROOT

CHAMPION, CHALLENGER = "#3D85C6", "#E69138"
FOREIGN = {
    "up",
    "ALERTS",
    "container_cpu_usage_seconds_total",
    "container_memory_working_set_bytes",
    "container_start_time_seconds",
}
"""Series of Prometheus itself and of kubelets."""

VALUES = {
    "namespace": "n",
    "deployment": ".*",
    "arm": "champion|challenger",
    "column": "age",
    "__rate_interval": "1m",
    "__range": "1h",
}
PANELS = [(name, panel) for name in DASHBOARDS for panel in dashboard(name)["panels"]]
ALERTS = [rule for rule in rules() if "alert" in rule]
each_panel = pytest.mark.parametrize("panel", [panel for _, panel in PANELS], ids=[panel["title"] for _, panel in PANELS])
each_dashboard = pytest.mark.parametrize("name", DASHBOARDS)


@pytest.fixture(scope="module")
def promtool(tmp_path_factory: pytest.TempPathFactory) -> str:
    return program("promtool", tmp_path_factory.mktemp("promtool"))


def told(*command: object) -> str:
    """Return what a program says; fail with it if the program ends with an error."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@each_dashboard
def test_a_dashboard_loads_in_old_and_new_grafana(name: str) -> None:
    board = dashboard(name)
    assert board["uid"].startswith("contender-")
    assert board["schemaVersion"] <= 38
    assert not board["editable"]
    assert "id" not in board
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    assert {panel["type"] for panel in board["panels"]} <= {"stat", "timeseries", "table", "barchart"}
    for panel in board["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
    for one, other in itertools.combinations(board["panels"], 2):
        a, b = one["gridPos"], other["gridPos"]
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        assert beside or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"], (one["title"], other["title"])


@each_panel
def test_a_panel_says_what_it_shows_and_in_which_unit(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
    assert all(source == {"type": "prometheus", "uid": "prometheus"} for source in sources)
    references = [target["refId"] for target in panel["targets"]]
    assert len(set(references)) == len(references)


@each_panel
def test_the_arms_have_the_same_two_colours_everywhere(panel: dict[str, Any]) -> None:
    text = json.dumps([[target.get("legendFormat", ""), target["expr"]] for target in panel["targets"]])
    shows_arms = panel["type"] in ("timeseries", "barchart") and re.search(r'{{(arm|served|assigned|node)}}|arm=\\"ch', text)
    colours: dict[str, set[str]] = {}
    for override in panel["fieldConfig"]["overrides"]:
        for each in override["properties"]:
            if each["id"] == "color":
                colours.setdefault(each["value"]["fixedColor"], set()).add(override["matcher"]["options"])
            elif each["id"] == "mappings":
                for value, shown in each["value"][0]["options"].items():
                    colours.setdefault(shown["color"], set()).add(f"/{value}/")
    assert colours.get(CHAMPION, {"/champion/"}) == {"/champion/"}
    assert colours.get(CHALLENGER, {"/challenger/"}) == {"/challenger/"}
    for arm, colour in (("champion", CHAMPION), ("challenger", CHALLENGER)):
        assert not shows_arms or f"/{arm}/" in colours.get(colour, ()), panel["title"]
        assert all(f"/{arm}/" not in matched for other, matched in colours.items() if other != colour)


def series(expression: str) -> set[str]:
    """Return the series that a query names, without the endings of a histogram's."""
    return {
        re.sub(r"_(bucket|sum|count)$", "", name)
        for name in re.findall(r"\b(?:contender|container)_\w+|\bup\b|\bALERTS\b", expression)
    }


def test_every_series_of_panels_and_rules_is_documented() -> None:
    documented = set(re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/metrics.md").read_text(encoding="utf-8"), re.MULTILINE))
    asked = [query.target["expr"] for name in DASHBOARDS for query in queries(name)]
    asked += [rule["expr"] for rule in rules()]
    asked += [note["expr"] for name in DASHBOARDS for note in dashboard(name)["annotations"]["list"]]
    named = set().union(*map(series, asked))
    assert len(named) > 20
    assert named <= documented | FOREIGN, named - documented - FOREIGN


def test_every_query_is_promql(promtool: str, tmp_path: Path) -> None:
    asked = [query.expression(**VALUES) for name in DASHBOARDS for query in queries(name)]
    for name in DASHBOARDS:
        asked += [
            re.sub(r"\$(\w+)", lambda found: VALUES[found[1]], note["expr"]) for note in dashboard(name)["annotations"]["list"]
        ]
    groups = [{"name": "panels", "rules": [{"record": f"q{number}", "expr": text} for number, text in enumerate(asked)]}]
    (tmp_path / "rules.json").write_text(json.dumps({"groups": groups}), encoding="utf-8")
    assert f"{len(asked)} rules found" in told(promtool, "check", "rules", tmp_path / "rules.json")


@pytest.mark.parametrize("rule", ALERTS, ids=[rule["alert"] for rule in ALERTS])
def test_an_alert_says_how_bad_it_is_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert rule["annotations"]["summary"]
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    headings = re.findall(r"^#+ (.*)$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
    assert anchor in {heading.strip("`").lower() for heading in headings}
    assert anchor == rule["alert"].lower()


def test_every_alert_is_seen_to_fire_and_to_be_silent(promtool: str) -> None:
    tested: dict[str, set[bool]] = {}
    files = sorted((MONITORING / "tests").glob("*.yaml"))
    for file in files:
        for test in yaml.safe_load(file.read_text(encoding="utf-8"))["tests"]:
            for case in test.get("alert_rule_test", ()):
                tested.setdefault(case["alertname"], set()).add(bool(case["exp_alerts"]))
    assert tested == {rule["alert"]: {True, False} for rule in ALERTS}
    assert told(promtool, "test", "rules", *files).count("SUCCESS") == len(files)


def test_prometheus_and_alertmanager_take_their_configuration(promtool: str, tmp_path: Path) -> None:
    # Syntax only: the paths in it are those of the pod.
    assert "SUCCESS" in told(promtool, "check", "config", "--syntax-only", MONITORING / "config/prometheus.yml")
    amtool = program("amtool", tmp_path)
    assert "SUCCESS" in told(amtool, "check-config", MONITORING / "config/alertmanager.yml")


def test_every_file_is_part_of_what_is_applied() -> None:
    made = yaml.safe_load((MONITORING / "kustomization.yaml").read_text(encoding="utf-8"))
    listed = {file for each in made["configMapGenerator"] for file in each["files"]} | set(made["resources"])
    there = {str(path.relative_to(MONITORING)) for path in MONITORING.rglob("*") if path.is_file()}
    assert listed == {path for path in there if not path.startswith("tests/") and path != "kustomization.yaml"}


def test_containers_are_restricted_and_pinned() -> None:
    documents = [each for path in MONITORING.glob("*.yaml") for each in yaml.safe_load_all(path.read_text(encoding="utf-8"))]
    pods = [each["spec"]["template"]["spec"] for each in documents if each["kind"] in ("Deployment", "StatefulSet")]
    assert len(pods) == 3
    for pod in pods:
        assert pod["enableServiceLinks"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        (container,) = pod["containers"]
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+", container["image"])
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"readinessProbe", "livenessProbe"} <= set(container)
        assert set(container["resources"]) == {"requests", "limits"}
    for each in documents:
        for rule in each.get("rules", ()):
            assert rule["resources"] in (["pods"], ["nodes/metrics"])
            assert set(rule["verbs"]) <= {"get", "list", "watch"}
