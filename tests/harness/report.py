"""The figures of a run against a cluster: what each drill cost its clients, and what every pod uses."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from harness.kube import Kube
from harness.traffic import Counts

REPORT: pytest.StashKey[Report] = pytest.StashKey()


class Report:
    """Rows of two tables, in the order in which they were added."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self._drills: list[tuple[str, Counts, int, str]] = []
        self._usage: list[tuple[str, str]] = []

    def add(self, drill: str, counts: Counts, missing: int, remark: str = "") -> None:
        self._drills.append((drill, counts, missing, remark))

    def measure(self) -> None:
        """Note memory and CPU of every container now, by the kubelets' own figures."""
        for node in self._kube.get("nodes")["items"]:
            name = node["metadata"]["name"]
            summary = json.loads(self._kube.kubectl("get", "--raw", f"/api/v1/nodes/{name}/proxy/stats/summary"))
            for pod in summary["pods"]:
                for each in pod["containers"]:
                    memory = each["memory"].get("workingSetBytes", 0) / 2**20
                    cpu = each["cpu"].get("usageNanoCores", 0) / 1e6
                    title = f"{pod['podRef']['namespace']}/{pod['podRef']['name']} {each['name']}"
                    self._usage.append((title, f"{memory:7.0f} MiB {cpu:6.0f} m"))

    def lines(self) -> Iterator[str]:
        """Yield the tables as text."""
        yield f"{'drill':44} {'sent':>6} {'failed':>6} {'rows':>6} {'missing':>7} {'slowest':>8}"
        for drill, counts, missing, remark in self._drills:
            figures = f"{counts.sent:6} {len(counts.failed):6} {counts.rows:6} {missing:7} {counts.slowest_ms:5.0f} ms"
            yield f"{drill:44} {figures}  {remark}".rstrip()
        for title, used in sorted(self._usage):
            yield f"{title:72} {used}"
