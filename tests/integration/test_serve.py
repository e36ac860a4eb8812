"""The main job end to end: a real server, real requests, its ledger and its commands."""

from __future__ import annotations

import json
import random
import subprocess
import time
from typing import Any

import pytest

from harness.server import ROOT, Server
from router.assignment import bucket
from serving.bundle import load_manifest
from training.population import population

COLUMNS = ["device_id", "arm", "gender_score", "gender_decile", "gender", "age", "age_band", "campaigns"]
NAMES = ["device_id", "phone_brand", "device_model"]
# fmt: off
FIELDS = [
    "id", "puid", "row", "at", "test", "epoch", "customer", "bucket", "assigned", "served", "reason", "propensity", "scores",
    "decision", "digest", "latency_ms",
]
# fmt: on
ID = -8076087639492063270


def device(key: object) -> list[object]:
    return [key, "小米", "MI 2"]


def arm_of(key: str, share: int, salt: str = "campaigns-1") -> str:
    return "challenger" if bucket(salt, key) < share else "champion"


def test_the_example_is_answered_and_recorded(server: Server) -> None:
    example = json.loads(server.contender("example", "campaigns").stdout)
    answer = server.post(example)
    assert answer.status == 200
    parsed = json.loads(answer.body)
    assert parsed["data"]["names"] == COLUMNS
    (row,) = parsed["data"]["ndarray"]
    values = dict(zip(COLUMNS, row, strict=True))
    key = example["data"]["ndarray"][0][example["data"]["names"].index("device_id")]
    assert values["device_id"] == key
    assert values["arm"] == arm_of(str(key), 1000)
    assert 0 <= values["gender_score"] <= 1
    (exposure,) = server.exposures()
    assert list(exposure) == FIELDS
    assert exposure["customer"] == str(key)
    assert exposure["bucket"] == bucket("campaigns-1", str(key))
    assert exposure["puid"] == parsed["meta"]["puid"]
    assert exposure["digest"] == parsed["meta"]["tags"]["digest"]
    assert exposure["scores"]["gender_score"] == values["gender_score"]
    assert exposure["decision"] == {"gender": values["gender"], "campaigns": values["campaigns"]}


def test_the_printed_curl_answers(server: Server) -> None:
    server_log(server, "\ncurl ")
    (printed,) = [line for line in server.log.read_text(encoding="utf-8").splitlines() if line.startswith("curl ")]
    done = subprocess.run(["bash", "-c", printed], capture_output=True, check=True)
    assert json.loads(done.stdout)["data"]["names"] == COLUMNS


def test_a_share_moves_customers_exactly_as_the_arithmetic_says(server: Server) -> None:
    shown = json.loads(server.contender("share", "--json").stdout)
    assert shown["arms"]["challenger"]["to"] == 1000
    done = server.contender("share", "25%", "--reason", "first step", "--json")
    epoch = json.loads(done.stdout)
    assert (epoch["epoch"], epoch["arms"]["challenger"]["to"], epoch["reason"]) == (2, 2500, "first step")
    server.wait_epoch(2)
    keys = [f"customer-{number}" for number in range(20_000)]
    served: list[str] = []
    for start in range(0, len(keys), 2000):
        answer = server.predict(NAMES, [device(key) for key in keys[start : start + 2000]])
        assert answer["meta"]["tags"]["epoch"] == 2
        served += [row[1] for row in answer["data"]["ndarray"]]
    assert served == [arm_of(key, 2500) for key in keys]
    delivered = server.metric('contender_rows_total{assigned="challenger",reason="hash",served="challenger"}')
    assert delivered == served.count("challenger")
    assert len(server.exposures()) == 20_000


def test_rows_come_back_in_input_order_and_alone_as_in_a_batch(server: Server) -> None:
    chosen = random.Random(1)
    rows = [device(str(chosen.randint(-(2**63), 2**63))) for _ in range(60)]
    batch = server.predict(NAMES, rows)["data"]["ndarray"]
    assert [row[0] for row in batch] == [row[0] for row in rows]
    assert {row[1] for row in batch} == {"champion", "challenger"}
    for row, together in zip(rows, batch, strict=True):
        (alone,) = server.predict(NAMES, [row])["data"]["ndarray"]
        for name, one, other in zip(COLUMNS, alone, together, strict=True):
            if isinstance(one, float):
                assert abs(one - other) <= (1e-4 if name == "age" else 1e-5), name
            else:
                assert one == other, name


