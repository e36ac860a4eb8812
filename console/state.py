"""Where a test's state is kept, as the commands change it: in a ledger, or in an Experiment of a cluster.

Invariant: every change is made on top of the one that was read, by compare-and-set, so of two writers one is told.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from console import epochs
from console.errors import CommandError
from console.home import Home
from ledger.errors import EpochConflict, LedgerError
from router.cluster import Cluster
from router.epoch import CHAMPION, Epoch
from router.errors import ChangeConflict, ClusterError
from router.resource import Resource, percent

if TYPE_CHECKING:
    from experiment.declaration import Experiment
    from ledger.store import Store

ATTEMPTS = 10
LOOK_SECONDS = 0.25


class State(Protocol):
    """One test's state. Changes raise EpochConflict or ChangeConflict if another was first, InvalidEpoch, ClusterError."""

    def current(self) -> Epoch: ...

    def set_share(self, arm: str, points: int, reason: str) -> Epoch:
        """Give an arm a share in basis points."""

    def switch(self, reason: str, **flag: bool) -> Epoch:
        """Set `kill` or `shadow`."""

    def begin_test(
        self, declared: Experiment, digests: Mapping[str, str], decision: str, reason: str, *, aa: bool = False
    ) -> Epoch:
        """Begin a new test on these bundles and rules."""

    def history(self) -> list[Epoch]:
        """Return every epoch that can be seen from here, in order."""

    def missing(self, epoch: Epoch) -> list[str]:
        """Return who serves and has not taken over this epoch, with what is known of each."""

    def note(self) -> str:
        """Return what a person should know after a change; mostly nothing."""


class LedgerState:
    """The state of a test in the ledger of a home."""

    def __init__(self, home: Home, store: Store, test: str) -> None:
        self._home = home
        self._store = store
        self._test = test

    def current(self) -> Epoch:
        return epochs.current(self._store, self._test)

    def set_share(self, arm: str, points: int, reason: str) -> Epoch:
        epoch = self.current()
        return epochs.change(self._store, epoch, reason, arms=epoch.with_share(arm, points))

    def switch(self, reason: str, **flag: bool) -> Epoch:
        return epochs.change(self._store, self.current(), reason, **flag)

    def begin_test(
        self, declared: Experiment, digests: Mapping[str, str], decision: str, reason: str, *, aa: bool = False
    ) -> Epoch:
        used = {each.salt for each in self.history()}
        return epochs.new_test(self._store, self.current(), declared, digests, decision, reason, used, aa=aa)

    def history(self) -> list[Epoch]:
        return [Epoch.from_json(document) for document in self._store.epochs(self._test)]

    def missing(self, epoch: Epoch) -> list[str]:
        if not self._home.served():
            return []
        seen = _epoch_in(_local_metrics(self._home.path / "metrics"), self._test)
        return [] if seen >= epoch.epoch else [f"the server on {self._home.path} (epoch {seen})"]

    def note(self) -> str:
        return "" if self._home.served() else f"no server runs on {self._home.path}; the next one starts with this epoch"


