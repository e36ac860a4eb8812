"""The HTTP server process: uvicorn, told to leave the way a pod should.

Invariant: after SIGTERM nobody new is let in, whoever is inside is served, and the exit code is 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator

import uvicorn

KEEP_ALIVE_SECONDS = 65
"""Idle time before a client's connection is closed, the stock executor's; above that of common load balancers (60 s)."""

CLOSE = (b"connection", b"close")


class Server(uvicorn.Server):
    """Serves an ASGI application until SIGTERM or SIGINT.

    It then waits `delay_seconds`, still serving, so that clients and load balancers can move on, closes the listener, and
    gives the requests under way `grace_seconds`.
    """

    def __init__(
        self,
        app: Callable[..., object],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        delay_seconds: float = 0.0,
        grace_seconds: float = 15.0,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                host=host,
                port=port,
                loop="uvloop",
                http="httptools",
                ws="none",
                lifespan="off",
                access_log=False,
                log_config=None,
                log_level="warning",
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=max(1, round(grace_seconds)),
            )
        )
        self.leaving = False
        self._delay_seconds = delay_seconds

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave on a signal, instead of dying of it once everything is done, as uvicorn does."""
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self.leave)
        yield

    def announce(self) -> None:
        """Go on serving, but end each connection with its next answer, which says so by `Connection: close`."""
        if not self.leaving:
            self.leaving = True
            # uvicorn makes the headers of every answer anew each second, from the configured ones.
            self.config.encoded_headers.append(CLOSE)
            self.server_state.default_headers = [*self.server_state.default_headers, CLOSE]

    def leave(self) -> None:
        """Begin to leave; a second call ends the delay."""
        delay = 0 if self.leaving else self._delay_seconds
        self.announce()
        asyncio.get_running_loop().call_later(delay, self._close)

    def _close(self) -> None:
        self.should_exit = True
