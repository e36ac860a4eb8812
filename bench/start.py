"""How long a process takes from its start to the first 200 on /ready, and to the first prediction."""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

from bench.load import PATH
from bench.variants import (
    GRAPH,
    Unavailable,
    ask,
    contender,
    free_port,
    predictor,
    process,
    stock_command,
    stock_environment,
    stock_executor,
)

LIMIT_SECONDS = 30
PAUSE_SECONDS = 0.002


def starts(folder: Path, body: bytes, times: int) -> dict[str, dict[str, float]]:
    """Return the median seconds of so many starts of each program."""
    found: dict[str, dict[str, list[float]]] = {}

    def note(name: str, **seconds: float) -> None:
        for what, value in seconds.items():
            found.setdefault(name, {}).setdefault(what, []).append(value)

    with closing(socket.create_server(("127.0.0.1", 0))) as node:
        nodes = dict.fromkeys(("campaigns", "router", "champion", "challenger"), node.getsockname()[1])
        for turn in range(times):
            log, port = folder / "start.log", free_port()
            command = contender("serve", GRAPH, "--port", port, "--home", folder / f"start-{turn}")
            note("contender serve", **_timed(command, log, port, body))
            port = free_port()
            command = contender("executor", "--http_port", port, "--log_level", "WARNING")
            note("contender executor", **_timed(command, log, port, None, {"ENGINE_PREDICTOR": predictor(nodes, ours=False)}))
            try:
                port = free_port()
                stock = [str(part) for part in stock_command(stock_executor(folder), port)]
                note("stock executor", **_timed(stock, log, port, None, stock_environment(nodes)))
            except Unavailable:
                continue
    return {name: {what: statistics.median(values) for what, values in each.items()} for name, each in found.items()}


def _timed(
    command: list[str], log: Path, port: int, body: bytes | None, environment: Mapping[str, str] | None = None
) -> dict[str, float]:
    started = time.perf_counter()
    with process(command, log, environment):
        _until(lambda: ask(port, "/ready")[0] == 200)
        seconds = {"ready": time.perf_counter() - started}
        if body is not None:
            _until(lambda: ask(port, PATH, body)[0] == 200)
            seconds["prediction"] = time.perf_counter() - started
    return seconds


def _until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < end:
        try:
            if true():
                return
        except OSError:
            pass
        time.sleep(PAUSE_SECONDS)
    raise TimeoutError(f"not ready within {LIMIT_SECONDS} s")
