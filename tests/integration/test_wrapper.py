"""The same answers in every placement: in one process, by our engine before Seldon-wrapped units, by Seldon's own executor."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from console import epochs
from harness.server import ROOT, Server
from harness.units import Executor, StockExecutor, Units
from ledger.store import Store
from router.assignment import bucket
from router.epoch import ArmRange
from serving.bundle import load_manifest
from training.population import population

CHAMPION = ROOT / "models/champion/campaigns"
NAMES, ROWS = population(load_manifest(CHAMPION), 300, seed=3)
ALONE = 60
SHARE = 3000

Row = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("placements")


@pytest.fixture(scope="module")
def units(folder: Path) -> Iterator[Units]:
    """The four nodes. The router follows the epochs of the `executor`."""
    with contextlib.closing(Units(folder, folder / "executor/home/epoch.json")) as running:
        running.start()
        yield running


@pytest.fixture(scope="module")
def executor(folder: Path, units: Units) -> Iterator[Server]:
    where = folder / "executor"
    where.mkdir()
    yield from running(Executor(where, units, "--experiment", where / "experiment.yaml"))


@pytest.fixture(scope="module")
def stock(folder: Path, units: Units, executor: Server) -> Iterator[Server]:
    where = folder / "stock"
    where.mkdir()
    yield from running(StockExecutor(where, units))


@pytest.fixture(scope="module")
def local(folder: Path) -> Iterator[Server]:
    where = folder / "local"
    where.mkdir()
    yield from running(Server(where))


def running(server: Server) -> Iterator[Server]:
    experiment = server.graph.parent / "experiment.yaml"
    experiment.write_text(experiment.read_text().replace("spec:\n", f'spec:\n  share: "{SHARE / 100:g}%"\n'))
    try:
        server.start()
        yield server
    finally:
        if server.process is not None:
            server.kill_group()


def answers(server: Server, size: int, rows: list[list[Any]]) -> list[Row]:
    """Return the answer to each row, sent in requests of `size` rows."""
    found = []
    for start in range(0, len(rows), size):
        answer = server.predict(NAMES, rows[start : start + size])
        found += [dict(zip(answer["data"]["names"], row, strict=True)) for row in answer["data"]["ndarray"]]
    return found


def same(mine: Row, theirs: Row) -> None:
    for name in ("device_id", "gender_decile", "gender", "age_band", "campaigns"):
        assert mine[name] == theirs[name], name
    assert math.isclose(mine["gender_score"], theirs["gender_score"], rel_tol=0, abs_tol=1e-5)
    assert (mine["age"] is None) == (theirs["age"] is None)
    assert mine["age"] is None or math.isclose(mine["age"], theirs["age"], rel_tol=0, abs_tol=1e-4)


@pytest.fixture(scope="module")
def expected(local: Server) -> list[Row]:
    found = answers(local, 1, ROWS[:ALONE]) + answers(local, 80, ROWS[ALONE:])
    arms = ["challenger" if bucket("campaigns-1", row[0]) < SHARE else "champion" for row in ROWS]
    assert [row["arm"] for row in found] == arms
    assert set(arms) == {"champion", "challenger"}
    return found


def test_our_engine_before_wrapped_units_answers_and_records_what_the_local_one_does(
    executor: Server, expected: list[Row]
) -> None:
    found = answers(executor, 1, ROWS[:ALONE]) + answers(executor, 80, ROWS[ALONE:])
    for mine, theirs in zip(found, expected, strict=True):
        assert mine["arm"] == theirs["arm"]
        same(mine, theirs)
    exposures = executor.exposures()
    assert len(exposures) == len(ROWS)
    digests = {each["served"]: each["digest"] for each in exposures}
    assert digests == {arm: digest_of(arm) for arm in ("champion", "challenger")}
    by_customer = {each["customer"]: each for each in exposures}
    assert {key: each["served"] for key, each in by_customer.items()} == {row["device_id"]: row["arm"] for row in expected}
    assert executor.metric('contender_rows_total{assigned="challenger",reason="hash",served="challenger"}') > 0


def test_the_stock_executor_before_the_same_units_answers_one_row_requests_alike(stock: Server, expected: list[Row]) -> None:
    for row, theirs in zip(ROWS, expected, strict=True):
        answer = stock.predict(NAMES, [row])
        same(dict(zip(answer["data"]["names"], answer["data"]["ndarray"][0], strict=True)), theirs)
        assert answer["meta"]["tags"]["digest"] == digest_of(theirs["arm"])


def test_the_stock_executor_sends_a_mixed_batch_to_the_champion(units: Units, stock: Server, expected: list[Row]) -> None:
    assert {row["arm"] for row in expected[:20]} == {"champion", "challenger"}
    mixed = {"data": {"names": NAMES, "ndarray": ROWS[:20]}}
    route = json.loads(units.post("router", "/route", mixed).body)
    assert route == {"data": {"ndarray": [[0]]}, "meta": {"tags": {"reason": "mixed-batch"}}}
    assert stock.predict(NAMES, ROWS[:20])["meta"]["tags"]["digest"] == digest_of("champion")


def test_ids_beyond_the_reach_of_a_double_stay_exact(local: Server, executor: Server, stock: Server) -> None:
    key = -8076087639492063270
    for server in (local, executor, stock):
        for written in (key, str(key)):
            assert answers(server, 1, [[written, *ROWS[0][1:]]])[0]["device_id"] == written
    assert bucket("campaigns-1", str(key)) == 5938


def test_bad_input_is_a_400_with_a_status_in_every_placement(
    units: Units, local: Server, executor: Server, stock: Server
) -> None:
    float_key = {"data": {"names": NAMES, "ndarray": [[1.5, *ROWS[0][1:]]]}}
    no_number = {"data": {"names": NAMES, "ndarray": [[ROWS[0][0], "Xiaomi", "x", "many", *ROWS[0][4:]]]}}
    told = [server.post(no_number) for server in (local, executor, stock)]
    told += [units.post("champion", "/predict", no_number), units.post("challenger", "/predict", no_number)]
    told += [server.post(float_key) for server in (local, executor)]
    told += [units.post("router", "/route", float_key), units.post("campaigns", "/transform-output", {"data": {}})]
    for answer in told:
        assert answer.status == 400, answer.body
        status = json.loads(answer.body)["status"]
        assert (status["code"], status["reason"], status["status"]) == (400, "BAD_REQUEST", "FAILURE")


def test_a_node_tells_its_bundle_in_its_metadata(executor: Server) -> None:
    for arm in ("champion", "challenger"):
        described = json.loads(executor.get(f"/api/v1.0/metadata/{arm}").body)
        assert (described["platform"], described["versions"]) == ("contender", [digest_of(arm)])


@pytest.fixture(scope="module")
def apart(folder: Path, units: Units) -> Iterator[Server]:
    """An engine without the bundles beside it: what it knows of them, its units have told."""
    where = folder / "apart"
    where.mkdir()
    yield from running(Executor(where, units, "--experiment", where / "experiment.yaml", cwd=where))


def test_a_dead_challenger_costs_its_customers_nothing_and_comes_back(units: Units, apart: Server) -> None:
    rows = [row for row in ROWS if bucket("campaigns-1", row[0]) < SHARE][:12]
    before = len(apart.exposures())
    assert [row["arm"] for row in answers(apart, 1, rows)] == ["challenger"] * 12
    units.kill("challenger")
    try:
        assert [row["arm"] for row in answers(apart, 1, rows)] == ["champion"] * 12
        assert apart.get("/ready").status == 200
    finally:
        units.start("challenger")
    end = time.monotonic() + 30
    while answers(apart, 1, rows[:1])[0]["arm"] != "challenger":
        assert time.monotonic() < end, "the challenger was not asked again"
        time.sleep(0.1)
    served = apart.exposures()[before:]
    assert [(each["reason"], each["digest"]) for each in served[:12]] == [("hash", digest_of("challenger"))] * 12
    fallen = served[12:24]
    assert [each["reason"] for each in fallen] == ["fallback:error"] * 5 + ["fallback:open"] * 7
    assert {each["digest"] for each in fallen} == {digest_of("champion")}
    assert all(each["assigned"] == "challenger" for each in served)


def test_a_promotion_reaches_units_behind_http_by_their_digests(apart: Server) -> None:
    store = Store.open(apart.home / "ledger.db")
    try:
        before = epochs.current(store, "campaigns")
        promoted = {"champion": digest_of("challenger"), "arms": {"challenger": ArmRange(0, 0)}}
        after = epochs.change(store, before, "promoted", **promoted)
        apart.wait_epoch(after.epoch)
        answer = apart.predict(NAMES, ROWS[:5])
        assert (answer["meta"]["tags"]["arm"], answer["meta"]["tags"]["digest"]) == ("champion", digest_of("challenger"))
        epochs.change(store, after, "undone", champion=before.champion, arms=before.arms)
        apart.wait_epoch(after.epoch + 1)
    finally:
        store.close()


def digest_of(arm: str) -> str:
    return hashlib.sha256((ROOT / f"models/{arm}/campaigns/model.json").read_bytes()).hexdigest()
