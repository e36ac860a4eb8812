"""The two flags of a test, on a real server: the shadow's pairs arrive in the ledger, and an A/A test outlives a restart."""

from __future__ import annotations

import json
import time

from harness.clients import NAMES
from harness.server import Server
from ledger.store import Store

OTHER = {"champion": "challenger", "challenger": "champion"}


def devices(prefix: str, count: int) -> list[list[object]]:
    return [[f"{prefix}-{number}", "小米", "MI 2"] for number in range(count)]


def current(server: Server) -> dict[str, object]:
    store = Store.open(server.home / "ledger.db")
    epoch: dict[str, object] = json.loads(store.current_epoch("campaigns") or b"")
    store.close()
    return epoch


def test_shadow_and_a_a_on_a_running_server(server: Server) -> None:
    before = server.predict(NAMES, devices("before", 20))["data"]["ndarray"]
    assert server.contender("share", "50%").returncode == 0
    assert server.contender("shadow", "on", "--reason", "a look").returncode == 0
    epoch = current(server)
    assert (epoch["epoch"], epoch["shadow"], epoch["reason"]) == (3, True, "a look")
    server.wait_epoch(3)
    answer = server.predict(NAMES, devices("shadowed", 200))
    arms = {row[0]: row[1] for row in answer["data"]["ndarray"]}
    assert set(arms.values()) == {"champion", "challenger"}
    end = time.monotonic() + 20
    while shadowed(server, "scored") < 200:
        assert time.monotonic() < end, "the shadow scores nothing"
        time.sleep(0.05)
    assert shadowed(server, "failed") == shadowed(server, "dropped") == 0

    assert server.contender("shadow", "off").returncode == 0
    done = server.contender("new-test", "--aa", "--reason", "test the test", "--graph", server.graph)
    assert done.returncode == 0, done.stderr
    assert "both arms are the champion's bundle" in done.stdout
    server.wait_epoch(5)
    aa = current(server)
    rows = server.predict(NAMES, devices("aa", 200))
    assert {row[1] for row in rows["data"]["ndarray"]} == {"champion", "challenger"}
    assert set(rows["meta"]["tags"]["digest"]) == {aa["champion"]}
    assert server.stop() == 0
    server.start()
    assert current(server) == aa

    exposures = {each["id"]: each for each in server.exposures()}
    store = Store.open(server.home / "ledger.db")
    pairs = store.pairs()
    store.close()
    assert len(exposures) == len(before) + 400
    told = {exposures[exposure]["customer"]: (arm, digest, set(scores)) for exposure, arm, digest, scores in pairs}
    assert {key: arm for key, (arm, _, _) in told.items()} == {key: OTHER[arm] for key, arm in arms.items()}
    served = {each["served"]: each for each in exposures.values() if each["epoch"] == 3}
    for arm, digest, columns in told.values():
        assert (digest, columns) == (served[arm]["digest"], set(served[arm]["scores"]))


def shadowed(server: Server, outcome: str) -> float:
    return sum(server.metric(f'contender_shadow_rows_total{{arm="{arm}",outcome="{outcome}"}}') for arm in OTHER)
