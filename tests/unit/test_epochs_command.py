"""What a start or a command makes of the last epoch: which test goes on, which begins, and who plays which role."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from console import epochs
from console.errors import CommandError
from experiment.declaration import Experiment, parse_declaration
from ledger.store import Store
from router.epoch import Epoch
from router.resource import API_VERSION, KIND

BOTH = {"champion": "d1", "challenger": "d2"}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(tmp_path / "ledger.db")
    yield opened
    opened.close()


def declared(salt: str = "t-1") -> Experiment:
    return parse_declaration({"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "t"}, "spec": {"salt": salt}}, "")


def new_test(store: Store, digests: dict[str, str], *, aa: bool = False) -> Epoch:
    used = {Epoch.from_json(each).salt for each in store.epochs("t")}
    return epochs.new_test(store, epochs.current(store, "t"), declared(), digests, "rules", "why", used, aa=aa)


def roles(epoch: Epoch) -> tuple[str, str]:
    return epoch.champion, epoch.arms["challenger"].digest


def test_a_restart_with_the_same_bundles_and_rules_goes_on(store: Store) -> None:
    first, _ = epochs.begin(store, declared(), BOTH, "rules")
    assert epochs.begin(store, declared(), BOTH, "rules") == (first, None)


@pytest.mark.parametrize(
    ("digests", "rules", "salt", "named"),
    [
        ({"champion": "d3", "challenger": "d2"}, "rules", "t-1", "the champion's bundle"),
        ({"champion": "d1", "challenger": "d3"}, "rules", "t-1", "the challenger's bundle"),
        (BOTH, "others", "t-1", "the rules"),
        (BOTH, "rules", "u-1", "the declared salt"),
    ],
)
def test_a_start_on_something_else_is_a_new_test(
    store: Store, digests: dict[str, str], rules: str, salt: str, named: str
) -> None:
    first, _ = epochs.begin(store, declared(), BOTH, "rules")
    second, reason = epochs.begin(store, declared(salt), digests, rules)
    assert reason == f"new test: changed {named}"
    assert roles(second) == (digests["champion"], digests["challenger"])
    assert second.salt not in ("", first.salt)
    assert second.share("challenger") == first.share("challenger")


def test_an_a_a_test_goes_on_through_restarts_and_new_bundles_until_another_test_begins(store: Store) -> None:
    epochs.begin(store, declared(), BOTH, "rules")
    aa = new_test(store, BOTH, aa=True)
    assert (roles(aa), aa.salt, aa.share("challenger")) == (("d1", "d1"), "t-2", 1000)
    assert epochs.begin(store, declared(), BOTH, "rules") == (aa, None)
    assert epochs.begin(store, declared(), {"champion": "d1", "challenger": "d9"}, "rules") == (aa, None)
    rolled, reason = epochs.begin(store, declared(), {"champion": "d5", "challenger": "d9"}, "rules")
    assert reason == "new test: changed the champion's bundle"
    assert (roles(rolled), rolled.salt) == (("d5", "d5"), "t-3")
    ruled, _ = epochs.begin(store, declared(), {"champion": "d5", "challenger": "d9"}, "others")
    assert roles(ruled) == ("d5", "d5")
    assert roles(new_test(store, {"champion": "d5", "challenger": "d9"})) == ("d5", "d9")


def test_a_promoted_champion_stays_the_champion_of_the_next_test(store: Store) -> None:
    first, _ = epochs.begin(store, declared(), BOTH, "rules")
    arm = first.arms["challenger"]
    epochs.change(store, first, "promoted", champion="d2", arms={"challenger": type(arm)(0, 0, "d1")})
    assert roles(new_test(store, BOTH)) == ("d2", "d1")
    assert roles(new_test(store, BOTH, aa=True)) == ("d2", "d2")
    assert roles(new_test(store, {"champion": "d2", "challenger": "d3"})) == ("d2", "d3")


def test_a_graph_without_bundles_goes_on_and_has_no_a_a_test(store: Store) -> None:
    first, _ = epochs.begin(store, declared(), {}, "")
    assert epochs.begin(store, declared(), {}, "") == (first, None)
    with pytest.raises(CommandError, match="A/A test needs the digest"):
        new_test(store, {}, aa=True)
