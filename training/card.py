"""The model card of a campaigns bundle: README.md beside the model, for people.

Invariant: every figure comes from the manifest or from out-of-fold outputs; nothing is typed in by hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from serving.bundle import Manifest, Training
from serving.heads import BinaryHead, MulticlassHead, RegressionHead
from training.devices import MIN_CUSTOMERS
from training.evaluation import Decile
from training.evidence import Evidence


def card(manifest: Manifest, evidence: Evidence) -> str:
    """Return the card as Markdown."""
    source = manifest.training
    whole = evidence.splits["cross_validation"]
    deciles = [decile_row(each) for each in whole.deciles]
    return f"""# {manifest.name}

{manifest.model}, fitted on {source.rows["devices"]:,} devices, of which
{source.rows["devices_with_events"]:,} have usage events. For each device it says how probably its owner is female
(`gender_score`, ranked into `gender_decile`), and {_age(manifest)}.
Brand and model of the phone are required, everything about usage may be missing.

It was made to choose marketing campaigns. It is no basis for anything that a person is owed or refused.

## Data

TalkingData mobile user demographics, a Kaggle competition whose terms don't allow publishing the data; none is in this folder.
The files are {" and ".join(f"`{name}`" for name in source.files)}; {_span(source)}.
`model.json` holds their SHA-256, fitted parameters, and counts of categories and values that at least 20 devices share. Rarer
brands and models are served as unknown.

## How good it is

{_metrics(evidence)}
Every vocabulary, encoding and model was fitted inside the fold, and edges and weights that are judged were chosen on
the others. The base figures are those of a model without inputs. Calibration, every split in full and fairness by segment:
[REPORT.md](REPORT.md), and with plots in [report.html](report.html).

### Score deciles

Out-of-fold, all devices. The nine shipped edges are the deciles of the out-of-fold scores, moved into the nearest gap between
the shipped model's own scores; many devices share one score, so the deciles aren't exactly equal.

{markdown_table(("decile", "devices", "female", "lift"), deciles)}
### Age bands

Out-of-fold, all devices; rows are the true band, columns the answered one.

{_bands(manifest, evidence)}
{_band_note(manifest, evidence)}

## Limits

- Brand and model say little: most devices have no usage events, and for them the scores lie close together.
- Gender is recorded as two classes. A decile is a guess about a group of similar phones, never a fact about a person.
- The youngest band is the hardest: its owners' phones differ little from those of the next band.
- The data is of one country and one week of 2016. New phones are unknown to it; compare what is served with `reference` in
  `model.json` before trusting it elsewhere, and train again when they part.
- Cheap and dear phones have different owners, so campaigns chosen by this model may reach groups of people unequally. Compare
  the campaigns' reach by group before a campaign offers something that matters.

## Train again

    contender train campaigns --data DIR --out models --seed {source.seed}

`DIR` holds the files named above. {_runtime(manifest)}
"""


def count_text(count: int) -> str:
    """Return a count of devices; a small one is not told, since it might point at somebody."""
    return f"{count:,}" if count == 0 or count >= MIN_CUSTOMERS else f"<{MIN_CUSTOMERS}"


def decile_row(row: Decile) -> list[str]:
    """Return a decile's number, devices, share of women and lift as text, without the shares of few devices."""
    decile, count, share, lift = row
    told = [f"{share:.1%}", f"{lift:.2f}"] if count >= MIN_CUSTOMERS else ["–", "–"]
    return [str(decile), count_text(count), *told]


def _age(manifest: Manifest) -> str:
    if any(isinstance(head, RegressionHead) for head in manifest.heads):
        return "its owner's age in years with the band that it falls into"
    return "its owner's age band (`age` stays empty)"


def _span(source: Training) -> str:
    if source.span is None:
        return "when the usage events happened isn't recorded"
    return f"the raw events seen are of {source.span[0]} to {source.span[1]}"


def _metrics(evidence: Evidence) -> str:
    names = list(next(iter(evidence.splits.values())).figures)
    rows = [
        (each.name, *(f"{value:,}" if isinstance(value, int) else f"{value:.4f}" for value in each.figures.values()))
        for each in evidence.splits.values()
    ]
    return markdown_table(("split", *(name.replace("_", " ") for name in names)), rows)


def _bands(manifest: Manifest, evidence: Evidence) -> str:
    head = next(head for head in manifest.heads if not isinstance(head, BinaryHead))
    rows = [
        (label, *(count_text(count) for count in counts.tolist()), f"{counts[i] / max(counts.sum(), 1):.1%}")
        for i, (label, counts) in enumerate(zip(head.labels, evidence.splits["cross_validation"].bands, strict=True))
    ]
    return markdown_table(("true band", *head.labels, "found"), rows)


def _band_note(manifest: Manifest, evidence: Evidence) -> str:
    for head in manifest.heads:
        if isinstance(head, MulticlassHead):
            weights = ", ".join(f"{weight:g} for {label}" for label, weight in zip(head.labels, head.weights, strict=True))
            return (
                "The answered band has the greatest probability × weight. The weights were chosen on out-of-fold outputs\n"
                f"so that each band is answered about as often as it is true: {weights}.\n"
                "Plain probability would hardly ever answer the youngest band, and its campaign would reach nobody.\n"
                "The table's decisions rest on weights chosen on the four other folds; judging the weights where they were\n"
                f"chosen would change the accuracy by {evidence.optimism:+.4f}."
            )
    return (
        "The band is that of the predicted age. A regression draws everybody towards the mean, so this arm hardly ever\n"
        "answers the youngest band, and its campaign reaches hardly anybody."
    )


def _runtime(manifest: Manifest) -> str:
    parity = manifest.parity
    if parity is None:
        return f"Served by {manifest.runtime}."
    return (
        f"Served by {manifest.runtime}: on {parity.rows:,} rows scikit-learn and ONNX differ by at most\n"
        f"{parity.probability:.1e} in a probability and {parity.value:.1e} in an age; {parity.decisions} decisions differ."
    )


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table in Markdown; the first column is text, the others are numbers."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)
