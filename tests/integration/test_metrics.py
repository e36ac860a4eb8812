"""The table of metrics, held against what real servers expose, and the figures themselves against what was answered."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import lzma
import os
import random
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import pytest
from prometheus_client.parser import text_string_to_metric_families

from harness.ports import free_port
from harness.server import CONTENDER, PREDICTIONS, ROOT, Server
from serving.bundle import load_manifest
from training.population import population

DOCUMENT = ROOT / "docs/metrics.md"
PACKED_PROMTOOL = ROOT.parent / "shared/cluster/bin/prometheus.xz"
ROW = re.compile(r"^\| `(\w+)` \| (\w+) \| ([\w, ]+) \|([^|]*)\| [^|]+ \|$", re.MULTILINE)
JSON = {"Content-Type": "application/json"}
NAMES = ["device_id", "phone_brand", "device_model"]
AGES = ("contender_epoch_age_seconds", "contender_ledger_lag_seconds", "contender_ledger_lag_bytes", "contender_spool_bytes")
NODE_METHODS = [
    "predict",
    "transform-input",
    "transform-output",
    "route",
    "aggregate",
    "send-feedback",
    "metadata",
    "health/status",
]
FALLBACKS = ["fallback:error", "fallback:timeout", "fallback:digest", "fallback:open"]
BOUNDED = {
    "arm": ["champion", "challenger"],
    "assigned": ["champion", "challenger"],
    "served": ["champion", "challenger"],
    "reason": ["hash", "no-key", "pin", "holdout", "kill", "stale", "no-epoch", *FALLBACKS],
    "campaign": ["1", "2", "3", "4", "5", "6", "none"],
    "column": ["gender_score", "age"],
    "what": ["epoch", "rules"],
    "test": ["campaigns"],
    "node": ["champion", "challenger", "campaigns"],
    "outcome": ["scored", "dropped", "failed"],
}

Labels = tuple[tuple[str, str], ...]


class Documented(NamedTuple):
    """One line of the table."""

    kind: str
    where: str
    labels: frozenset[str]


class Scrape(NamedTuple):
    """One exposition: the type and label names (without `le`) of each series, and every sample."""

    kinds: dict[str, str]
    labels: dict[str, set[frozenset[str]]]
    samples: dict[tuple[str, Labels], float]

    def sum(self, name: str, **labels: str) -> float:
        wanted = set(labels.items())
        return sum(value for (each, given), value in self.samples.items() if each == name and wanted <= set(given))


def documented() -> dict[str, Documented]:
    rows = ROW.findall(DOCUMENT.read_text(encoding="utf-8"))
    return {name: Documented(kind, where, frozenset(re.findall(r"`(\w+)`", labels))) for name, kind, where, labels in rows}


def parsed(text: str) -> Scrape:
    scrape = Scrape({}, {}, {})
    for family in text_string_to_metric_families(text):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        for sample in family.samples:
            scrape.kinds[name] = family.type
            scrape.labels.setdefault(name, set()).add(frozenset(sample.labels) - {"le"})
            key = sample.name, tuple(sorted(sample.labels.items()))
            assert key not in scrape.samples, key
            scrape.samples[key] = sample.value
    return scrape


def scraped(server: Server) -> Scrape:
    answer = server.get("/prometheus")
    assert (answer.status, answer.headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    return parsed(answer.body.decode())


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with two workers that has seen traffic of all kinds."""
    server = Server(tmp_path_factory.mktemp("metrics"), workers=2)
    server.start()
    try:
        every_kind_of_traffic(server)
        yield server
    finally:
        server.kill_group()


