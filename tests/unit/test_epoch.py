"""Epochs: what may be one, and what the next one may change."""

from __future__ import annotations

import json
from typing import Any

import pytest

from router.epoch import ArmRange, Epoch, Holdout
from router.errors import InvalidEpoch


def make(**changes: Any) -> Epoch:
    content: dict[str, Any] = {
        "test": "campaigns",
        "epoch": 1,
        "salt": "campaigns-1",
        "arms": {"challenger": ArmRange(0, 1000, "d2")},
        "champion": "d1",
        "actor": "ann",
        "reason": "",
        "at": "2026-01-01T00:00:00Z",
    }
    return Epoch(**{**content, **changes})


def test_the_record_has_the_design_s_fields_and_comes_back_equal() -> None:
    epoch = make(holdout=Holdout("h", 100), pins={"ab": "challenger"})
    record = json.loads(epoch.to_json())
    assert record["arms"] == {"challenger": {"from": 0, "to": 1000, "digest": "d2"}}
    assert record["holdout"] == {"salt": "h", "to": 100}
    assert Epoch.from_json(epoch.to_json()) == epoch


def test_a_ramp_moves_the_range_s_end_only() -> None:
    epoch = make()
    following = epoch.next(actor="bob", reason="ramp", at="", arms=epoch.with_share("challenger", 2500))
    assert following.epoch == 2
    assert following.arms["challenger"] == ArmRange(0, 2500, "d2")
    assert following.share("champion") == 7500
    assert epoch.arms["challenger"].stop == 1000


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"arms": {"challenger": ArmRange(5, 2)}}, "arms.challenger"),
        ({"arms": {"challenger": ArmRange(0, 10_001)}}, "10001"),
        ({"arms": {"a": ArmRange(0, 1000), "b": ArmRange(999, 2000)}}, "overlaps a"),
        ({"arms": {"champion": ArmRange(0, 1)}}, "champion"),
        ({"epoch": 0}, "epoch"),
        ({"test": ""}, "test"),
        ({"pins": {"ab": "third"}}, "third"),
        ({"holdout": Holdout("h", -1)}, "holdout.to"),
    ],
)
def test_an_invalid_epoch_can_not_be_made(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidEpoch, match=said):
        make(**changes)


@pytest.mark.parametrize("document", [b"", b"{}", b"[]", b'{"test": 1}', make().to_json().replace(b'"to":1000', b'"to":-1')])
def test_a_broken_record_is_refused(document: bytes) -> None:
    with pytest.raises(InvalidEpoch):
        Epoch.from_json(document)


def test_ranges_may_touch_and_an_empty_one_may_stand_anywhere() -> None:
    epoch = make(arms={"a": ArmRange(0, 1000), "b": ArmRange(1000, 1500), "c": ArmRange(500, 500)})
    assert epoch.share("champion") == 8500
    with pytest.raises(InvalidEpoch, match="overlaps"):
        epoch.with_share("a", 1001)
