"""Where the time of a request goes within the engine, phase by phase: `python -m bench.profile`.

The phases are timed by `perf_counter` around the very functions that serve, exclusive of the phases within them. A request is
handed to the application in this process, so that HTTP is left out: the bench sees it as the rest of a worker's CPU time.
"""

from __future__ import annotations

import functools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.inprocess import Engine, engine
from bench.load import Requests, body
from bench.variants import CHAMPION, ROOT

REST = "application, engine walk, router"
ROWS = (1, 10, 100, 1_000, 10_000)
CUSTOMERS = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)


class Tracer:
    """Adds up the exclusive time of each phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inner: list[float] = []

    def reset(self) -> None:
        self.seconds.update(dict.fromkeys(self.seconds, 0.0))

    def wrap(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, timed. A phase may wrap several functions."""
        self.seconds.setdefault(phase, 0.0)
        seconds, inner, clock = self.seconds, self._inner, time.perf_counter

        @functools.wraps(function)
        def timed(*arguments: Any, **named: Any) -> Any:
            inner.append(0.0)
            started = clock()
            try:
                return function(*arguments, **named)
            finally:
                spent = clock() - started
                seconds[phase] += spent - inner.pop()
                if inner:
                    inner[-1] += spent

        return timed


@contextmanager
def traced() -> Iterator[Tracer]:
    """Time the phases of every engine that is built within."""
    from ledger.records import ExposureBatch
    from ledger.spool import Spool
    from router.split import Splitter
    from serving import messages, wire
    from serving.bundle import Bundle
    from serving.campaigns import Decider
    from serving.components import Model
    from serving.messages import Message
    from serving.metrics import Metrics
    from serving.row_router import Routed, RowRouter
    from serving.scorer import OnnxScorer
    from serving.table import Table

    phases: list[tuple[str, Any, str]] = [
        ("JSON in", messages, "_load"),
        ("payload to table", messages, "parse"),
        ("customer keys", RowRouter, "_keys"),
        ("buckets and arms", Splitter, "split"),
        ("validate and encode", Model, "check"),
        ("rows of each arm", Table, "take"),
        ("model (onnxruntime)", OnnxScorer, "scores"),
        ("scores to columns", Bundle, "answer"),
        ("arms' answers merged", Routed, "merged"),
        ("campaigns", Decider, "decide"),
        ("JSON out", Message, "body"),
        ("escaping", wire, "escape"),
        ("ledger record made", ExposureBatch, "encode"),
        ("ledger record appended", Spool, "append"),
        *(("metrics", Metrics, name) for name in ("rows", "node", "request", "breaker")),
    ]
    tracer = Tracer()
    replaced = []
    try:
        for phase, owner, name in phases:
            function = getattr(owner, name)
            whole = vars(owner).get(name)
            replaced.append((owner, name, whole))
            if isinstance(function, property):
                assert function.fget is not None
                setattr(owner, name, property(tracer.wrap(phase, function.fget)))
            else:
                setattr(owner, name, tracer.wrap(phase, function))
        yield tracer
    finally:
        for owner, name, whole in reversed(replaced):
            if whole is None:
                delattr(owner, name)
            else:
                setattr(owner, name, whole)


def phases(requests: Requests, folder: Path, *, repeats: int = 200) -> dict[str, dict[str, float]]:
    """Return for 1 and 100 rows the microseconds of each phase of one request, the whole, and the whole untraced."""
    found: dict[str, dict[str, float]] = {}
    for rows, count in ((1, 20), (100, 5)):
        bodies = requests.bodies(rows)[:count]
        with engine(_folder(folder)) as plain:
            untraced = plain.seconds(bodies, repeats) * 1e6
        with traced() as tracer, engine(_folder(folder)) as timed:
            whole, spent = min((_pass(timed, tracer, bodies) for _ in range(repeats)), key=lambda each: each[0])
        found[str(rows)] = {**spent, REST: whole - sum(spent.values()), "traced": whole, "untraced": untraced}
    return found


def _pass(timed: Engine, tracer: Tracer, bodies: list[bytes]) -> tuple[float, dict[str, float]]:
    """Return the microseconds of one request and of its phases, by one pass through the bodies."""
    whole = timed.seconds(bodies, 1, warm=0, before=tracer.reset) * 1e6
    return whole, {phase: seconds * 1e6 / len(bodies) for phase, seconds in tracer.seconds.items()}


def rows_growth(folder: Path, *, seconds: float = 1.0) -> dict[str, float]:
    """Return the microseconds of one request in the engine by its number of rows."""
    from serving.bundle import load_manifest
    from training.population import population

    names, rows = population(load_manifest(ROOT / CHAMPION), max(ROWS), seed=5)
    found = {}
    for count in ROWS:
        bodies = [body(names, rows[:count])]
        with engine(_folder(folder)) as plain:
            once = plain.seconds(bodies, 1)
            found[str(count)] = plain.seconds(bodies, max(3, int(seconds / once))) * 1e6
    return found


def customers_growth(*, keys: int = 20_000) -> dict[str, float]:
    """Return the microseconds of one assignment (key to bucket to arm) by the number of customers there are."""
    import random

    from router.epoch import ArmRange, Epoch
    from router.split import Splitter

    epoch = Epoch(
        test="t", epoch=1, salt="s", actor="", reason="", at="", arms={"challenger": ArmRange(0, 1000, "d2")}, champion="d1"
    )
    found = {}
    for customers in CUSTOMERS:
        drawn = random.Random(1)
        chosen: list[str | None] = [str(drawn.randrange(customers)) for _ in range(keys)]
        splitter, best = Splitter(epoch), float("inf")
        for _ in range(5):
            started = time.perf_counter()
            splitter.split(chosen)
            best = min(best, time.perf_counter() - started)
        found[str(customers)] = best / keys * 1e6
    return found


def _folder(parent: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=parent))


def main() -> None:
    """Print the phases of a one-row and of a hundred-row request."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = phases(Requests(folder, ROOT / CHAMPION), folder)
    print(f"{'µs per request':<34}{'1 row':>10}{'100 rows':>12}")
    for phase in found["1"]:
        print(f"{phase:<34}{found['1'][phase]:>10.1f}{found['100'][phase]:>12.1f}")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
