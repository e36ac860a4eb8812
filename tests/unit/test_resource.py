"""An Experiment's document and the epoch it stands for: the same on whichever replica reads it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from experiment.declaration import DeclarationError, parse_declaration
from harness.server import ROOT
from router.epoch import ArmRange, Holdout
from router.errors import InvalidEpoch
from router.resource import API_VERSION, KIND, Resource, Spec, basis_points, percent

CRD = ROOT / "manifests/base/crd-experiment.yaml"


def writer(manager: str, time: str, *fields: str, **more: str) -> dict[str, Any]:
    spec: dict[str, Any] = {f"f:{name}": {} for name in fields}
    return {"manager": manager, "time": time, "fieldsV1": {"f:spec": spec} if fields else {"f:metadata": {}}, **more}


def document(generation: int = 1, writers: list[dict[str, Any]] | None = None, **spec: Any) -> dict[str, Any]:
    metadata = {"name": "t", "generation": generation, "resourceVersion": "7", "creationTimestamp": "2026-01-01T00:00:00Z"}
    return {
        "metadata": {**metadata, "managedFields": writers or []},
        "spec": {"salt": "s", **spec},
        "status": {"verdict": "hold"},
    }


@given(st.integers(0, 10_000))
def test_a_share_is_written_as_it_is_read(points: int) -> None:
    assert basis_points(percent(points)) == points


@pytest.mark.parametrize(
    "text", ["", "%", "25", "25 %", "-1%", "+1%", "100.01%", "1e1%", "0.125%", "25.%", ".5%", "٢٥%", "1000%"]
)
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"in steps of 0\.01%"):
        basis_points(text)


def test_the_epoch_follows_from_the_document() -> None:
    pins = {"ab" * 32: "challenger"}
    epoch = Resource.read(
        document(
            3,
            share="12.5%",
            run=2,
            kill=True,
            shadow=True,
            pins=pins,
            holdout={"salt": "h", "share": "5%"},
            digests={"champion": "d1", "challenger": "d2"},
            decision="d3",
            firstEpoch=10,
        )
    ).epoch()
    assert (epoch.test, epoch.epoch, epoch.salt) == ("t", 12, "s/2")
    assert epoch.arms == {"challenger": ArmRange(0, 1250, "d2")}
    assert (epoch.champion, epoch.decision, epoch.kill, epoch.shadow) == ("d1", "d3", True, True)
    assert (epoch.pins, epoch.holdout) == (pins, Holdout("h", 500))
    plain = Resource.read(document()).epoch()
    assert (plain.epoch, plain.salt, plain.share("challenger"), plain.champion) == (1, "s", 1000, "")


def test_who_and_why_are_the_notes_only_while_it_is_the_note_to_this_change() -> None:
    note = {"epoch": 2, "actor": "anna", "reason": "why", "at": "2026-01-02T00:00:00.5Z"}
    writers = [
        writer("kubectl-client-side-apply", "2026-01-01T00:00:00Z", "salt", "arms", "run"),
        writer("contender-anna", "2026-01-02T00:00:00Z", "change", "share"),
        writer("kubectl-annotate", "2026-01-09T00:00:00Z"),
        writer("judge", "2026-01-09T00:00:00Z", "share", subresource="status"),
    ]
    noted = Resource.read(document(2, writers, change=note)).epoch()
    assert (noted.actor, noted.reason, noted.at) == ("anna", "why", "2026-01-02T00:00:00.5Z")
    left = Resource.read(document(3, [*writers, writer("kubectl-patch", "2026-01-03T00:00:00Z", "share")], change=note)).epoch()
    assert (left.actor, left.reason, left.at) == ("kubectl-patch", "", "2026-01-03T00:00:00Z")
    without = Resource.read(document(3, writers, change={"epoch": 3, "reason": "why"})).epoch()
    assert (without.actor, without.reason, without.at) == ("anna", "why", "2026-01-02T00:00:00Z")
    # Of one second's writers the one who set less came later.
    quick = [writers[0], writer("berta", "2026-01-01T00:00:00Z", "share")]
    assert Resource.read(document(2, quick)).epoch().actor == Resource.read(document(2, quick[::-1])).epoch().actor == "berta"
    nobody = Resource.read(document(1)).epoch()
    assert (nobody.actor, nobody.at) == ("unknown", "2026-01-01T00:00:00Z")


def test_fields_of_a_newer_definition_are_left_aside_and_wrong_ones_are_named() -> None:
    assert Resource.read(document(ramp={"steps": [5, 10]})).epoch() == Resource.read(document()).epoch()
    for wrong, named in (
        ({"share": 25}, "share"),
        ({"share": "25"}, "share is '25'"),
        ({"arms": ["champion"]}, r"\[champion, NAME\] is expected"),
        ({"holdout": {"salt": "h", "share": "x"}}, "holdout.share is 'x'"),
        ({"salt": ""}, "salt is empty"),
        ({"run": 0}, "run"),
    ):
        with pytest.raises(InvalidEpoch, match=named):
            Resource.read(document(**wrong))
    with pytest.raises(InvalidEpoch, match="'other' is no arm"):
        Resource.read(document(pins={"ab": "other"})).epoch()
    with pytest.raises(InvalidEpoch):
        Resource.read({"metadata": {"name": "t"}, "spec": None})


def test_a_file_and_the_resource_have_the_same_fields_and_defaults() -> None:
    schema = yaml.safe_load(CRD.read_text(encoding="utf-8"))["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    fields = schema["properties"]["spec"]["properties"]
    known = {field.encode_name: field for field in msgspec.structs.fields(Spec)}
    assert sorted(fields) == sorted(known)
    for name, field in fields.items():
        if "default" in field:
            default = known[name].default
            assert field["default"] == (list(default) if isinstance(default, tuple) else default), name


def test_a_file_is_strict_where_the_api_server_has_already_been() -> None:
    file = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "t"}, "spec": {"salt": "s", "ramp": []}}
    with pytest.raises(DeclarationError, match="ramp"):
        parse_declaration(file, "file")
    file["spec"] = {"salt": "s", "pins": {"ab": "other"}}
    with pytest.raises(DeclarationError, match="'other' is no arm"):
        parse_declaration(file, "file")
    file["spec"] = {"salt": "s", "share": "20%", "holdout": {"salt": "h", "share": "1%"}}
    first = parse_declaration(file, "file").first_epoch(digests={"champion": "d"}, decision="r", actor="a", reason="", at="")
    assert (first.share("challenger"), first.holdout, first.champion, first.decision) == (2000, Holdout("h", 100), "d", "r")
