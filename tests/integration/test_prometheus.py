"""A real Prometheus scrapes a real engine: every panel has an answer, and every rule is judged."""

from __future__ import annotations

import contextlib
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from harness.monitoring import DASHBOARDS, Prometheus, Query, queries, rules
from harness.server import ROOT, Server
from serving.bundle import load_manifest
from training.population import population

VALUES = {
    "namespace": "contender",
    "deployment": ".*",
    "arm": "champion|challenger",
    "column": "gender_score",
    "__rate_interval": "30s",
    "__range": "1m",
}
QUERIES = [query for name in DASHBOARDS for query in queries(name) if not query.of_kubelet]


class Watched(NamedTuple):
    """An engine with two workers, the Prometheus that watches it, and who answered the rows: arms and their rows."""

    server: Server
    prometheus: Prometheus
    answered: Counter[str]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    server = Server(tmp_path_factory.mktemp("engine"), workers=2)
    prometheus = Prometheus(tmp_path_factory.mktemp("prometheus"), server.port)
    try:
        server.start()
        prometheus.wait_ready()
        yield Watched(server, prometheus, traffic(server, 6))
        # The last scrape saw them all before the first query does.
    finally:
        prometheus.close()
        server.kill_group()


def traffic(server: Server, seconds: float) -> Counter[str]:
    """Send requests of a few rows each, some of them without a key and some broken; return the arms of the keyed rows."""
    names, rows = population(load_manifest(ROOT / "models/champion/campaigns"), 2000)
    chosen = random.Random(1)
    arms: Counter[str] = Counter()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        answer = server.predict(names, chosen.sample(rows, 20))
        arms.update(row[1] for row in answer["data"]["ndarray"])
        server.predict(names, [[None, *rows[0][1:]]])
        server.post(b"{")
        time.sleep(0.05)
    return arms


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition never held"
        time.sleep(0.2)


@pytest.mark.parametrize("query", QUERIES, ids=[f"{query.panel} {query.target['refId']}" for query in QUERIES])
def test_a_panel_has_an_answer(watched: Watched, query: Query) -> None:
    samples = watched.prometheus.query(query.expression(**VALUES))
    assert samples or query.may_be_empty
    figures = [float(sample["value"][1]) for sample in samples]
    assert all(map(math.isfinite, figures)), samples


def test_the_panels_tell_what_was_answered(watched: Watched) -> None:
    answered, prometheus = watched.answered, watched.prometheus
    rows = sum(answered.values())
    wait_for(lambda: total(prometheus, 'sum(contender_rows_total{reason="hash"})') == rows)

    def shown(panel: str) -> float:
        (query,) = [query for query in QUERIES if query.panel == panel]
        return total(prometheus, query.expression(**VALUES))

    assert shown("Epoch in use") == 1
    assert shown("Declared share") == 0.1
    # `increase` goes on to the window's end, for both sides alike but for the scrape between two requests.
    assert shown("Delivered share, 5 min") == pytest.approx(answered["challenger"] / rows, abs=0.01)
    assert shown("Rows fallen back, 5 min") == 0
    assert shown("Replicas lagging behind") == 0
    assert shown("Engines that answer") == 1
    assert shown("Requests failed, 5 min") == 0


def total(prometheus: Prometheus, expression: str) -> float:
    (sample,) = prometheus.query(expression)
    return float(sample["value"][1])


def test_every_rule_is_judged_and_none_fires(watched: Watched) -> None:
    names = {rule.get("alert") or rule["record"] for rule in rules()}
    wait_for(lambda: {rule["health"] for rule in watched.prometheus.rules().values()} == {"ok"})
    judged = watched.prometheus.rules()
    assert set(judged) == names
    assert {name for name, rule in judged.items() if rule.get("state", "inactive") != "inactive"} == set()


def test_an_engine_that_dies_is_noticed(watched: Watched) -> None:
    with contextlib.suppress(ProcessLookupError):
        watched.server.kill_group()
    wait_for(lambda: watched.prometheus.rules()["ContenderEngineDown"]["state"] == "pending")