def test_every_form_of_the_key_reaches_the_same_bucket(server: Server) -> None:
    server.contender("share", "59.39%")
    server.wait_epoch(2)
    rest = ["小米", "MI 2"]
    csv = f"device_id,phone_brand,device_model\n{ID},小米,MI 2\n"
    messages: list[tuple[Any, dict[str, str]]] = [
        ({"data": {"names": NAMES, "ndarray": [[ID, *rest]]}}, {}),
        ({"data": {"names": NAMES, "ndarray": [[str(ID), *rest]]}}, {}),
        ({"jsonData": [dict(zip(NAMES, [ID, *rest], strict=True))]}, {}),
        ({"strData": csv}, {}),
        ({"data": {"names": NAMES[1:], "ndarray": [rest]}, "meta": {"tags": {"device_id": ID}}}, {}),
        ({"data": {"names": NAMES[1:], "ndarray": [rest]}}, {"X-Customer-Key": str(ID)}),
    ]
    for message, headers in messages:
        answer = server.post(message, headers)
        assert answer.status == 200, answer.body
        (row,) = json.loads(answer.body)["data"]["ndarray"]
        assert (str(row[0]), row[1]) == (str(ID), "challenger")
    exposures = server.exposures()
    assert [(each["customer"], each["bucket"], each["propensity"]) for each in exposures] == [(str(ID), 5938, 0.5939)] * 6


def test_an_unknown_customer_gets_the_champion_and_is_kept_apart(server: Server) -> None:
    server.contender("share", "100%")
    server.wait_epoch(2)
    answer = server.predict(NAMES, [device(None), device(""), device("x")])
    assert [row[1] for row in answer["data"]["ndarray"]] == ["champion", "champion", "challenger"]
    assert answer["meta"]["routing"] == {"router": -1}
    assert answer["meta"]["tags"]["arm"] == ["champion", "champion", "challenger"]
    assert [(each["customer"], each["reason"]) for each in server.exposures()] == [
        (None, "no-key"),
        (None, "no-key"),
        ("x", "hash"),
    ]


def test_unknown_brands_and_models_are_normal(server: Server) -> None:
    answer = server.predict(NAMES, [["1", "NoSuchBrand", "no such model"]])
    assert answer["data"]["ndarray"][0][3] in range(1, 11)


BAD: list[tuple[str, Any, dict[str, str], int, list[str]]] = [
    ("not JSON", b"{not json", {}, 400, ["JSON"]),
    ("empty", b"", {}, 400, ["empty"]),
    ("content type", {"data": {}}, {"Content-Type": "text/xml"}, 415, ["text/xml"]),
    ("missing column", {"data": {"names": NAMES[:2], "ndarray": [["1", "a"]]}}, {}, 400, ["device_model"]),
    ("extra column", {"data": {"names": [*NAMES, "colour"], "ndarray": [["1", "a", "b", "red"]]}}, {}, 400, ["colour"]),
    ("duplicate column", {"data": {"names": [*NAMES, "device_id"], "ndarray": [["1", "a", "b", "1"]]}}, {}, 400, ["device_id"]),
    ("wrong type", {"data": {"names": NAMES, "ndarray": [device("1"), ["2", "a", 3.5]]}}, {}, 400, ["device_model", "row 1"]),
    ("null", {"data": {"names": NAMES, "ndarray": [device("1"), ["2", None, "b"]]}}, {}, 400, ["phone_brand", "row 1"]),
    ("NaN", b'{"data":{"names":["device_id","phone_brand","device_model","median_lat"],"ndarray":[["1","a","b",NaN]]}}', {},
     400, ["median_lat", "row 0"]),
    ("float key", {"data": {"names": NAMES, "ndarray": [device("1"), device(-8076087639492063270.0)]}}, {}, 400,
     ["device_id", "row 1"]),
    ("out of range", {"data": {"names": [*NAMES, "median_lat"], "ndarray": [[*device("1"), 91]]}}, {}, 400,
     ["median_lat", "row 0", "91"]),
    ("ragged", {"data": {"names": NAMES, "ndarray": [device("1"), ["2"]]}}, {}, 400, ["row 1"]),
    ("no rows", {"data": {"names": NAMES, "ndarray": []}}, {}, 400, ["0 rows"]),
    ("too many rows", {"data": {"names": NAMES, "ndarray": [device("1")] * 10_001}}, {}, 413, ["10000"]),
    ("body over the limit", b"[" + b" " * (9 * 1024 * 1024), {}, 413, ["8388608"]),
    ("deep nesting", b"[" * 200_000, {}, 400, ["JSON"]),
]  # fmt: skip


