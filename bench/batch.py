"""`python -m bench.batch`: `contender predict` beside the script that one would write instead, on the same file, in one run.

The script is this module's `script`: pandas reads the whole file, the two arms' pipelines answer by `predict_proba`, and each
device keeps its arm's answer. It records nothing and can't be resumed.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import machine

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "models"
ARMS = ("champion", "challenger")
SCRIPT = "pandas + predict_proba"


def write_devices(path: Path, count: int) -> None:
    """Write the sample population's first `count` devices as CSV."""
    from serving.bundle import load_manifest
    from training.population import stream

    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        for number, (names, rows) in enumerate(stream(load_manifest(MODELS / "champion/campaigns"), count)):
            writer.writerows([names] if number == 0 else [])
            writer.writerows(["" if value is None else value for value in row] for row in rows)


def script(source: str, target: str) -> None:
    """Answer a CSV of devices with pandas and scikit-learn."""
    import joblib
    import numpy as np
    import pandas as pd

    described = {arm: json.loads((MODELS / arm / "campaigns/model.json").read_text(encoding="utf-8")) for arm in ARMS}
    inputs = described["champion"]["inputs"]
    kinds: dict[str, Any] = {each["name"]: "str" if each["type"] == "category" else "float32" for each in inputs}
    frame = pd.read_csv(source, dtype={"device_id": "str", **kinds}, keep_default_na=False, na_values=[""])
    buckets = [
        int.from_bytes(hashlib.sha256(f"campaigns-1:{key}".encode()).digest()[:4], "big") * 10_000 >> 32
        for key in frame["device_id"]
    ]
    chosen = np.array(buckets) < 1000
    answers = pd.DataFrame({"device_id": frame["device_id"], "arm": np.where(chosen, "challenger", "champion")})
    answers["gender_score"], answers["gender_decile"], answers["age"], answers["age_band"] = np.nan, 0, np.nan, ""
    for arm, rows in (("champion", ~chosen), ("challenger", chosen)):
        manifest, pipelines = described[arm], joblib.load(MODELS / arm / "campaigns/model.joblib")
        part = frame.loc[rows]
        columns = {}
        for each in manifest["inputs"]:
            values = part[each["name"]]
            if each["type"] == "category":
                codes = values.map({name: float(code) for code, name in enumerate(each.get("categories", []))}).fillna(-1.0)
                values = codes.where(values.notna(), -2.0)
            columns[each["name"]] = values.astype("float32")
        matrix = pd.DataFrame(columns).to_numpy(np.float32)
        gender, age = manifest["heads"]
        scores = pipelines["gender"].predict_proba(matrix)[:, 1]
        answers.loc[rows, "gender_score"] = scores.astype(float)
        answers.loc[rows, "gender_decile"] = 10 - np.searchsorted(np.array(gender["edges"][::-1]), scores, side="right")
        if "weights" in age:
            bands = (pipelines["age"].predict_proba(matrix) * age["weights"]).argmax(axis=1)
        else:
            years = pipelines["age"].predict(matrix)
            answers.loc[rows, "age"] = years.astype(float)
            bands = np.searchsorted(age["edges"], years, side="left")
        answers.loc[rows, "age_band"] = np.array(age["labels"], dtype=object)[bands]
    answers["gender"] = np.select([answers["gender_decile"] <= 3, answers["gender_decile"] >= 8], ["female", "male"], "")
    campaigns = answers["gender"].map({"female": "1,2,", "male": "3,", "": ""}) + answers["age_band"].map(
        {"<=24": "4", "<=32": "5", ">32": "6"}
    )
    answers.assign(campaigns=campaigns).to_csv(target, index=False)


def timed(command: Sequence[object]) -> dict[str, float]:
    """Run a process to its end; return its seconds, its and its children's CPU seconds, and its peak memory in MB."""
    began = time.perf_counter()
    process = subprocess.Popen(list(map(str, command)), cwd=ROOT, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[0]} ended with {process.returncode}")
    cpu = usage.ru_utime + usage.ru_stime
    return {"seconds": time.perf_counter() - began, "cpu_seconds": cpu, "peak_mb": usage.ru_maxrss / 1024}


def markdown(results: Sequence[dict[str, Any]]) -> str:
    """Return the runs as a table; `times` is how often each takes the script's rows/s."""
    lines = ["| what | rows | seconds | rows/s | times | CPU µs/row | peak MB |", "|---|--:|--:|--:|--:|--:|--:|"]
    script = {each["rows"]: each["seconds"] for each in results if each["what"] == SCRIPT}
    for each in results:
        rows, seconds = each["rows"], each["seconds"]
        figures = f"{rows / seconds:,.0f} | {script[rows] / seconds:.2f} | {each['cpu_seconds'] / rows * 1e6:.1f}"
        lines.append(f"| {each['what']} | {rows:,} | {seconds:.1f} | {figures} | {each['peak_mb']:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print a Markdown table; with `--output` also write JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.batch", description=__doc__)
    parser.add_argument("--rows", type=int, action="append", help="rows of a file (100,000 and 1,000,000)")
    parser.add_argument("--output", type=Path, help="JSON file of the results")
    parser.add_argument("--script", nargs=2, metavar=("IN", "OUT"), help="only run the pandas script")
    given = parser.parse_args()
    if given.script:
        script(*given.script)
        return
    contender = Path(sys.executable).with_name("contender")
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="bench-batch-") as name:
        folder = Path(name)
        for rows in given.rows or [100_000, 1_000_000]:
            devices = folder / f"{rows}.csv"
            write_devices(devices, rows)
            predict = [contender, "predict", "--devices", devices, "--home", folder / f"home-{rows}", "--out"]
            runs = {
                SCRIPT: [sys.executable, "-m", "bench.batch", "--script", devices, folder / "script.csv"],
                "contender predict --no-record": [*predict, folder / f"{rows}-a.csv", "--no-record"],
                "contender predict --no-inputs": [*predict, folder / f"{rows}-b.csv", "--no-inputs"],
                "contender predict": [*predict, folder / f"{rows}-c.csv"],
            }
            for what, command in runs.items():
                results.append({"what": what, "rows": rows, **timed(command)})
    about = machine.facts()
    table = markdown(results)
    print(table)
    if given.output:
        told = {"machine": about, "runs": results}
        given.output.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        intro = (
            f"{about['cores']} cores of {about['processor']}, Python {about['python']}; the files are CSV, each run is alone."
        )
        text = f"# Scoring a file\n\nWritten by `make bench-batch`. {intro}\n\n{table}\n"
        given.output.with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
