"""The epoch file between supervisor and workers."""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec

from router.epoch import ArmRange, Epoch
from router.errors import InvalidEpoch
from router.sources import CONFIRM_SECONDS, EpochFile, EpochKeeper, write_epoch_file


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


def stale(source: EpochFile) -> bool:
    assert source.current is not None
    return source.current.stale


class Clock:
    """A clock that is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_an_epoch_that_nobody_confirms_is_stale_until_somebody_does(tmp_path: Path) -> None:
    path, clock = tmp_path / "epoch.json", Clock()
    source = EpochFile(path, stale_after=10, clock=clock)
    write_epoch_file(path, epoch(1))
    assert source.refresh()
    assert source.current is not None
    clock.now += 9
    assert not source.refresh()
    assert not stale(source)
    clock.now += 2
    assert not source.refresh(), "the epoch is the same"
    assert stale(source)
    assert {each.reason for each in source.current.assign(["a", None])} == {"stale"}
    assert {each.arm for each in source.current.assign([str(n) for n in range(100)])} == {"champion"}
    assert number(source) == 1
    os.utime(path)
    assert not source.refresh()
    assert not stale(source)
    assert source.age < 10
    never = EpochFile(path, clock=clock)
    never.refresh()
    clock.now += 1e6
    never.refresh()
    assert not stale(never)


def test_a_file_is_as_old_as_its_mark_and_a_refused_one_confirms_nothing(tmp_path: Path) -> None:
    path, clock = tmp_path / "epoch.json", Clock()
    told: list[str] = []

    def accept(each: Epoch) -> None:
        if each.champion != "d1":
            raise InvalidEpoch(f"champion: nobody serves {each.champion}")

    write_epoch_file(path, epoch(1))
    os.utime(path, (0, time.time() - 30))
    source = EpochFile(path, stale_after=60, clock=clock, accept=accept, refused=lambda error: told.append(str(error)))
    assert source.refresh()
    assert 29 < source.age < 60
    write_epoch_file(path, epoch(2, "d9"))
    for _ in range(5):
        clock.now += 10
        os.utime(path)
        source.refresh()
    assert (number(source), len(told)) == (1, 1), "told once, however often the file is marked"
    assert stale(source)


class Kept:
    """A keeper on a file, and what it told."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "epoch.json"
        self.accepted: list[int] = []
        self.refused: list[str] = []
        self.keeper = EpochKeeper(
            self.path,
            "t",
            accepted=lambda each: self.accepted.append(each.epoch),
            refused=lambda error: self.refused.append(str(error)),
        )

    def age(self) -> float:
        return time.time() - self.path.stat().st_mtime


def test_numbers_only_rise_and_one_number_never_stands_for_two_contents(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    assert kept.keeper.take(epoch(3))
    assert kept.keeper.take(msgspec.structs.replace(epoch(3), at="later", actor="somebody")), "the same content"
    for other in (epoch(3, "d2"), epoch(2), epoch(2), msgspec.structs.replace(epoch(9), test="other")):
        assert not kept.keeper.take(other)
    assert kept.keeper.current == epoch(3)
    assert Epoch.from_json(kept.path.read_bytes()) == epoch(3)
    assert len(kept.refused) == 3, "each is told once"
    assert "set its spec.firstEpoch to 4" in kept.refused[0]
    assert kept.keeper.take(epoch(4, "d2"))
    assert kept.accepted == [3, 4]


def test_only_what_is_current_is_confirmed(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    kept.keeper.confirm()
    assert not kept.path.exists()
    kept.keeper.take(epoch(1))

    def confirmed() -> bool:
        os.utime(kept.path, (0, 0))
        end = time.monotonic() + 2 * CONFIRM_SECONDS
        while time.monotonic() < end:
            kept.keeper.confirm()
            if kept.age() < 60:
                return True
            time.sleep(0.02)
        return False

    assert confirmed()
    kept.keeper.take(epoch(1, "d2"))
    assert not confirmed(), "the control plane shows another epoch, which was refused"
    kept.keeper.take(epoch(1))
    assert confirmed()
    kept.keeper.outdated()
    assert not confirmed()
    kept.keeper.take(epoch(2))
    kept.path.unlink()
    end = time.monotonic() + 10
    while not kept.path.exists() and time.monotonic() < end:
        kept.keeper.confirm()
        time.sleep(0.02)
    assert Epoch.from_json(kept.path.read_bytes()) == epoch(2), "a file that somebody took away is written again"


def test_what_a_former_supervisor_left_is_taken_up_unless_it_is_of_another_test(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    write_epoch_file(kept.path, epoch(5))
    os.utime(kept.path, (0, 1000))
    kept.keeper.resume()
    assert (kept.keeper.current, kept.accepted) == (epoch(5), [5])
    assert kept.path.stat().st_mtime == 1000, "nobody has confirmed it"
    assert not kept.keeper.take(epoch(4))
    for document in (msgspec.structs.replace(epoch(5), test="other").to_json(), b"{"):
        kept.path.write_bytes(document)
        fresh = Kept(tmp_path)
        fresh.keeper.resume()
        assert fresh.keeper.current is None
        assert not fresh.path.exists()


def test_the_ledgers_newest_epoch_is_the_least_that_is_accepted(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    kept.keeper.at_least(epoch(3))
    assert not kept.keeper.take(epoch(2))
    assert kept.keeper.take(epoch(3))
    assert kept.age() < 60
    # Others have gone on: what is in the file is stale at once, until the control plane shows as much.
    kept.keeper.at_least(epoch(4, "d2"))
    assert kept.path.stat().st_mtime == 0
    kept.keeper.confirm()
    assert kept.path.stat().st_mtime == 0
    assert not kept.keeper.take(epoch(4))
    assert kept.keeper.take(epoch(4, "d2"))
    assert kept.age() < 60
