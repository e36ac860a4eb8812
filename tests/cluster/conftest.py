"""Tests of the cluster that `make kind` made; without one they are skipped, and say what is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from harness.experiments import Namespace, namespace
from harness.kube import Kube, cluster_name, missing
from harness.report import REPORT, Report


@pytest.fixture(scope="session")
def kube() -> Kube:
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    return Kube(cluster_name())


@pytest.fixture(scope="module")
def space() -> Iterator[Namespace]:
    """A namespace for Experiments of the tests' own."""
    if reason := missing():
        pytest.skip(reason)
    with namespace() as made:
        yield made


@pytest.fixture
def own(space: Namespace) -> Namespace:
    """The namespace with an Experiment fresh from Git."""
    space.kubectl("delete", "experiment", "--all")
    space.apply()
    return space


@pytest.fixture(scope="session")
def report(request: pytest.FixtureRequest, kube: Kube) -> Report:
    """Where drills put their figures; the run's last lines show them."""
    return request.config.stash.setdefault(REPORT, Report(kube))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    report = config.stash.get(REPORT, None)
    if report is not None:
        terminalreporter.section("drills")
        write: Callable[[str], None] = terminalreporter.write_line
        for line in report.lines():
            write(line)
