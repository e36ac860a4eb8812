"""Both dashboards in a real Grafana: every panel's query has an answer, and every page can be looked at.

`CONTENDER_TEST_GRAFANA` and `CONTENDER_TEST_URL` name another Grafana and engine than the cluster's; pictures go to
`CONTENDER_TEST_PICTURES`.
"""

from __future__ import annotations

import json
import math
import os
import random
import threading
import time
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.browser import Browser, chromium
from harness.kube import PREDICTIONS
from harness.monitoring import DASHBOARDS, Query, dashboard, fetched, queries
from harness.server import ROOT
from serving.bundle import load_manifest
from training.population import population

VALUES = {"namespace": "contender", "deployment": ".*", "arm": "champion|challenger", "column": "gender_score"}
MINUTES = 5
QUERIES = [query for name in DASHBOARDS for query in queries(name)]
PATIENCE_SECONDS = 120
"""A rate needs two scrapes, ten seconds apart, with rows between them; the first ones may just have begun."""

DRAWN = """
(() => {
  const panels = document.querySelectorAll('.react-grid-item').length
  const charts = [...document.querySelectorAll('.uplot canvas')]
  const drawn = c => c.width && c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(v => v)
  return panels >= %d && charts.length >= %d && charts.every(drawn) && !document.querySelector('.panel-loading')
})()
"""


@pytest.fixture(scope="module")
def addresses(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Grafana's address and the engine's."""
    given = os.environ.get("CONTENDER_TEST_GRAFANA"), os.environ.get("CONTENDER_TEST_URL")
    if given[0] and given[1]:
        return given[0], given[1]
    url = request.getfixturevalue("kube").url
    return given[0] or f"{url}/grafana", given[1] or url


@pytest.fixture(scope="module")
def grafana(addresses: tuple[str, str]) -> Iterator[str]:
    """Grafana's address, while requests come in."""
    address, engine = addresses
    try:
        fetched(f"{address}/api/health")
    except OSError as error:
        pytest.skip(f"no Grafana at {address}: {error}")
    stop = threading.Event()
    client = threading.Thread(target=ask, args=(engine, stop))
    client.start()
    try:
        yield address
    finally:
        stop.set()
        client.join()


def ask(engine: str, stop: threading.Event) -> None:
    """Send requests of different sizes, some rows without a key and some requests broken, until told to stop."""
    names, rows = population(load_manifest(ROOT / "models/champion/campaigns"), 2000)
    chosen = random.Random(2)
    while not stop.wait(0.1):
        sent = chosen.sample(rows, chosen.choice((1, 1, 5, 20)))
        sent[0] = [None if chosen.random() < 0.05 else sent[0][0], *sent[0][1:]]
        try:
            fetched(f"{engine}{PREDICTIONS}", {"data": {"names": names if chosen.random() < 0.98 else ["x"], "ndarray": sent}})
        except urllib.error.HTTPError as error:
            error.close()
        except OSError:
            stop.wait(1)


def answer(grafana: str, query: Query) -> list[float | None]:
    """Return the figures that Grafana's own way to the data source gives for one query. Fails with its error, if it has one."""
    target = query.target
    # Grafana's pages put the dashboard's variables in; the intervals and the range are put in by its server.
    expression = target["expr"]
    for name, value in VALUES.items():
        expression = expression.replace(f"${name}", value)
    asked = {
        "refId": "A",
        "datasource": target["datasource"],
        "expr": expression,
        "instant": target.get("instant", False),
        "range": target.get("range", True),
        "format": target.get("format", "time_series"),
        "intervalMs": 10_000,
        "maxDataPoints": 500,
    }
    try:
        found = fetched(f"{grafana}/api/ds/query", {"queries": [asked], "from": f"now-{MINUTES}m", "to": "now"})
    except urllib.error.HTTPError as error:
        with error:
            pytest.fail(f"{query.panel}: {expression}: {error.read().decode()}")
    figures: list[float | None] = []
    for frame in found["results"]["A"]["frames"]:
        for field, values in zip(frame["schema"]["fields"], frame["data"]["values"], strict=True):
            if field["type"] == "number":
                figures += values
    return figures


@pytest.mark.parametrize("name", DASHBOARDS)
def test_grafana_shows_the_files(grafana: str, name: str) -> None:
    board = dashboard(name)
    shown = fetched(f"{grafana}/api/dashboards/uid/{board['uid']}")
    assert shown["meta"]["provisioned"] is True
    assert shown["meta"]["canEdit"] is False
    assert titles(shown["dashboard"]) == titles(board)


def titles(board: dict[str, Any]) -> list[str]:
    return [panel["title"] for panel in board["panels"]]


@pytest.mark.parametrize("query", QUERIES, ids=[f"{query.panel} {query.target['refId']}" for query in QUERIES])
def test_a_panel_answers_through_grafana(grafana: str, addresses: tuple[str, str], query: Query) -> None:
    if query.of_kubelet and os.environ.get("CONTENDER_TEST_GRAFANA"):
        pytest.skip("only the cluster's Prometheus asks kubelets")
    end = time.monotonic() + PATIENCE_SECONDS
    figures = answer(grafana, query)
    while not query.may_be_empty and not any(figure is not None for figure in figures):
        assert time.monotonic() < end, f"{query.panel} stays empty: {query.target['expr']}"
        time.sleep(2)
        figures = answer(grafana, query)
    # None is a gap: a time without requests has no quantile.
    assert all(figure is None or math.isfinite(figure) for figure in figures)


def test_an_anonymous_visitor_may_look_and_nothing_else(grafana: str) -> None:
    for path, body in (
        ("api/dashboards/db", {"dashboard": dashboard(DASHBOARDS[0])}),
        ("api/datasources", {"name": "x", "type": "prometheus"}),
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            fetched(f"{grafana}/{path}", body)
        with refused.value as answered:
            assert answered.code in (401, 403)
            assert json.load(answered)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = chromium()
    if program is None:
        pytest.skip("chromium is missing: install the package chromium")
    with Browser(program, tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.mark.parametrize("width", [1440, 800])
@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_can_be_looked_at(grafana: str, browser: Browser, tmp_path: Path, name: str, width: int) -> None:
    board = dashboard(name)
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"]) * 38 + 60
    charts = sum(panel["type"] in ("timeseries", "barchart") for panel in board["panels"])
    kubelet = sum(query.of_kubelet for query in queries(name)) if os.environ.get("CONTENDER_TEST_GRAFANA") else 0
    browser.open(f"{grafana}/d/{board['uid']}?kiosk&from=now-{MINUTES}m&to=now", width, height)
    browser.wait(DRAWN % (len(board["panels"]), charts - kubelet))
    text = browser.evaluate("document.body.innerText")
    assert "No data" not in text
    # The sign of a query that failed.
    assert not browser.evaluate("Boolean(document.querySelector('[aria-label=\"Panel status\"]'))")
    titles = "[...document.querySelectorAll('.react-grid-item :is(h2, h6)')]"
    assert browser.evaluate(f"{titles}.length") >= len(board["panels"])
    # A title that is cut off says less than it should.
    assert browser.evaluate(f"{titles}.filter(t => t.scrollWidth > t.clientWidth + 1).map(t => t.innerText)") == []
    folder = Path(os.environ.get("CONTENDER_TEST_PICTURES", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / f"{name}-{width}.png"
    browser.picture(picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
