"""`python -m bench`: measure everything in one run, write `bench/results/` and the figures of docs/performance.md."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import orjson

from bench import ledger, machine, profile, report, start
from bench.load import Requests
from bench.measure import measure
from bench.variants import CHAMPION, ROOT, VARIANTS, Unavailable, Variant, running, until_predicts

RESULTS = ROOT / "bench/results"
PERFORMANCE = ROOT / "docs/performance.md"
SLOW = "documented"
"""Answers some ten requests a second: twice the time gives it as steady a median."""


class Plan(NamedTuple):
    """How much is measured."""

    rounds: int
    seconds: float
    concurrency: tuple[int, ...]
    starts: int
    drained_rows: int
    grown_rows: int
    passes: int


WHOLE = Plan(3, 2, (1, 8, 32), 5, 200_000, 400_000, 200)
QUICK = Plan(1, 1, (1, 8), 1, 20_000, 20_000, 20)


def main() -> int:
    """Run the bench; the result is the exit code: 1 if a cell was invalid."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="about two minutes instead of fifteen, and coarser")
    parser.add_argument("--only", action="append", choices=[each.name for each in VARIANTS], help="only these variants")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    given = parser.parse_args()
    if shutil.which("wrk") is None:
        print("wrk is needed: apt-get install wrk", file=sys.stderr)
        return 2
    plan = QUICK if given.quick else WHOLE
    chosen = [each for each in VARIANTS if not given.only or each.name in given.only]
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        results = run(plan, chosen, Path(name))
    given.output.mkdir(parents=True, exist_ok=True)
    (given.output / "serving.json").write_bytes(orjson.dumps(results, option=orjson.OPT_INDENT_2) + b"\n")
    (given.output / "serving.md").write_text(report.markdown(results), encoding="utf-8")
    if given.output == RESULTS:
        text = report.placed(PERFORMANCE.read_text(encoding="utf-8"), report.figures(results))
        PERFORMANCE.write_text(text, encoding="utf-8")
    invalid = [entry for entry in results["summary"] if entry["faults"]]
    for entry in invalid:
        print(
            f"faults: {entry['variant']}, {entry['rows']} rows, c = {entry['concurrency']}: {entry['faults']}", file=sys.stderr
        )
    return 1 if invalid else 0


def run(plan: Plan, chosen: list[Variant], folder: Path) -> dict[str, Any]:
    """Measure, and return everything as one document."""
    requests = Requests(folder, ROOT / CHAMPION)
    missing: dict[str, str] = {}
    cells: list[dict[str, Any]] = []
    for turn in range(plan.rounds):
        # Each round begins with another variant, so that no one always runs on the machine as another left it.
        first = turn * len(chosen) // plan.rounds
        for variant in chosen[first:] + chosen[:first]:
            if variant.name not in missing:
                try:
                    cells += _round(variant, requests, plan, folder / f"{variant.name}-{turn}")
                except Unavailable as error:
                    missing[variant.name] = str(error)
                    _say(f"{variant.name}: {error}")
    _say("ledger")
    records = ledger.samples(requests, folder)
    drained = {str(n): ledger.drain(records[n], folder / f"drain-{n}", plan.drained_rows) for n in (1, 100)}
    drained_there: dict[str, dict[str, float]] = {}
    try:
        drained_there = ledger.drain_to_postgresql(records, folder, plan.drained_rows)
    except Unavailable as error:
        missing["ledger drain into PostgreSQL"] = str(error)
    grown = {
        str(customers): ledger.growth(records[100], folder / f"growth-{customers}", plan.grown_rows, customers)
        for customers in (100_000, 1_000_000)
    }
    _say("start")
    started = start.starts(folder, requests.first[1], plan.starts)
    _say("phases")
    results: dict[str, Any] = {
        "machine": machine.facts() | {"wrk": _wrk()},
        "rounds": plan.rounds,
        "seconds": plan.seconds,
        "concurrency": list(plan.concurrency),
        "missing": missing,
        "summary": report.summarise(cells),
        "start": started,
        "drain": drained,
        "drain_postgresql": drained_there,
        "ledger_growth": grown,
        "phases": profile.phases(requests, folder, repeats=plan.passes),
        "rows_growth": profile.rows_growth(folder, seconds=plan.seconds),
        "customers_growth": profile.customers_growth(),
        "cells": cells,
    }
    return results | {"aims": report.aims(results)}


def _round(variant: Variant, requests: Requests, plan: Plan, folder: Path) -> list[dict[str, Any]]:
    cells = []
    with running(variant, folder) as found:
        until_predicts(found.port, requests.first[1], found.roots)
        for rows in (1, 100):
            for concurrency in plan.concurrency:
                seconds = plan.seconds * (2 if variant.name == SLOW else 1)
                cell = measure(variant.name, found, requests, rows=rows, concurrency=concurrency, seconds=seconds)
                _say(
                    f"{variant.name}: {rows} row(s), c = {concurrency}: {cell.requests_per_second:,.1f} requests/s, "
                    f"p50 {cell.p50_ms:.2f} ms, CPU {cell.cpu_ms_per_request:.3f} ms {' '.join(cell.faults)}"
                )
                cells.append(msgspec.structs.asdict(cell))
    shutil.rmtree(folder, ignore_errors=True)
    return cells


def _wrk() -> str:
    told = subprocess.run(["wrk", "--version"], capture_output=True, text=True, check=False).stdout
    return told.split(" [")[0].strip()


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
