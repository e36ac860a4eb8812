"""What a person types, with and without a server."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
from pathlib import Path

import pytest

from harness.server import CONTENDER, ROOT, Server
from router.assignment import bucket
from serving.bundle import load_manifest
from training.population import population


def contender(home: Path, *arguments: object, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CONTENDER_HOME": str(home), "COLUMNS": "200"}
    command = [str(CONTENDER), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, input=stdin, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def devices() -> str:
    """A CSV of 2,500 devices of the sample population."""
    names, rows = population(load_manifest(ROOT / "models/champion/campaigns"), 2500)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(names)
    writer.writerows(["" if value is None else value for value in row] for row in rows)
    return text.getvalue()


def test_a_file_is_scored_under_one_epoch_and_recorded(tmp_path: Path, devices: str) -> None:
    file = tmp_path / "devices.csv"
    file.write_text(devices, encoding="utf-8")
    home, out = tmp_path / "home", tmp_path / "out.csv"
    done = contender(home, "predict", "--devices", file, "--out", out, "--batch", 1000)
    assert done.returncode == 0, done.stderr
    assert "2500 rows" in done.stderr
    keys = [row["device_id"] for row in csv.DictReader(io.StringIO(devices))]
    answers = list(csv.DictReader(io.StringIO(out.read_text(encoding="utf-8"))))
    assert [row["device_id"] for row in answers] == keys
    assert [row["arm"] for row in answers] == [
        "challenger" if bucket("campaigns-1", key) < 1000 else "champion" for key in keys
    ]
    told = contender(home, "exposures").stdout.splitlines()
    assert [json.loads(line)["customer"] for line in told] == keys
    from_stdin = contender(home, "predict", "--devices", "-", "--no-record", stdin=devices)
    assert from_stdin.stdout == out.read_text(encoding="utf-8")
    assert len(contender(home, "exposures", "--format", "csv").stdout.splitlines()) == 2501


def test_a_row_that_is_wrong_is_named_and_earlier_batches_stand(tmp_path: Path) -> None:
    text = "device_id,phone_brand,device_model,median_lat\n1,a,b,1\n2,a,b,north\n"
    done = contender(tmp_path, "predict", "--devices", "-", "--batch", 1, stdin=text)
    assert done.returncode == 1
    assert "median_lat" in done.stderr
    assert "1 rows were answered" in done.stderr
    assert len(done.stdout.splitlines()) == 2


def test_a_table_is_a_look_and_records_nothing(tmp_path: Path) -> None:
    done = contender(tmp_path, "table", "--count", 50)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("│")]
    assert len(rows) == 50
    assert contender(tmp_path, "table", "--count", 50).stdout == done.stdout
    assert contender(tmp_path, "exposures").stdout == ""


def test_the_demo_shows_the_split_of_a_running_server(server: Server) -> None:
    done = server.contender("demo", "--url", server.url, "--customers", 3000)
    assert done.returncode == 0, done.stderr
    counted = {line.split("│")[2].strip(): int(line.split("│")[3]) for line in done.stdout.splitlines() if "│" in line}
    served = [each["served"] for each in server.exposures()]
    assert counted == {arm: served.count(arm) for arm in ("champion", "challenger")}
    assert sum(counted.values()) == 3000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["share"], "no ledger here"),
        (["exposures", "--since", "yesterday"], "no ledger here"),
        (["predict", "--devices", "/nowhere.csv"], "/nowhere.csv"),
        (["demo", "--url", "http://127.0.0.1:1"], "is the server running"),
        (["demo", "--url", "ftp://x"], "ftp://x"),
        (["example", "weather"], "no use case 'weather'; known: campaigns"),
        (["train", "weather", "--data", "."], "known: campaigns"),
        (["serve", "no-such-file.yaml"], "no-such-file.yaml"),
        (["lint", "README.md"], "README.md"),
    ],
)
def test_an_error_is_one_clear_line_and_an_exit_code(tmp_path: Path, arguments: list[str], said: str) -> None:
    done = contender(tmp_path, *arguments)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_lint_names_every_fault_of_a_graph(tmp_path: Path) -> None:
    text = (ROOT / "manifests/base/seldondeployment.yaml").read_text(encoding="utf-8")
    graph = tmp_path / "graph.yaml"
    graph.write_text(text.replace("type: MODEL", "type: MODLE", 1).replace("name: challenger", "name: champion", 1), "utf-8")
    done = contender(tmp_path, "lint", graph)
    assert done.returncode == 1
    assert "MODLE" in done.stderr
    assert "'champion' is taken" in done.stderr