def test_bad_input_gets_a_clear_4xx_and_leaves_no_trace(server: Server) -> None:
    for title, message, headers, status, named in BAD:
        answer = server.post(message, headers)
        assert answer.status == status, (title, answer)
        assert answer.headers["content-type"] == "application/json", title
        said = json.loads(answer.body)["status"]
        assert (said["code"], said["status"]) == (status, "FAILURE"), title
        for word in named:
            assert word in said["info"], (title, said)
    wrong_method = server.get("/api/v1.0/predictions")
    assert wrong_method.status == 405
    assert json.loads(wrong_method.body)["status"]["code"] == 405
    assert server.exposures() == []
    assert server.predict(NAMES, [device("1")])["data"]["ndarray"]


def test_metrics_tell_requests_rows_epoch_share_and_lag(server: Server) -> None:
    server.predict(NAMES, [device("1"), device(None)])
    server.post(b"{")
    text = server.get("/prometheus").body.decode()
    for series in (
        'contender_requests_total{code="200",route="/api/v1.0/predictions"} 1.0',
        'contender_requests_total{code="400",route="/api/v1.0/predictions"} 1.0',
        'contender_rows_total{assigned="champion",reason="no-key",served="champion"} 1.0',
        'contender_epoch{test="campaigns"} 1.0',
        'contender_share_ratio{arm="challenger",test="campaigns"} 0.1',
        'contender_node_seconds_count{method="predict",node="champion"} 1.0',
    ):
        assert series in text, series
    for name in ("contender_spool_bytes", "contender_ledger_lag_bytes", "contender_ledger_lag_seconds"):
        assert name in text, name


def test_rules_change_without_restart_or_are_refused_with_the_old_ones_kept(server: Server) -> None:
    text = server.rules.read_text(encoding="utf-8")
    names, rows = population(load_manifest(ROOT / "models/champion/campaigns"), 200)
    before = server.predict(names, rows)["data"]["ndarray"]
    assert any("6" in row[-1] for row in before)
    server.rules.write_text(text.replace("[1, 2, 3]", "[1, 2, 33]"), encoding="utf-8")
    server_log(server, "33 is no decile")
    server.rules.write_text(text.replace("id: 6", "id: 7"), encoding="utf-8")
    server_log(server, "campaign 6: age >32 -> absent")
    assert server.predict(names, rows)["data"]["ndarray"] == before
    done = server.contender("new-test", "--reason", "campaign 7 replaces 6", "--graph", server.graph)
    assert done.returncode == 0, done.stderr
    server.wait_epoch(2)
    epoch = json.loads(server.contender("share", "--json").stdout)
    assert (epoch["salt"], epoch["arms"]["challenger"]["to"]) == ("campaigns-2", 1000)
    wait_for(lambda: any("7" in row[-1] for row in server.predict(names, rows)["data"]["ndarray"]))
    assert not any("6" in row[-1] for row in server.predict(names, rows)["data"]["ndarray"])


def test_a_restart_keeps_share_and_salt(server: Server) -> None:
    server.contender("share", "40%")
    server.wait_epoch(2)
    assert server.stop() == 0
    server.start()
    assert server.epoch() == 2
    epoch = json.loads(server.contender("share", "--json").stdout)
    assert (epoch["salt"], epoch["arms"]["challenger"]["to"]) == ("campaigns-1", 4000)


def test_a_second_server_on_one_home_is_refused(server: Server) -> None:
    done = server.contender("serve", server.graph, "--port", "1")
    assert done.returncode == 1
    assert "another server" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("value", ["25", "101%", "-1%", "0.001%", "all"])
def test_what_is_no_share_is_refused(server: Server, value: str) -> None:
    done = server.contender("share", "--", value)
    assert done.returncode == 1
    assert value in done.stderr
    assert server.epoch() == 1


def wait_for(condition: Any, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition never held"
        time.sleep(0.05)


def server_log(server: Server, words: str) -> None:
    wait_for(lambda: words in server.log.read_text())
