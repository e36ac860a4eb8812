"""The commands on a ledger in PostgreSQL, and the care of any ledger: migrate, status, prune, forget."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from console import epochs
from harness.postgres import Postgres
from harness.records import exposures
from harness.server import CONTENDER, ROOT, Server
from ledger.days import today
from ledger.spool import Spool, segments
from ledger.store import Store
from router.epoch import Epoch, customer_hash

SECRET = "0123456789abcdef0123456789abcdef"
KEY = "a-very-personal-key-"


class Commands:
    """`contender` on one home and one store."""

    def __init__(self, home: Path, store: str = "") -> None:
        self.environment = {**os.environ, "CONTENDER_HOME": str(home), "CONTENDER_STORE": store, "COLUMNS": "200"}

    def run(self, *arguments: object, stdin: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(CONTENDER), *map(str, arguments)],
            cwd=ROOT,
            env={**self.environment, **environment},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def ok(self, *arguments: object, stdin: str | None = None, **environment: str) -> str:
        done = self.run(*arguments, stdin=stdin, **environment)
        assert done.returncode == 0, done.stderr
        return done.stdout


def dump(url: str) -> str:
    """Return every row of every table as text."""
    tables = "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND relnamespace = 'public'::regnamespace"
    with psycopg.connect(url) as connection:
        names = [name for (name,) in connection.execute(tables)]
        return "".join(str(connection.execute(f"SELECT * FROM {name}".encode()).fetchall()) for name in names)


def devices(count: int) -> str:
    return "device_id,phone_brand,device_model\n" + "".join(f"{KEY}{number},Xiaomi,MI 3\n" for number in range(count))


def test_every_command_works_on_a_ledger_in_postgresql(postgres: str, tmp_path: Path) -> None:
    there = Commands(tmp_path / "home", postgres)
    refused = there.run("predict", "--devices", "-", stdin=devices(1))
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "has no ledger yet; run `contender ledger migrate`" in refused.stderr
    assert there.ok("ledger", "migrate").endswith("schema 0001, was empty\n")
    answers = there.ok("predict", "--devices", "-", stdin=devices(500)).splitlines()
    assert len(answers) == 501
    lines = [json.loads(line) for line in there.ok("exposures").splitlines()]
    assert [line["customer"] for line in lines] == [f"{KEY}{number}" for number in range(500)]
    assert "25%" in there.ok("share", "25%")
    assert "share 25%" in there.ok("epochs")
    elsewhere = Commands(tmp_path / "another-home")
    assert len(elsewhere.ok("exposures", "--store", postgres, "--format", "csv").splitlines()) == 501
    status = json.loads(there.ok("ledger", "status", "--json"))
    assert status["tables"]["exposures"] == {
        "rows": 500,
        "partitions": 2,
        "first": f"{today()}",
        "last": status["tables"]["inputs"]["last"],
    }
    assert status["tables"]["epochs"]["rows"] == 2
    assert status["spool"]["bytes_behind"] == 0
    assert not (tmp_path / "home/ledger.db").exists()


def test_a_server_ships_into_postgresql_and_bears_that_it_goes_away(
    postgres_server: Postgres, postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONTENDER_STORE", postgres)
    with closing(Store.open(postgres)) as store:
        store.migrate()
    server = Server(tmp_path)
    server.start()
    try:
        sent = 0
        for state in ("before", "away", "back"):
            for _ in range(5):
                sent += len(
                    server.predict(
                        ["device_id", "phone_brand", "device_model"], [[f"k{sent}-{n}", "Xiaomi", "MI 3"] for n in range(20)]
                    )["data"]["ndarray"]
                )
            if state == "before":
                postgres_server.stop()
            elif state == "away":
                end = time.monotonic() + 20
                while not server.metric("contender_ledger_errors_total"):
                    assert time.monotonic() < end
                    time.sleep(0.1)
                postgres_server.start()
    finally:
        server.stop()
        server.kill_group()
    assert not segments(server.home / "spool")
    with closing(Store.open(postgres)) as store:
        assert len({each.customer for each in store.exposures()}) == sent == 300
    assert "every answered row is in the ledger" in server.log.read_text()


def test_a_server_that_can_not_ship_at_its_end_says_that_the_spool_waits(
    postgres_server: Postgres, postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONTENDER_STORE", postgres)
    with closing(Store.open(postgres)) as store:
        store.migrate()
    server = Server(tmp_path)
    server.start()
    try:
        postgres_server.stop()
        server.predict(["device_id", "phone_brand", "device_model"], [["k", "Xiaomi", "MI 3"]])
        assert server.stop() == 0
        assert "wait for the ledger, the next start ships them" in server.log.read_text()
    finally:
        postgres_server.start()
        server.kill_group()
    there = Commands(server.home, postgres)
    assert json.loads(there.ok("ledger", "status", "--json"))["spool"]["bytes_behind"] > 0
    assert len(there.ok("exposures").splitlines()) == 1


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_under_a_secret_no_key_is_in_spool_or_ledger_and_a_pin_still_holds(
    postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    secret = tmp_path / "secret"
    secret.write_text(SECRET + "\n")
    url = postgres if kind == "postgresql" else ""
    if url:
        with closing(Store.open(url)) as store:
            store.migrate()
    monkeypatch.setenv("CONTENDER_STORE", url)
    monkeypatch.setenv("CONTENDER_KEY_SECRET_FILE", str(secret))
    server = Server(tmp_path)
    server.start()
    try:
        names = ["phone_brand", "device_id", "device_model"]
        with closing(Store.open(url or server.home / "ledger.db")) as store:
            epoch = Epoch.from_json(store.current_epoch("campaigns") or b"")
            pins = {customer_hash(f"{KEY}7", SECRET.encode()): "challenger"}
            arms = epoch.with_share("challenger", 0)
            epochs.record(store, epoch.next(actor="ann", reason="a pin", at=epochs.now(), arms=arms, pins=pins))
        server.wait_epoch(2)
        answer = server.predict(names, [["Xiaomi", f"{KEY}{number}", "MI 3"] for number in range(50)])
        assert [row for row, arm in enumerate(answer["meta"]["tags"]["arm"]) if arm == "challenger"] == [7]
        server.predict(names[::2], [["Xiaomi", "MI 3"]], {"X-Customer-Key": f"{KEY}header"})
        assert [row[answer["data"]["names"].index("device_id")] for row in answer["data"]["ndarray"]][:2] == [
            f"{KEY}0",
            f"{KEY}1",
        ]
        spooled = b"".join(path.read_bytes() for path in segments(server.home / "spool"))
    finally:
        server.stop()
        server.kill_group()
    assert spooled
    assert KEY.encode() not in spooled
    there = Commands(server.home, url)
    there.ok("predict", "--devices", "-", "--out", tmp_path / "answers.csv", stdin=devices(20))
    rows = [json.loads(line) for line in there.ok("exposures").splitlines()]
    assert len(rows) == 71
    assert all(len(row["customer"]) == 64 for row in rows)
    assert [number for number, row in enumerate(rows[51:]) if row["reason"] == "pin"] == [7]
    assert {row["customer"] for row in rows[51:]} <= {row["customer"] for row in rows[:50]}, (
        "predict names them as the server does"
    )
    if url:
        assert KEY not in dump(url)
    else:
        for file in server.home.glob("ledger.db*"):
            assert KEY.encode() not in file.read_bytes()
    assert there.ok("forget", f"{KEY}3").startswith("2 exposures of this customer removed")
    assert there.ok("forget", f"{KEY}3").startswith("0 exposures")
    assert len(there.ok("exposures").splitlines()) == 69


@pytest.mark.parametrize(
    ("content", "message"), [(None, "can't be read: No such file"), ("short", "has 5 bytes; at least 32 are needed")]
)
@pytest.mark.parametrize("command", ["serve", "predict"])
def test_a_secret_that_is_none_is_refused_at_the_start(tmp_path: Path, command: str, content: str | None, message: str) -> None:
    secret = tmp_path / "secret"
    if content is not None:
        secret.write_text(content)
    options = ["--devices", "-"] if command == "predict" else ["--port", "1"]
    done = Commands(tmp_path / "home").run(command, *options, stdin=devices(1), CONTENDER_KEY_SECRET_FILE=str(secret))
    assert done.returncode == 1
    assert message in done.stderr.splitlines()[-1]


def test_prune_removes_what_is_older_than_kept(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    with closing(Store.open(home / "ledger.db")) as store:
        store.write([exposures(3), exposures(2, days_ago=20), exposures(1, days_ago=50)])
    there = Commands(home)
    refused = there.run("ledger", "prune")
    assert (refused.returncode, "CONTENDER_RETENTION_DAYS" in refused.stderr) == (1, True)
    assert there.ok("ledger", "prune", CONTENDER_RETENTION_DAYS="10").endswith("3 rows and 0 daily partitions removed\n")
    assert there.ok("ledger", "prune", "--exposures-days", "30").endswith("1 rows and 0 daily partitions removed\n")
    tables = json.loads(there.ok("ledger", "status", "--json"))["tables"]
    assert [tables[name]["rows"] for name in ("inputs", "exposures")] == [3, 5]


def test_forget_takes_what_the_spool_still_holds_too(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with closing(Store.open(home / "ledger.db")) as store:
        store.write([exposures(2)])
    spool = Spool(home / "spool")
    spool.append(exposures(2).encode())
    spool.close()
    there = Commands(home)
    assert there.ok("forget", "customer-1").startswith("2 exposures")
    assert not segments(home / "spool")
    with closing(sqlite3.connect(home / "ledger.db")) as file:
        assert file.execute("SELECT DISTINCT customer FROM exposures").fetchall() == [("customer-0",)]


def test_migrate_waits_for_a_server_that_comes(postgres_server: Postgres, postgres: str, tmp_path: Path) -> None:
    there = Commands(tmp_path / "home", postgres)
    postgres_server.stop()
    try:
        away = there.run("ledger", "migrate")
        assert (away.returncode, "refused" in away.stderr) == (1, True)
        waiting = subprocess.Popen(
            [str(CONTENDER), "ledger", "migrate", "--wait", "60"], env=there.environment, stdout=subprocess.PIPE, text=True
        )
        time.sleep(1)
    finally:
        postgres_server.start()
    assert waiting.communicate(timeout=90)[0].endswith("schema 0001, was empty\n")


def test_no_command_prints_the_password(postgres: str, tmp_path: Path) -> None:
    parts = urlsplit(postgres)
    there = Commands(tmp_path / "home", f"postgresql://postgres:the-password@{parts.hostname}:{parts.port}{parts.path}")
    done = [
        there.run("ledger", "migrate"),
        there.run("ledger", "status"),
        there.run("share"),
        there.run("ledger", "status", "--json"),
    ]
    assert [each.returncode for each in done] == [0, 0, 1, 0]
    nowhere = there.run("ledger", "status", "--store", "postgresql://ann:the-password@127.0.0.1:1/x")
    assert nowhere.returncode == 1
    said = "".join(each.stdout + each.stderr for each in [*done, nowhere])
    assert "postgresql://ann@127.0.0.1:1/x" in said
    assert "the-password" not in said
