"""Clients that send one request after the other over connections kept open, and remember what became of each."""

from __future__ import annotations

import http.client
import json
import threading
import time
from typing import Any

from harness.server import PREDICTIONS, Server

NAMES = ["device_id", "phone_brand", "device_model"]


class Client(threading.Thread):
    """Sends one-row requests until told to leave, or until a new connection is refused.

    `answered` maps the key of each complete answer to the arm that served. A request that was sent and got no complete
    answer is `broken`; an answer other than 200 is `failed`.
    """

    def __init__(self, server: Server, number: int, *, go_on: bool = False) -> None:
        """With `go_on` the client connects again after a broken connection."""
        super().__init__()
        self._port = server.port
        self._number = number
        self._go_on = go_on
        self._connection: http.client.HTTPConnection | None = None
        self.leave = threading.Event()
        self.answered: dict[str, str] = {}
        self.failed: list[tuple[int, bytes]] = []
        self.broken: list[str] = []
        self.told_to_close = 0
        self.refused = False

    def run(self) -> None:
        count = 0
        while not self.leave.is_set() and self._connected():
            self._ask(f"client-{self._number}-{count}")
            count += 1
        if self._connection is not None:
            self._connection.close()

    def _connected(self) -> bool:
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
            try:
                self._connection.connect()
            except ConnectionError:
                self.refused = True
                return False
        return True

    def _ask(self, key: str) -> None:
        assert self._connection is not None
        body = json.dumps({"data": {"names": NAMES, "ndarray": [[key, "小米", "MI 2"]]}}).encode()
        try:
            self._connection.request("POST", PREDICTIONS, body, {"Content-Type": "application/json"})
            answer = self._connection.getresponse()
            with answer:
                # Closed even if its body is cut short, or the socket would stay open with it.
                content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self.broken.append(f"{key}: {error!r}")
            self._connection.close()
            self._connection = None
            if not self._go_on:
                self.leave.set()
            return
        if answer.status == 200:
            parsed: dict[str, Any] = json.loads(content)
            self.answered[key] = parsed["data"]["ndarray"][0][1]
        else:
            self.failed.append((answer.status, content))
        if answer.getheader("connection") == "close":
            self.told_to_close += 1
            self._connection.close()
            self._connection = None


class Load:
    """Several clients at once."""

    def __init__(self, server: Server, clients: int, *, go_on: bool = False) -> None:
        self.clients = [Client(server, number, go_on=go_on) for number in range(clients)]
        for client in self.clients:
            client.start()

    @property
    def answered(self) -> dict[str, str]:
        """Return the arm that served, by customer."""
        return {key: arm for client in self.clients for key, arm in list(client.answered.items())}

    @property
    def broken(self) -> list[str]:
        return [each for client in self.clients for each in client.broken]

    @property
    def failed(self) -> list[tuple[int, bytes]]:
        return [each for client in self.clients for each in client.failed]

    def wait_answers(self, more: int) -> None:
        """Wait until so many more requests were answered."""
        wanted = len(self.answered) + more
        end = time.monotonic() + 60
        while len(self.answered) < wanted:
            assert time.monotonic() < end, f"{len(self.answered)} of {wanted} answers came"
            assert any(client.is_alive() for client in self.clients), self.broken
            time.sleep(0.01)

    def end(self) -> None:
        """Let each client finish its request and leave."""
        for client in self.clients:
            client.leave.set()
        self.join()

    def join(self) -> None:
        for client in self.clients:
            client.join(60)
            assert not client.is_alive()
