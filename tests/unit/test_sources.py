"""The epoch file between supervisor and workers."""

from __future__ import annotations

from pathlib import Path

from router.epoch import ArmRange, Epoch
from router.errors import InvalidEpoch
from router.sources import EpochFile, write_epoch_file


def epoch(number: int, champion: str = "d1") -> Epoch:
    arms = {"challenger": ArmRange(0, 1000)}
    return Epoch(test="t", epoch=number, salt="s", arms=arms, champion=champion, actor="", reason="", at="")


def number(source: EpochFile) -> int | None:
    return None if source.current is None else source.current.epoch.epoch


def test_a_replaced_file_is_taken_over_once(tmp_path: Path) -> None:
    path = tmp_path / "epoch.json"
    source = EpochFile(path)
    assert not source.refresh()
    assert number(source) is None
    write_epoch_file(path, epoch(1))
    assert source.refresh()
    assert not source.refresh()
    write_epoch_file(path, epoch(2))
    assert source.refresh()
    assert number(source) == 2
    assert [each.name for each in tmp_path.iterdir()] == ["epoch.json"]


def test_what_is_refused_leaves_the_last_good_epoch_and_is_told(tmp_path: Path) -> None:
    path = tmp_path / "epoch.json"
    told: list[str] = []

    def accept(each: Epoch) -> None:
        if each.champion != "d1":
            raise InvalidEpoch(f"champion: nobody serves {each.champion}")

    source = EpochFile(path, accept=accept, refused=lambda error: told.append(str(error)))
    write_epoch_file(path, epoch(1))
    assert source.refresh()
    for text in (epoch(2, "d9").to_json(), b"{", b""):
        path.write_bytes(text)
        assert not source.refresh()
    assert number(source) == 1
    assert len(told) == 3
    assert "d9" in told[0]
    path.unlink()
    assert not source.refresh()
    assert number(source) == 1
