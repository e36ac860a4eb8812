"""The report of a campaigns bundle: the card, and the evidence in full as REPORT.md and as one self-contained report.html.

Invariant: both say the same, from the same tables; the page needs no network and no script.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from serving.bundle import Manifest
from serving.heads import MulticlassHead, RegressionHead
from training import plots
from training.card import card, count_text, decile_row, markdown_table
from training.devices import MIN_CUSTOMERS
from training.evidence import MIN_SEGMENT, Evidence, Segment, Split

REPORT, PAGE = "REPORT.md", "report.html"

STYLE = """
:root{color-scheme:light dark;--ink:#1d2327;--soft:#59636b;--rule:#d9dee2;--paper:#fff;--tone:#f4f6f7}
@media (prefers-color-scheme:dark){:root{--ink:#e8ebed;--soft:#a3adb4;--rule:#3a4349;--paper:#15191c;--tone:#1f2529}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,sans-serif}
main{max-width:78rem;margin:0 auto;padding:1.5rem 1rem 4rem}
h1{font-size:1.7rem;margin:.2rem 0;border-left:.4rem solid var(--arm);padding-left:.7rem}
h2{font-size:1.25rem;margin:2.4rem 0 .3rem}h3{font-size:1rem;margin:1rem 0 .4rem}
p{max-width:46rem;margin:.5rem 0}.soft{color:var(--soft)}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,22rem),1fr));gap:1rem 2rem;align-items:start}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.875rem;font-variant-numeric:tabular-nums;min-width:100%}
th,td{padding:.3rem .6rem;text-align:right;border-bottom:1px solid var(--rule);white-space:nowrap}
th{vertical-align:bottom;white-space:normal;color:var(--soft);font-weight:600}
th:first-child,td:first-child{text-align:left}tbody tr:hover{background:var(--tone)}
svg{width:100%;height:auto;max-width:36rem;font:12px system-ui,sans-serif}svg text{fill:var(--soft)}
svg .g{stroke:var(--rule)}svg .a{stroke:var(--soft)}nav a{margin-right:1rem}a{color:var(--arm)}
"""


@dataclass(frozen=True)
class Heading:
    """A section's title; level 2 or 3."""

    level: int
    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Grid:
    """A table: the first column names the row."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Plot:
    """A plot, for the page only: the tables beside it hold its numbers."""

    svg: str


Block = Heading | Text | Grid | Plot


def pages(manifest: Manifest, evidence: Evidence) -> dict[str, str]:
    """Return the texts of README.md, REPORT.md and report.html by name."""
    blocks = list(_blocks(manifest, evidence))
    return {"README.md": card(manifest, evidence), REPORT: _markdown(manifest, blocks), PAGE: _html(manifest, blocks)}


def _blocks(manifest: Manifest, evidence: Evidence) -> Iterator[Block]:
    source = manifest.training
    yield Text(
        f"{manifest.model}, fitted on {source.rows['devices']:,} devices, {source.rows['devices_with_events']:,} of them with "
        "usage events. Every figure is out of fold: vocabularies, encodings and models were fitted on other devices than those "
        "they are judged on, and decile edges and band weights were chosen on other folds than those they are applied to."
    )
    yield Heading(2, "All splits")
    yield from _figures(evidence)
    for each in evidence.splits.values():
        yield from _split(each, evidence.labels, plots.CHAMPION if _is_champion(manifest) else plots.CHALLENGER)
    yield Heading(2, "Youngest band")
    yield Text(_youngest(manifest, evidence))
    yield Heading(2, "Fairness by segment")
    yield Text(
        "Out of fold, all devices. A gap between segments is expected where the segments differ in truth (the columns of true "
        "shares); where the answered shares differ by much more or less than the true ones, campaigns reach these groups "
        f"unequally. Segments of fewer than {MIN_SEGMENT} devices are left out. Brands by frequency: those that together make "
        "half of all devices, the next 30 %, the rest."
    )
    yield _segments(evidence.segments, evidence.labels)


def _figures(evidence: Evidence) -> Iterator[Block]:
    names = list(next(iter(evidence.splits.values())).figures)
    head = ["split", *(name.replace("_", " ") for name in names), "calibration error"]
    rows = [
        [each.name, *(_figure(each.figures[name]) for name in names), f"{each.calibration_error:.4f}"]
        for each in evidence.splits.values()
    ]
    yield Grid(head, rows)
    yield Text(
        "Base figures are those of a model without inputs (the mean predictor, the bands' shares). The calibration error is "
        "the mean distance between predicted and seen shares of women over ten bins."
    )


def _split(each: Split, labels: Sequence[str], colour: str) -> Iterator[Block]:
    yield Heading(2, f"{each.name[0].upper()}{each.name[1:]}")
    yield Heading(3, "Calibration of the gender score")
    yield Plot(plots.reliability(each.bins, colour))
    yield Grid(
        ["bin", "devices", "predicted", "seen"],
        [[str(i), f"{n:,}", f"{p:.1%}", f"{s:.1%}"] for i, (n, p, s) in enumerate(each.bins, 1)],
    )
    yield Heading(3, "Deciles of the gender score")
    yield Plot(plots.lift([row for row in each.deciles if row[1] >= MIN_CUSTOMERS], colour))
    yield Grid(["decile", "devices", "female", "lift"], [decile_row(row) for row in each.deciles])
    yield Heading(3, "Age bands: rows are true, columns answered")
    rows = [
        [label, *(count_text(count) for count in counts.tolist()), f"{counts[i] / max(counts.sum(), 1):.1%}"]
        for i, (label, counts) in enumerate(zip(labels, each.bands, strict=True))
    ]
    total = each.bands.sum()
    answered = [f"{count / total:.1%}" for count in each.bands.sum(axis=0)]
    yield Grid(["true band", *labels, "found"], [*rows, ["share answered", *answered, f"{each.bands.trace() / total:.1%}"]])


def _segments(found: Sequence[Segment], labels: Sequence[str]) -> Grid:
    head = ["segment", "devices", "female", "mean score", "AUC", "assigned F", "assigned M"]
    head += [f"{what} {label}" for label in labels for what in ("true", "answered")]
    rows = []
    for each in found:
        bands = [share for pair in zip(each.true_bands, each.answered_bands, strict=True) for share in pair]
        shares = [each.assigned_positive, each.assigned_negative, *bands]
        auc = "–" if each.roc_auc is None else f"{each.roc_auc:.3f}"
        first = [f"{each.kind}: {each.name}", f"{each.customers:,}", f"{each.positives:.1%}", f"{each.score:.3f}", auc]
        rows.append([*first, *(f"{share:.1%}" for share in shares)])
    return Grid(head, rows)


def _youngest(manifest: Manifest, evidence: Evidence) -> str:
    whole = evidence.splits["cross_validation"].bands
    share, true = whole[:, 0].sum() / whole.sum(), whole[0].sum() / whole.sum()
    told = f"It is true of {true:.1%} of the devices and answered for {share:.1%}. "
    for head in manifest.heads:
        if isinstance(head, MulticlassHead):
            weights = ", ".join(f"{weight:g} for {label}" for label, weight in zip(head.labels, head.weights, strict=True))
            return (
                f"{told}The answered band has the greatest probability × weight ({weights}). Weights are chosen so that each "
                "band is answered about as often as it is true; for this report they were chosen on four folds and applied to "
                f"the fifth. Judging them where they were chosen would change the accuracy by {evidence.optimism:+.4f}."
            )
    return (
        f"{told}A regression draws everybody towards the mean, and its bands are cut from the unrounded age, so it hardly ever "
        "answers this band."
    )


def _is_champion(manifest: Manifest) -> bool:
    return any(isinstance(head, RegressionHead) for head in manifest.heads)


def _figure(value: int | float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _markdown(manifest: Manifest, blocks: Sequence[Block]) -> str:
    parts = [
        f"# Report: {manifest.name}\n",
        f"The same with plots: [{PAGE}]({PAGE}). The model card: [README.md](README.md).\n",
    ]
    for block in blocks:
        if isinstance(block, Heading):
            parts.append(f"{'#' * block.level} {block.text}\n")
        elif isinstance(block, Text):
            parts.append(f"{block.text}\n")
        elif isinstance(block, Grid):
            parts.append(markdown_table(block.head, block.rows))
    return "\n".join(parts)


def _html(manifest: Manifest, blocks: Sequence[Block]) -> str:
    colour = plots.CHAMPION if _is_champion(manifest) else plots.CHALLENGER
    body: list[str] = []
    paired = False
    for block in blocks:
        if paired and isinstance(block, Heading):
            body.append("</div>")
            paired = False
        if isinstance(block, Heading):
            body.append(f"<h{block.level}>{escape(block.text)}</h{block.level}>")
        elif isinstance(block, Text):
            body.append(f"<p>{escape(block.text)}</p>")
        elif isinstance(block, Plot):
            body.append(f'<div class="two">{block.svg}')
            paired = True
        else:
            body.append(_html_table(block))
    title = escape(f"Report: {manifest.name}")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}:root{{--arm:{colour}}}</style></head>\n<body><main><h1>{title}</h1>\n"
        + "\n".join(body)
        + "\n</main></body></html>\n"
    )


def _html_table(grid: Grid) -> str:
    head = "".join(f'<th scope="col">{escape(each)}</th>' for each in grid.head)
    rows = "".join("<tr>" + "".join(f"<td>{escape(each)}</td>" for each in row) + "</tr>" for row in grid.rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
