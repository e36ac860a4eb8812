"""Engines that follow an Experiment through a real API server: changes, cuts of every kind, deletion, and few rights."""

from __future__ import annotations

import json
import re
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.clients import NAMES
from harness.experiments import NAME, Namespace, Relay, engine, settled
from harness.kube import wait_until
from harness.server import Server
from router.assignment import bucket

pytestmark = pytest.mark.drill

CUSTOMERS = [f"customer-{number}" for number in range(200)]


@pytest.fixture
def relay(space: Namespace) -> Iterator[Relay]:
    made = Relay(space.api_server())
    yield made
    made.refuse()


@pytest.fixture
def start(space: Namespace, relay: Relay, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start an engine whose way to the API server is the relay."""
    kubeconfig = space.kubeconfig(tmp_path / "kubeconfig", server=relay.url)
    started = []

    def begin(name: str = "a", **settings: object) -> Server:
        server = engine(tmp_path / name, kubeconfig, **settings)
        started.append(server)
        server.start()
        wait_until(lambda: "following experiment" in server.log.read_text(), 30, "every worker ready", pause_s=0.05)
        return server

    yield begin
    for server in started:
        if server.process is not None:
            server.kill_group()


def answer(server: Server) -> dict[str, Any]:
    """Return the answer to one request with every customer."""
    return server.predict(NAMES, [[key, "小米", "MI 2"] for key in CUSTOMERS])


def counted(server: Server) -> Counter[tuple[str, str]]:
    """Return the rows that the server has counted, by the arm that served and the reason."""
    text = server.get("/prometheus").body.decode()
    found = re.findall(r'^contender_rows_total{assigned="[^"]*",reason="([^"]*)",served="([^"]*)"} (\S+)$', text, re.MULTILINE)
    return Counter({(served, reason): int(float(count)) for reason, served, count in found})


def reasons(server: Server) -> Counter[tuple[str, str]]:
    """Return the rows of one request with every customer, by the arm that served and the reason."""
    before = counted(server)
    answer(server)
    return counted(server) - before


def split(salt: str, points: int) -> Counter[tuple[str, str]]:
    arms = ("challenger" if bucket(salt, key) < points else "champion" for key in CUSTOMERS)
    return Counter((arm, "hash") for arm in arms)


def age(server: Server) -> float:
    return server.metric(f'contender_epoch_age_seconds{{test="{NAME}"}}')


def refused(server: Server) -> float:
    return server.metric('contender_refused_total{what="epoch"}')


def test_replicas_follow_every_change_and_the_ledger_has_each_epoch_once(
    own: Namespace, start: Callable[..., Server], tmp_path: Path
) -> None:
    store = tmp_path / "ledger.db"
    first, second = (start(name, store=store) for name in "ab")
    settled(first, 1)
    for share in ("30%", "45%"):
        own.patch(share=share)
    assert own.contender("share", "60%", "--reason", "by command").returncode == 0
    for server in (first, second):
        settled(server, 4)
        assert answer(server)["meta"]["tags"]["epoch"] == 4
        assert server.metric(f'contender_share_ratio{{arm="challenger",test="{NAME}"}}') == 0.6
        assert "ended with exit code" not in server.log.read_text(), "nothing restarts for a change"
    assert reasons(first) == reasons(second) == split("campaigns-1", 6000)
    for server in (first, second):
        assert server.stop() == 0
        assert "another epoch" not in server.log.read_text()
        assert "refused" not in server.log.read_text()
    with sqlite3.connect(store) as ledger:
        rows = ledger.execute("SELECT epoch, actor, reason, document FROM epochs ORDER BY epoch").fetchall()
    assert [row[:3] for row in rows[1:3]] == [(2, "kubectl-patch", ""), (3, "kubectl-patch", "")]
    assert (rows[3][0], rows[3][2]) == (4, "by command")
    assert len(rows) == 4
    assert json.loads(rows[3][3])["arms"]["challenger"]["to"] == 6000
    assert not list(first.home.glob("spool/*.jsonl"))


def test_an_engine_starts_without_api_server_and_ledger_and_serves_the_champion(
    own: Namespace, relay: Relay, start: Callable[..., Server], tmp_path: Path
) -> None:
    relay.refuse()
    store = tmp_path / "ledger.db"
    # No database can be opened there until it is gone.
    store.mkdir()
    server = start(store=store)
    assert server.epoch() == 0
    assert reasons(server) == {("champion", "no-epoch"): len(CUSTOMERS)}
    relay.restore()
    settled(server, 1)
    store.rmdir()
    answer(server)
    assert server.stop() == 0
    with sqlite3.connect(store) as ledger:
        rows = dict(ledger.execute("SELECT epoch, count(*) FROM exposures GROUP BY epoch"))
        known = ledger.execute("SELECT epoch FROM epochs").fetchall()
    assert rows == {0: len(CUSTOMERS), 1: len(CUSTOMERS)}
    assert known == [(1,)]


@pytest.mark.parametrize("cut", ["refuse", "hang"])
def test_a_cut_off_engine_holds_its_epoch_then_serves_the_champion_until_contact_is_back(
    own: Namespace, relay: Relay, start: Callable[..., Server], cut: str
) -> None:
    own.patch(share="100%")
    server = start(stale_after_seconds=12)
    settled(server, 2)
    getattr(relay, cut)()
    own.patch(share="0%")
    assert reasons(server) == {("challenger", "hash"): len(CUSTOMERS)}, "the last epoch holds"
    wait_until(lambda: "can't be followed" in server.log.read_text(), 30, "the cut was noticed")
    wait_until(lambda: "everybody gets the champion" in server.log.read_text(), 30, "the epoch is stale")
    assert reasons(server) == {("champion", "stale"): len(CUSTOMERS)}
    assert server.get("/ready").status == 200
    assert age(server) > 12
    assert server.epoch() == 2
    relay.restore()
    settled(server, 3, seconds=30)
    assert reasons(server) == {("champion", "hash"): len(CUSTOMERS)}
    assert age(server) < 12
    own.patch(share="100%")
    settled(server, 4)
    assert reasons(server) == {("challenger", "hash"): len(CUSTOMERS)}


def test_an_epoch_that_still_holds_is_taken_up_again_when_contact_is_back(
    own: Namespace, relay: Relay, start: Callable[..., Server]
) -> None:
    server = start(stale_after_seconds=1.5)
    wait_until(lambda: server.epoch() == 1, 20, "the epoch in use")
    relay.refuse()
    wait_until(lambda: reasons(server)["champion", "stale"] == len(CUSTOMERS), 20, "stale")
    relay.restore()
    wait_until(lambda: reasons(server) == split("campaigns-1", 1000), 20, "the same customers have the challenger again")


def test_a_restarted_engine_goes_on_with_the_epoch_it_left(own: Namespace, relay: Relay, start: Callable[..., Server]) -> None:
    own.patch(share="100%")
    server = start()
    settled(server, 2)
    assert server.process is not None
    server.kill_group()
    relay.refuse()
    server.start()
    assert server.epoch() == 2
    assert reasons(server) == {("challenger", "hash"): len(CUSTOMERS)}
    assert server.stop() == 0
    # The epoch is as old as its last confirmation, not as this process.
    server.environment["CONTENDER_STALE_AFTER_SECONDS"] = "0.5"
    server.start()
    assert reasons(server) == {("champion", "stale"): len(CUSTOMERS)}
    relay.restore()
    own.patch(share="0%")
    settled(server, 3)


def test_a_deleted_experiment_holds_until_it_is_stale_and_one_made_again_needs_numbers_of_its_own(
    own: Namespace, start: Callable[..., Server]
) -> None:
    own.patch(share="100%")
    own.patch(share="99%")
    server = start(stale_after_seconds=9)
    settled(server, 3)
    own.kubectl("delete", "experiment", NAME)
    assert reasons(server)["challenger", "hash"] > 150
    wait_until(lambda: reasons(server)["champion", "stale"] == len(CUSTOMERS), 30, "stale")
    own.apply()
    wait_until(lambda: refused(server) == 1, 10, "the reused number is refused")
    own.patch(share="50%")
    wait_until(lambda: refused(server) == 2, 10, "the second one too")
    assert server.epoch() == 3
    assert "set its spec.firstEpoch to 4" in server.log.read_text()
    own.patch(firstEpoch=4)
    settled(server, 6)
    assert reasons(server) == split("campaigns-1", 5000)


def test_a_ledger_that_knows_later_epochs_keeps_a_new_engine_from_using_their_numbers_again(
    own: Namespace, start: Callable[..., Server], tmp_path: Path
) -> None:
    store = tmp_path / "ledger.db"
    for share in ("20%", "30%"):
        own.patch(share=share)
    old = start("old", store=store)
    settled(old, 3)
    old.predict(NAMES, [["a", "小米", "MI 2"]])
    assert old.stop() == 0
    # As after a cluster was made anew, with the database of the last one.
    own.kubectl("delete", "experiment", NAME)
    own.apply()
    new = start("new", store=store)
    wait_until(lambda: reasons(new)["champion", "stale"] == len(CUSTOMERS), 20, "the old numbers are not used")
    assert refused(new) >= 1
    own.patch(firstEpoch=3)
    settled(new, 4)
    assert reasons(new) == split("campaigns-1", 1000)


def test_an_epoch_for_another_champion_is_refused_and_never_acknowledged(own: Namespace, start: Callable[..., Server]) -> None:
    server = start(stale_after_seconds=10)
    settled(server, 1)
    own.patch(digests={"champion": "0" * 64}, share="100%")
    wait_until(lambda: refused(server) == 2, 10, "both workers refuse it")
    assert server.epoch() == 1
    assert reasons(server) == split("campaigns-1", 1000)
    # What holds now is not known to be what is wanted: in the end the champion alone is safe.
    wait_until(lambda: reasons(server)["champion", "stale"] == len(CUSTOMERS), 30, "stale")


ROLE = """
apiVersion: v1
kind: ServiceAccount
metadata: {{ name: engine }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {{ name: engine }}
rules: [{rule}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {{ name: engine }}
roleRef: {{ apiGroup: rbac.authorization.k8s.io, kind: Role, name: engine }}
subjects: [{{ kind: ServiceAccount, name: engine }}]
"""
ENGINES_RULE = "{ apiGroups: [contender.dev], resources: [experiments], resourceNames: [campaigns], verbs: [get, list, watch] }"


def test_an_engine_needs_no_more_than_to_watch_its_one_experiment(
    own: Namespace, start: Callable[..., Server], relay: Relay, tmp_path: Path
) -> None:
    own.kubectl("apply", "-f", "-", stdin=ROLE.format(rule=ENGINES_RULE))
    token = own.kubectl("create", "token", "engine").stdout.strip()
    own.kubeconfig(tmp_path / "kubeconfig", server=relay.url, token=token)
    server = start()
    settled(server, 1)
    own.patch(share="40%")
    settled(server, 2)
    config = str(own.kubeconfig(tmp_path / "engine", token=token))
    body = '{"spec":{"share":"90%"}}'
    tried = own.kubectl(
        "--kubeconfig", config, "--context", own.context, "patch", "exp", NAME, "--type=merge", "-p", body, check=False
    )
    assert "cannot patch resource" in tried.stderr
    # Rights that end are told, and the epoch ages as in any other outage.
    own.kubectl("delete", "rolebinding", "engine")
    wait_until(lambda: "cannot" in server.log.read_text(), 30, "the engine says that it may not")
