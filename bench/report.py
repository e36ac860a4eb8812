"""What was measured, as tables: medians over the rounds, ratios between variants, and the aims met or missed.

Invariant: a figure comes from the results alone, so that the same file always gives the same report.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from bench.variants import VARIANTS

Results = dict[str, Any]

AGAINST = (
    ("documented", "(c)"),
    ("tuned-ours", "(d) ours"),
    ("tuned-stock", "(d) stock"),
    ("ceiling-1", "(e)"),
)
BEGIN, END = "<!-- figures: written by `make bench` -->", "<!-- end of figures -->"


def summarise(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one entry for each variant, rows and concurrency: the median of each figure over its valid runs."""
    groups: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
    for cell in cells:
        groups.setdefault((cell["variant"], cell["rows"], cell["concurrency"]), []).append(cell)
    summary = []
    for (variant, rows, concurrency), runs in groups.items():
        valid = [run for run in runs if not run["faults"]]
        entry: dict[str, Any] = {"variant": variant, "rows": rows, "concurrency": concurrency, "runs": len(runs)}
        entry["valid"] = len(valid)
        entry["faults"] = sorted({fault for run in runs for fault in run["faults"]})
        if valid:
            rates = [run["requests_per_second"] for run in valid]
            entry["spread"] = (max(rates) - min(rates)) / statistics.median(rates)
            for name, value in valid[0].items():
                if isinstance(value, float):
                    entry[name] = statistics.median(run[name] for run in valid)
        summary.append(entry)
    return summary


def aims(results: Results) -> list[dict[str, Any]]:
    """Return each aim, its bound, what was measured (None: it was not) and whether it is met."""

    def ratio(field: str, rows: int, concurrency: int, variant: str, other: str) -> float | None:
        mine, its = (_find(results, name, rows, concurrency, field) for name in (variant, other))
        return None if not mine or not its else mine / its

    def inverse(value: float | None) -> float | None:
        return None if value is None else 1 / value

    rate = "requests_per_second"
    rounds = [
        ("(a) ÷ (c), requests/s, 1 row, c = 8", 40, ratio(rate, 1, 8, "fused-1", "documented")),
        ("(c) ÷ (a), p50, 1 row, c = 1", 20, inverse(ratio("p50_ms", 1, 1, "fused-1", "documented"))),
        ("(a) ÷ (d) with our executor, requests/s, 1 row, c = 8", 10, ratio(rate, 1, 8, "fused-1", "tuned-ours")),
        ("(a) ÷ (d) with the stock executor, requests/s, 1 row, c = 8", 10, ratio(rate, 1, 8, "fused-1", "tuned-stock")),
        ("(a) ÷ (e), requests/s, 1 row, c = 8", 0.6, ratio(rate, 1, 8, "fused-1", "ceiling-1")),
        ("(a) ÷ (e), requests/s, 100 rows, c = 8", 0.6, ratio(rate, 100, 8, "fused-1", "ceiling-1")),
        ("ledger drain, 1-row requests, rows/s", 10_000, results["drain"]["1"]["rows_per_second"]),
        ("ledger drain, 100-row requests, rows/s", 10_000, results["drain"]["100"]["rows_per_second"]),
    ]
    found = [
        {"aim": aim, "at_least": least, "measured": at, "met": None if at is None else at >= least} for aim, least, at in rounds
    ]
    ready = results["start"].get("contender serve", {}).get("ready")
    met = None if ready is None else ready < 1.5
    return [*found, {"aim": "`contender serve` ready, seconds", "below": 1.5, "measured": ready, "met": met}]


def markdown(results: Results) -> str:
    """Return the whole report."""
    machine = results["machine"]
    libraries = ", ".join(f"{name} {version}" for name, version in machine["libraries"].items())
    lines = [
        "# Serving, side by side",
        "",
        "Written by `make bench` from `serving.json`; [docs/performance.md](../../docs/performance.md) says how to read it.",
        "",
        f"{machine['cores']} cores of {machine['processor']}, {machine['memory_gib']} GiB, Linux {machine['kernel']}, "
        f"Python {machine['python']}; {libraries}. wrk shares the cores. {results['rounds']} round(s) of "
        f"{results['seconds']:g} s a cell; medians.",
        "",
        *_notes(results),
        "## Aims",
        "",
        *table(["aim", "asked", "measured", ""], map(_aim, results["aims"])),
        "",
    ]
    for rows in (1, 100):
        lines += [f"## {rows} row{'s' if rows > 1 else ''} a request", "", *_cells(results, rows), ""]
        lines += [f"Requests/s of (a) with 1 worker as a multiple, {rows} row{'s' if rows > 1 else ''}:", ""]
        lines += [*_ratios(results, rows), ""]
    lines += ["## Start", "", *_starts(results), "", "## Ledger", "", *_ledger(results), ""]
    return "\n".join(lines) + "\n"


