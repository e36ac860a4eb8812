"""Ports for servers of tests, which nobody else takes between the choice and the server's bind."""

from __future__ import annotations

import random
import socket
import threading

# Below the range from which Linux takes the local ports of outgoing connections (32768 and up): one of those could otherwise
# get the port first.
_FIRST, _LAST = 12_000, 32_000
_taken: set[int] = set()
_lock = threading.Lock()
_chosen = random.SystemRandom()


def free_port() -> int:
    """Return a port that nobody listens on, another one at each call of this process."""
    with _lock:
        while True:
            port = _chosen.randrange(_FIRST, _LAST)
            with socket.socket() as probe:
                if port in _taken or probe.connect_ex(("127.0.0.1", port)) == 0:
                    continue
            with socket.socket() as probe:
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    continue
            _taken.add(port)
            return port
