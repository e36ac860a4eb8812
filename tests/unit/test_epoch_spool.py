"""Accepted epochs on their way to the ledger: each arrives once, and one that the spool refuses is kept and tried again."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from pathlib import Path

import pytest

from ledger.shipper import Shipper
from ledger.spool import Spool, segments
from ledger.store import Store
from router.epoch import ArmRange, Epoch
from serving.supervisor import EpochSpool


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(tmp_path / "ledger.db")
    yield opened
    opened.close()


def epoch(number: int) -> Epoch:
    arms = {"challenger": ArmRange(0, 100 * number)}
    return Epoch(test="t", epoch=number, salt="s", arms=arms, actor="anna", reason="why", at="2026-01-01T00:00:00Z")


def test_epochs_reach_the_ledger_and_their_segments_go(tmp_path: Path, store: Store) -> None:
    folder, accepted = tmp_path / "spool", queue.SimpleQueue[Epoch]()
    spool = EpochSpool(lambda: Spool(folder), accepted)
    spool.write()
    assert not folder.exists(), "nothing is made where there is nothing to write"
    for number in (1, 2):
        accepted.put(epoch(number))
    spool.write()
    accepted.put(epoch(3))
    spool.write()
    # A second replica accepts the same ones.
    accepted.put(epoch(2))
    spool.write()
    Shipper(folder, store).ship()
    assert [Epoch.from_json(document) for document in store.epochs("t")] == [epoch(1), epoch(2), epoch(3)]
    assert segments(folder) == []


def test_what_a_full_spool_refuses_is_tried_again(tmp_path: Path, store: Store, caplog: pytest.LogCaptureFixture) -> None:
    folder, accepted = tmp_path / "spool", queue.SimpleQueue[Epoch]()
    other = Spool(folder)
    other.append(b"x" * 2000)
    spool = EpochSpool(lambda: Spool(folder, max_bytes=2200), accepted)
    for number in (1, 2):
        accepted.put(epoch(number))
    for _ in range(3):
        spool.write()
    assert len(caplog.records) == 1, "it is said once"
    assert "epoch 1 is in use and not in the spool yet" in caplog.text
    other.close()
    shipper = Shipper(folder, store)
    shipper.ship()
    assert store.epochs("t") == []
    while len(store.epochs("t")) < 2:
        spool.write()
        shipper.ship()
    assert [Epoch.from_json(document).epoch for document in store.epochs("t")] == [1, 2]