def every_kind_of_traffic(server: Server) -> None:
    names, rows = population(load_manifest(ROOT / "models/champion/campaigns"), 300)
    server.predict(names, rows)
    server.predict(NAMES, [["1", "a", "b"], [None, "a", "b"]])
    server.post(b"{")
    server.post({"data": {"names": ["x"], "ndarray": [[1]]}})
    for path in ("/live", "/ready", "/nowhere", "//live", "/api/v1.0/status", PREDICTIONS):
        server.get(path)
    for path in ("", "/champion"):
        server.get(f"/api/v1.0/metadata{path}")
    server.get("/api/v1.0/status/champion")
    server.request("POST", "/api/v1.0/feedback", json.dumps({"reward": 1}).encode(), JSON)
    server.request("OPTIONS", PREDICTIONS)
    server.rules.write_text("campaigns: 1", encoding="utf-8")
    wait_for(lambda: scraped(server).sum("contender_refused_total", what="rules") == 2)
    (server.home / "epoch.json").write_text("{}", encoding="utf-8")
    wait_for(lambda: scraped(server).sum("contender_refused_total", what="epoch") == 2)
    wait_for(lambda: scraped(server).sum("contender_ledger_rows_total") == 302)


def wait_for(condition: object, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "the condition never held"
        time.sleep(0.05)


def compare(scrape: Scrape, where: tuple[str, ...]) -> None:
    """Hold the table's lines for these engines against a scrape, both ways."""
    table = documented()
    assert set(scrape.kinds) <= set(table), f"not in the table: {set(scrape.kinds) - set(table)}"
    for name, kind in scrape.kinds.items():
        line = table[name]
        assert line.where.startswith(where), f"{name} is said to be of {line.where}"
        assert kind == line.kind, name
        assert scrape.labels[name] == {line.labels}, name
    expected = {name for name, line in table.items() if line.where in where}
    assert expected <= set(scrape.kinds), f"not exposed: {expected - set(scrape.kinds)}"


def test_the_table_is_what_a_server_exposes(busy: Server) -> None:
    compare(scraped(busy), ("both", "serve"))


def test_the_table_is_what_the_executor_exposes(tmp_path: Path) -> None:
    port, nobody = free_port(), free_port()
    endpoint = {"service_host": "127.0.0.1", "service_port": nobody, "httpPort": nobody}
    spec = {"name": "main", "annotations": {"version": "v7"}, "graph": {"name": "m", "type": "MODEL", "endpoint": endpoint},
            "componentSpecs": [{"spec": {"containers": [{"name": "m", "image": "registry/m:1.2"}]}}]}  # fmt: skip
    environment = {**os.environ, "ENGINE_PREDICTOR": base64.b64encode(json.dumps(spec).encode()).decode()}
    command = [str(CONTENDER), "executor", "--sdep", "d", "--http_port", str(port), "--prometheus_path", "/p"]
    with (tmp_path / "log").open("wb") as log, subprocess.Popen(command, env=environment, stdout=log, stderr=log) as process:
        try:
            wait_for(lambda: ask(port, "GET", "/live")[0] == 200)
            assert ask(port, "POST", PREDICTIONS, b"{}")[0] == 500
            ask(port, "OPTIONS", PREDICTIONS)
            scrape = parsed(ask(port, "GET", "/p")[1].decode())
        finally:
            process.terminate()
    compare(scrape, ("both", "executor"))
    common = {"deployment_name": "d", "predictor_name": "main", "predictor_version": "v7", "method": "post", "code": "500"}
    served = "seldon_api_executor_server_requests_seconds_count"
    assert scrape.sum(served) == scrape.sum(served, service="predictions", **common) == 1
    image = {"model_name": "m", "model_image": "registry/m", "model_version": "1.2"}
    called = "seldon_api_executor_client_requests_seconds_count"
    assert scrape.sum(called) == scrape.sum(called, service="/predict", **common, **image) == 1


def ask(port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, body, JSON)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except OSError:
        return 0, b""
    finally:
        connection.close()


def test_a_clients_words_never_become_label_values(busy: Server) -> None:
    before = {key for key in scraped(busy).samples if dict(key[1]).get("code") not in ("404", "405", "301")}
    chosen = random.Random(5)
    for number in range(60):
        word = "".join(chosen.choices('abcxyz%20é"\\', k=6)).encode("unicode_escape").decode().replace("\\", "_")
        busy.get(f"/{number}")
        busy.get(f"/api/v1.0/status/n{number}")
        busy.request(f"M{number}", PREDICTIONS)
        busy.predict(NAMES, [[f"key-{number}", f"brand {word}", f"model {number}"]], {"X-Odd": word})
        busy.post({"data": {"names": [word], "ndarray": [[number]]}})
    scrape = scraped(busy)
    grown = {key for key in scrape.samples if dict(key[1]).get("code") not in ("404", "405", "301")} - before
    # What is new are status codes of routes.
    requests = ("contender_requests_total", "contender_request_seconds", "seldon_api_executor_server_requests_seconds")
    assert all(name.startswith(requests) for name, _ in grown), grown
    routes = {dict(labels)["route"] for name, labels in scrape.samples if name == "contender_requests_total"}
    assert all(route == "other" or route.startswith(("/api/v", "/live", "/ready", "/prometheus")) for route in routes)
    for name, labels in scrape.samples:
        for label, value in labels:
            if label in BOUNDED:
                assert value in BOUNDED[label], (name, label, value)
            if label == "method" and name.startswith("contender_"):
                assert value in NODE_METHODS


def test_every_worker_tells_the_sum_and_counts_are_exact_under_concurrency(busy: Server) -> None:
    clients, requests, names = 8, 40, NAMES
    before = scraped(busy)

    def caught_up() -> bool:
        nonlocal before
        before = scraped(busy)
        counted, timed = ("contender_requests_total", "contender_request_seconds_count")
        return before.sum(counted, route=PREDICTIONS) == before.sum(timed, route=PREDICTIONS)

    # The worker that is not scraped may still have to add what earlier tests asked it.
    wait_for(caught_up)

    def client(number: int) -> list[list[object]]:
        answered: list[list[object]] = []
        chosen = random.Random(number)
        for turn in range(requests):
            rows: list[list[object]] = [
                [f"c{number}-{turn}-{row}", "小米", "MI 2"] for row in range(chosen.choice((1, 1, 2, 30)))
            ]
            answered += busy.predict(names, rows)["data"]["ndarray"]
        return answered

    with ThreadPoolExecutor(clients) as pool:
        rows = [row for answered in pool.map(client, range(clients)) for row in answered]

    def reached(name: str, more: int, **labels: str) -> bool:
        return scraped(busy).sum(name, **labels) == before.sum(name, **labels) + more

    # A request is counted once its answer has left, and the worker that was not scraped adds its histograms a moment later.
    wait_for(lambda: reached("contender_requests_total", clients * requests, route=PREDICTIONS, code="200"))
    wait_for(lambda: reached("contender_request_seconds_count", clients * requests, route=PREDICTIONS))
    wait_for(lambda: reached("contender_score_count", len(rows), column="gender_score"))
    wait_for(lambda: reached("contender_node_seconds_count", clients * requests, node="campaigns"))
    after = scraped(busy)

    def grown(name: str, **labels: str) -> float:
        return after.sum(name, **labels) - before.sum(name, **labels)

    assert grown("contender_requests_total", route=PREDICTIONS, code="200") == clients * requests
    assert grown("contender_request_seconds_count", route=PREDICTIONS) == clients * requests
    assert grown("seldon_api_executor_server_requests_seconds_count", service="predictions", code="200") == clients * requests
    assert grown("contender_node_seconds_count", node="campaigns") == clients * requests
    campaigns = Counter((str(row[1]), each or "none") for row in rows for each in str(row[7]).split(","))
    for arm in ("champion", "challenger"):
        of_arm = [row for row in rows if row[1] == arm]
        assert of_arm
        assert grown("contender_rows_total", served=arm, reason="hash") == len(of_arm)
        assert grown("contender_score_count", arm=arm, column="gender_score") == len(of_arm)
        assert grown("contender_score_bucket", arm=arm, column="gender_score", le="0.4") == sum(
            as_number(row[2]) <= 0.4 for row in of_arm
        )
        assert grown("contender_score_sum", arm=arm, column="gender_score") == pytest.approx(
            sum(as_number(row[2]) for row in of_arm)
        )
        for campaign in ("1", "2", "3", "4", "5", "6", "none"):
            assert grown("contender_campaigns_total", arm=arm, campaign=campaign) == campaigns[arm, campaign]
    wait_for(lambda: scraped(busy).sum("contender_ledger_lag_bytes") == 0)
    volatile = (*AGES, "contender_requests_total", "contender_request_seconds")

    def settled() -> dict[tuple[str, Labels], float]:
        return {key: value for key, value in scraped(busy).samples.items() if not key[0].startswith(volatile)}

    first = settled()

    def still() -> bool:
        nonlocal first
        time.sleep(0.3)  # longer than a worker keeps what it counted to itself
        earlier, first = first, settled()
        return earlier == first

    wait_for(still)
    # Each scrape is a connection of its own, so that both workers answer some.
    assert all(settled() == first for _ in range(8))


def as_number(value: object) -> float:
    assert isinstance(value, float)
    return value


def test_gauges_tell_spool_share_breaker_and_the_epochs_age(busy: Server) -> None:
    first = scraped(busy)
    assert first.sum("contender_breaker_state", arm="challenger") == 0
    assert first.sum("contender_share_ratio", arm="challenger") == 0.1
    assert first.sum("contender_epoch") == 1
    made = datetime.fromisoformat(json.loads(busy.contender("share", "--json").stdout)["at"]).timestamp()
    assert made <= first.sum("contender_epoch_changed_timestamp_seconds") <= time.time()
    # The epoch file was spoilt above, so nothing confirms the epoch any more.
    age = first.sum("contender_epoch_age_seconds")
    wait_for(lambda: scraped(busy).sum("contender_epoch_age_seconds") > age + 2)
    size = sum(path.stat().st_size for path in (busy.home / "spool").glob("*.jsonl"))
    wait_for(lambda: scraped(busy).sum("contender_spool_bytes") == size)
    assert size > 0


@pytest.fixture(scope="module")
def promtool(tmp_path_factory: pytest.TempPathFactory) -> str:
    installed = shutil.which("promtool")
    if installed:
        return installed
    if not PACKED_PROMTOOL.exists():
        pytest.skip("promtool is missing: install Prometheus")
    # Prometheus and promtool are one program here, which looks at the name that it is called by.
    program = tmp_path_factory.mktemp("prometheus") / "promtool"
    with lzma.open(PACKED_PROMTOOL) as packed, program.open("wb") as unpacked:
        shutil.copyfileobj(packed, unpacked)
    program.chmod(0o755)
    return str(program)


def test_promtool_finds_nothing_wrong(busy: Server, promtool: str) -> None:
    text = busy.get("/prometheus").body
    checked = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, timeout=60, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def test_the_documented_queries_are_valid(promtool: str, tmp_path: Path) -> None:
    queries = re.findall(r"^    (\S.*)$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(queries) >= 8
    names = set(documented())
    for query in queries:
        series = set(re.findall(r"\bcontender_\w+", query))
        assert all(re.sub("_(bucket|sum|count)$", "", each) in names or each in names for each in series), query
    rules = {"groups": [{"name": "docs", "rules": [{"record": f"q{i}", "expr": query} for i, query in enumerate(queries)]}]}
    (tmp_path / "rules.json").write_text(json.dumps(rules), encoding="utf-8")
    with contextlib.chdir(tmp_path):
        checked = subprocess.run([promtool, "check", "rules", "rules.json"], capture_output=True, timeout=60, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
