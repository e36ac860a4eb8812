"""Nothing answered is lost: kill -9 under load, restarts, and a drained stop."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import threading

import pytest

from harness.server import Server

NAMES = ["device_id", "phone_brand", "device_model"]


class Client(threading.Thread):
    """Sends one-row requests over one connection until the server goes away, and remembers what was answered."""

    def __init__(self, server: Server, number: int) -> None:
        super().__init__()
        self._server = server
        self._number = number
        self.leave = threading.Event()
        self.answered: list[str] = []
        self.failed = 0

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=10)
        with contextlib.closing(connection):
            self.ask(connection)

    def ask(self, connection: http.client.HTTPConnection) -> None:
        count = 0
        while not self.leave.is_set():
            key = f"client-{self._number}-{count}"
            count += 1
            body = json.dumps({"data": {"names": NAMES, "ndarray": [[key, "小米", "MI 2"]]}}).encode()
            try:
                connection.request("POST", "/api/v1.0/predictions", body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException):
                self.failed += 1
                return
            if answer.status == 200:
                self.answered.append(key)
            else:
                self.failed += 1


def under_load(server: Server, enough: int) -> list[Client]:
    clients = [Client(server, number) for number in range(4)]
    for client in clients:
        client.start()
    while sum(len(client.answered) for client in clients) < enough:
        assert all(client.is_alive() for client in clients)
    return clients


@pytest.mark.parametrize("restart", [False, True])
def test_after_kill_9_no_answered_row_is_missing(two_workers: Server, restart: bool) -> None:
    clients = under_load(two_workers, 1000)
    two_workers.kill_group()
    for client in clients:
        client.join()
    if restart:
        two_workers.start()
    recorded = [each["customer"] for each in two_workers.exposures()]
    assert len(recorded) == len(set(recorded))
    missing = {key for client in clients for key in client.answered} - set(recorded)
    assert not missing


def test_a_supervisor_killed_alone_takes_its_workers_with_it_and_the_next_one_ships_all(two_workers: Server) -> None:
    clients = under_load(two_workers, 500)
    assert two_workers.process is not None
    two_workers.process.send_signal(signal.SIGKILL)
    two_workers.process.wait(10)
    for client in clients:
        client.join(30)
        assert not client.is_alive()
    two_workers.start()
    recorded = {each["customer"] for each in two_workers.exposures()}
    assert not {key for client in clients for key in client.answered} - recorded


def test_a_stopped_server_has_shipped_everything(two_workers: Server) -> None:
    clients = under_load(two_workers, 500)
    for client in clients:
        client.leave.set()
        client.join()
    assert two_workers.stop() == 0
    assert sum(client.failed for client in clients) == 0
    assert not list((two_workers.home / "spool").glob("*.jsonl"))
    assert len(two_workers.exposures()) == sum(len(client.answered) for client in clients)