class ClusterState:
    """The state of a test in an Experiment."""

    def __init__(self, cluster: Cluster, name: str, *, pods: str | None = None, home: Home | None = None) -> None:
        """`pods` selects the engines' pods by label; the ledger of `home`, if it can be opened, tells the test's past."""
        self._cluster = cluster
        self._name = name
        self._pods = pods or f"seldon-app={name}-main"
        self._home = home
        self.told = ""

    def current(self) -> Epoch:
        return self._read()[0].epoch()

    def set_share(self, arm: str, points: int, reason: str) -> Epoch:
        resource, version = self._read()
        # Raises what is wrong with the arm.
        resource.epoch().with_share(arm, points)
        return self._change(resource, version, reason, share=percent(points))

    def switch(self, reason: str, **flag: bool) -> Epoch:
        resource, version = self._read()
        return self._change(resource, version, reason, **flag)

    def begin_test(
        self, declared: Experiment, digests: Mapping[str, str], decision: str, reason: str, *, aa: bool = False
    ) -> Epoch:
        resource, version = self._read()
        spec = resource.spec
        champion, against = epochs.roles(resource.epoch(), digests, spec.challenger, aa=aa)
        now = {arm: digest for arm, digest in ((CHAMPION, champion), (spec.challenger, against)) if digest}
        # In a merge patch null takes out what is no longer known.
        return self._change(
            resource,
            version,
            reason,
            run=spec.run + 1,
            digests={**dict.fromkeys(spec.digests), **now},
            decision=decision or None,
        )

    def history(self) -> list[Epoch]:
        past: list[Epoch] = []
        try:
            if self._home is not None:
                store = self._home.open_store()
                try:
                    past = [Epoch.from_json(document) for document in store.epochs(self._name)]
                finally:
                    store.close()
        except (CommandError, LedgerError) as error:
            self.told = f"only the current epoch: the ledger can't be read from here ({error})"
        current = self.current()
        return [*(each for each in past if each.epoch != current.epoch), current]

    def missing(self, epoch: Epoch) -> list[str]:
        ready = self._cluster.ready_pods(self._pods)
        if not ready:
            return [f"no pod with the label {self._pods} is ready in namespace {self._cluster.namespace}"]
        late = []
        for pod in ready:
            try:
                seen = _epoch_in(self._cluster.scrape(pod), epoch.test)
            except ClusterError as error:
                late.append(f"{pod.name} ({error})")
                continue
            if seen < epoch.epoch:
                late.append(f"{pod.name} (epoch {seen})")
        return late

    def note(self) -> str:
        return self.told

    def _read(self) -> tuple[Resource, str]:
        found, _ = self._cluster.experiments(self._name)
        if not found:
            where = f"namespace {self._cluster.namespace} of {self._cluster.context}"
            raise CommandError(f"there is no experiment {self._name!r} in {where}")
        resource = Resource.read(found[0])
        return resource, resource.metadata.resource_version

    def _change(self, resource: Resource, version: str, reason: str, **spec: Any) -> Epoch:
        note = {"epoch": resource.number + 1, "actor": epochs.actor(), "reason": reason, "at": epochs.now()}
        return Resource.read(self._cluster.change(self._name, {**spec, "change": note}, version)).epoch()


@contextmanager
def ledger_state(home: Home, test: str | None) -> Iterator[State]:
    """Open the ledger of a home. Raises CommandError, LedgerError."""
    store = home.open_store()
    try:
        yield LedgerState(home, store, home.test(store, test))
    finally:
        store.close()


@contextmanager
def cluster_state(
    name: str | None, *, namespace: str | None, context: str | None, pods: str | None = None, home: Home | None = None
) -> Iterator[State]:
    """Open the Experiment of this name, or the namespace's only one. Raises CommandError, ClusterError."""
    cluster = Cluster(context=context, namespace=namespace, user=epochs.actor())
    try:
        if name is None:
            names = sorted(each["metadata"]["name"] for each in cluster.experiments()[0])
            if len(names) != 1:
                where = f"namespace {cluster.namespace} of {cluster.context}"
                raise CommandError(f"name the experiment with --experiment; in {where} there are: {', '.join(names) or 'none'}")
            (name,) = names
        yield ClusterState(cluster, name, pods=pods, home=home)
    finally:
        cluster.close()


def insist(change: Callable[[], Epoch]) -> Epoch:
    """Make a change that holds whatever else was changed meanwhile: who comes second looks again and makes it all the same."""
    for _ in range(ATTEMPTS - 1):
        try:
            return change()
        except (EpochConflict, ChangeConflict):
            continue
    return change()


def await_everywhere(state: State, epoch: Epoch, seconds: float) -> None:
    """Return once everybody who serves has taken over the epoch. Raises CommandError naming those who have not in time."""
    end = time.monotonic() + seconds
    while missing := state.missing(epoch):
        if time.monotonic() >= end:
            raise CommandError(
                f"epoch {epoch.epoch} is set, but after {seconds:g} s not in use everywhere; missing: {'; '.join(missing)}"
            )
        time.sleep(LOOK_SECONDS)


def _epoch_in(metrics: str, test: str) -> int:
    """Return the epoch that an engine's metrics acknowledge, 0 if none."""
    found = re.search(rf'^contender_epoch\{{test="{re.escape(test)}"\}} (\S+)$', metrics, re.MULTILINE)
    return int(float(found[1])) if found else 0


def _local_metrics(folder: Path) -> str:
    """Return the metrics of a server on this machine, from its workers' own files, so that nobody need know its port."""
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(folder))  # type: ignore[no-untyped-call]
    return generate_latest(registry).decode()
