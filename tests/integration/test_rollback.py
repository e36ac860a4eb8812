"""`contender rollback` on this machine: it returns once the server has done it, and says so if it has not."""

from __future__ import annotations

import os
import signal
import time

from harness.clients import NAMES
from harness.server import Server


def test_a_rollback_returns_when_every_worker_has_taken_it_over(two_workers: Server) -> None:
    assert two_workers.contender("share", "100%", "--wait").returncode == 0
    assert two_workers.epoch() == 2
    done = two_workers.contender("rollback", "--reason", "too many complaints")
    assert (done.returncode, "every server has taken it over" in done.stdout) == (0, True), done.stderr
    assert two_workers.epoch() == 3
    assert two_workers.predict(NAMES, [["a", "小米", "MI 2"]])["meta"]["tags"]["arm"] == "champion"
    again = two_workers.contender("rollback")
    assert again.returncode == 0
    assert two_workers.epoch() == 3, "the share was 0% already"


def test_a_server_that_does_not_take_it_over_is_named(server: Server) -> None:
    assert server.process is not None
    os.kill(server.process.pid, signal.SIGSTOP)
    try:
        done = server.contender("rollback", "--timeout", "0.5")
        assert done.returncode == 1
        assert f"missing: the server on {server.home} (epoch 1)" in done.stderr
    finally:
        os.kill(server.process.pid, signal.SIGCONT)
    server.wait_epoch(2)
    assert server.stop() == 0
    stopped = server.contender("rollback")
    assert (stopped.returncode, "no server runs on" in stopped.stdout) == (0, True)


def test_an_epoch_that_the_ledger_no_longer_confirms_is_stale(server: Server) -> None:
    assert server.stop() == 0
    server.environment = {"CONTENDER_STALE_AFTER_SECONDS": "2"}
    server.start()
    assert server.contender("share", "100%", "--wait").returncode == 0
    assert server.process is not None
    # A supervisor that hangs: the workers go on, and nobody confirms their epoch.
    os.kill(server.process.pid, signal.SIGSTOP)

    def reason() -> bool:
        server.predict(NAMES, [["a", "小米", "MI 2"]])
        return server.metric('contender_rows_total{assigned="champion",reason="stale",served="champion"}') > 0

    end = time.monotonic() + 30
    try:
        while not reason():
            assert time.monotonic() < end, "the epoch never becomes stale"
            time.sleep(0.05)
    finally:
        os.kill(server.process.pid, signal.SIGCONT)
    while server.predict(NAMES, [["a", "小米", "MI 2"]])["meta"]["tags"]["arm"] != "challenger":
        assert time.monotonic() < end, "the epoch is not taken up again"
        time.sleep(0.05)