def figures(results: Results) -> str:
    """Return the figures for docs/performance.md: phases, growth, and what shipping costs."""
    phases = results["phases"]
    one, hundred = phases["1"], phases["100"]
    rows = ([name, f"{one[name]:.1f}", f"{hundred[name]:.0f}"] for name in one if name not in ("traced", "untraced"))
    lines = ["µs of one request within the engine, without HTTP:", ""]
    lines += table(["phase", "1 row", "100 rows"], rows)
    lines += ["", f"Without the timers: {one['untraced']:.0f} µs and {hundred['untraced']:.0f} µs.", ""]
    growth = results["rows_growth"].items()
    lines += table(["rows in the request", "µs", "µs a row"], ([n, f"{us:.0f}", f"{us / int(n):.1f}"] for n, us in growth))
    lines += [""]
    lines += table(
        ["customers", "µs an assignment"], ([f"{int(n):,}", f"{us:.2f}"] for n, us in results["customers_growth"].items())
    )
    lines += ["", *_ledger(results), ""]
    shipping = []
    for entry in results["summary"]:
        if entry["variant"].startswith("fused") and entry.get("supervisor_cpu_ms_per_request") is not None:
            whole, supervisor = entry["cpu_ms_per_request"], entry["supervisor_cpu_ms_per_request"]
            cell = [entry["variant"], str(entry["rows"]), str(entry["concurrency"]), f"{whole - supervisor:.3f}"]
            shipping.append([*cell, f"{supervisor:.3f}", f"{entry['shipping_cpu_us_per_row']:.0f}"])
    header = ["variant", "rows", "c", "workers' CPU, ms a request", "supervisor's", "shipping in all, µs a row"]
    lines += table(header, shipping)
    return "\n".join(lines)


def placed(document: str, text: str) -> str:
    """Return the document with the text in place of what stands between its two marks. Raises ValueError without them."""
    before, found, rest = document.partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not found or not closed:
        raise ValueError(f"the marks {BEGIN!r} and {END!r} are missing")
    return f"{before}{BEGIN}\n{text.strip()}\n{END}{after}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return a Markdown table; all columns but the first are right-aligned."""
    lines = [f"| {' | '.join(header)} |", f"|{'|'.join(['---', *['--:'] * (len(header) - 1)])}|"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows)]


def _find(results: Results, variant: str, rows: int, concurrency: int, field: str) -> float | None:
    for entry in results["summary"]:
        if (entry["variant"], entry["rows"], entry["concurrency"]) == (variant, rows, concurrency):
            value: float | None = entry.get(field)
            return value
    return None


def _aim(aim: dict[str, Any]) -> list[str]:
    asked = f"≥ {aim['at_least']:,}" if "at_least" in aim else f"< {aim['below']}"
    measured = "not measured" if aim["measured"] is None else f"{aim['measured']:,.2f}"
    return [aim["aim"], asked, measured, {True: "met", False: "**missed**", None: ""}[aim["met"]]]


def _cells(results: Results, rows: int) -> list[str]:
    header = [
        "",
        "c",
        "requests/s",
        "rows/s",
        "p50 ms",
        "p99 ms",
        "CPU ms/request",
        "PSS MiB",
        "RSS MiB",
        "spread",
        "rows kept",
    ]
    lines = []
    for variant in VARIANTS:
        for entry in results["summary"]:
            if entry["variant"] != variant.name or entry["rows"] != rows:
                continue
            name = f"({variant.letter}) {variant.what}"
            if not entry["valid"]:
                lines.append([name, str(entry["concurrency"]), f"invalid: {'; '.join(entry['faults'])}", *[""] * 8])
                continue
            formats = {"requests_per_second": ",.0f", "rows_per_second": ",.0f", "p50_ms": ".2f", "p99_ms": ".2f"}
            formats |= {"cpu_ms_per_request": ".3f", "pss_mib": ".0f", "rss_mib": ".0f", "spread": ".0%"}
            kept = "all" if entry.get("shipping_cpu_us_per_row") is not None else "no ledger"
            valid = "" if entry["valid"] == entry["runs"] else f" ({entry['valid']} of {entry['runs']} runs)"
            lines.append(
                [name, str(entry["concurrency"]), *(format(entry[field], how) for field, how in formats.items()), kept + valid]
            )
    return table(header, lines)


def _ratios(results: Results, rows: int) -> list[str]:
    found = []
    for other, name in AGAINST:
        line = []
        for concurrency in results["concurrency"]:
            pair = [_find(results, each, rows, concurrency, "requests_per_second") for each in ("fused-1", other)]
            line.append(f"{pair[0] / pair[1]:.2f}" if pair[0] and pair[1] else "–")
        found.append([f"of {name}", *line])
    return table(["", *(f"c = {concurrency}" for concurrency in results["concurrency"])], found)


def _starts(results: Results) -> list[str]:
    rows = []
    for name, each in results["start"].items():
        prediction = f"{each['prediction']:.2f}" if "prediction" in each else "–"
        rows.append([name, f"{each['ready']:.2f}", prediction])
    return table(["seconds from the process's start, median", "/ready", "first prediction"], rows)


def _ledger(results: Results) -> list[str]:
    number: Callable[[float], str] = "{:,.0f}".format
    lines = table(
        ["drain of a full spool", "rows", "rows/s", "CPU µs/row", "spool bytes/row"],
        (
            [
                f"{rows}-row requests, into {database}",
                number(each["rows"]),
                number(each["rows_per_second"]),
                f"{each['cpu_us_per_row']:.1f}",
                number(each["spool_bytes_per_row"]),
            ]
            for database, drains in (("SQLite", results["drain"]), ("PostgreSQL", results.get("drain_postgresql", {})))
            for rows, each in drains.items()
        ),
    )
    lines += [""]
    rows = []
    for customers, steps in results["ledger_growth"].items():
        rates = [number(step["rows_per_second"]) for step in steps]
        rows.append([number(int(customers)), *rates, number(steps[-1]["ledger_bytes_per_row"])])
    steps = next(iter(results["ledger_growth"].values()))
    header = ["inserts, by customers", *(f"rows/s after {number(step['before'])} rows" for step in steps), "ledger bytes/row"]
    return lines + table(header, rows)


def _notes(results: Results) -> list[str]:
    if not results["missing"]:
        return []
    return [*(f"- Not measured: {name}: {reason}" for name, reason in results["missing"].items()), ""]
