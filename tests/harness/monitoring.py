"""What is under manifests/monitoring, as tests see it: dashboards, their queries, rules, and the programs that read them."""

from __future__ import annotations

import json
import lzma
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from harness.ports import free_port
from harness.server import ROOT

MONITORING = ROOT / "manifests/monitoring"
PACKED = ROOT.parent / "shared/cluster/bin"
ALSO = {"promtool": "prometheus", "amtool": "alertmanager"}
"""Programs that are one with another, which looks at the name that it is called by."""

DASHBOARDS = ("champion-and-challenger", "serving-health")


def program(name: str, folder: Path) -> str:
    """Return the path of `prometheus`, `promtool`, `alertmanager` or `amtool`, unpacked into `folder` if need be; else skip."""
    installed = shutil.which(name)
    if installed:
        return installed
    packed = PACKED / f"{ALSO.get(name, name)}.xz"
    if not packed.exists():
        pytest.skip(f"{name} is missing: install {ALSO.get(name, name)}")
    unpacked = folder / name
    with lzma.open(packed) as source, unpacked.open("wb") as target:
        shutil.copyfileobj(source, target)
    unpacked.chmod(0o755)
    return str(unpacked)


class Query(NamedTuple):
    """One query of one panel."""

    dashboard: str
    panel: str
    target: dict[str, Any]

    @property
    def of_kubelet(self) -> bool:
        return "container_" in self.target["expr"]

    @property
    def may_be_empty(self) -> bool:
        """Alerts that don't fire and rows that aren't left out are no rows."""
        return "ALERTS" in self.target["expr"] or "reason!~" in self.target["expr"]

    def expression(self, **values: str) -> str:
        """Return the PromQL with these values in the place of Grafana's variables."""
        return re.sub(r"\$([a-z_]+)", lambda found: values[found[1]], self.target["expr"])


def dashboard(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((MONITORING / f"dashboards/{name}.json").read_text(encoding="utf-8"))
    return loaded


def queries(name: str) -> list[Query]:
    """Return every query of a dashboard; one for each score column where a panel is repeated for them."""
    return [Query(name, panel["title"], target) for panel in dashboard(name)["panels"] for target in panel["targets"]]


def rules() -> Iterator[dict[str, Any]]:
    for path in sorted((MONITORING / "rules").glob("*.yaml")):
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]:
            yield from group["rules"]


def fetched(url: str, body: object = None) -> Any:
    """Return the JSON that a URL answers."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})  # noqa: S310 - the tests' own URLs
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
        return json.load(answer)


class Prometheus:
    """A real Prometheus that scrapes one engine every second, as the cluster's would, and judges the shipped rules."""

    def __init__(self, folder: Path, engine: int) -> None:
        program_path = program("prometheus", folder)
        self.url = f"http://127.0.0.1:{free_port()}"
        labels = {
            "namespace": "contender",
            "deployment": "campaigns",
            "pod": "engine-0",
            "container": "seldon-container-engine",
        }
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(MONITORING / "rules/*.yaml")],
            "scrape_configs": [
                {
                    "job_name": "contender",
                    "metrics_path": "/prometheus",
                    "static_configs": [{"targets": [f"127.0.0.1:{engine}"], "labels": labels}],
                }
            ],
        }
        file = folder / "prometheus.json"
        file.write_text(json.dumps(config), encoding="utf-8")
        options = [f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={self.url[7:]}"]
        self._log = folder / "prometheus.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen([program_path, *options], stdout=log, stderr=log)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the samples of an instant query: `metric` and `value`. Raises HTTPError if it isn't valid."""
        text = urllib.parse.urlencode({"query": expression})
        result: list[dict[str, Any]] = fetched(f"{self.url}/api/v1/query?{text}")["data"]["result"]
        return result

    def rules(self) -> dict[str, dict[str, Any]]:
        """Return every rule as Prometheus sees it, by its name."""
        groups = fetched(f"{self.url}/api/v1/rules")["data"]["groups"]
        return {rule["name"]: rule for group in groups for rule in group["rules"]}

    def wait_ready(self) -> None:
        end = time.monotonic() + 30
        while time.monotonic() < end:
            try:
                if self.query("up == 1"):
                    return
            except OSError:
                assert self._process.poll() is None, self._log.read_text()
            time.sleep(0.1)
        pytest.fail(f"Prometheus was not ready in time: {self._log.read_text()}")

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(30)
