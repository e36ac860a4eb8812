"""Real servers for the tests that need one; each is the test's own, and ends with it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.postgres import Postgres, programs, running
from harness.server import Server


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """A PostgreSQL server of this session's own. Who stops it, starts it again."""
    found = programs()
    if found is None:
        pytest.skip("PostgreSQL's initdb is missing: install the package postgresql")
    with running(found) as server:
        yield server


@pytest.fixture
def postgres(postgres_server: Postgres) -> str:
    """The URL of an empty database."""
    return postgres_server.database()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server with one worker, started."""
    with contextlib.closing(_Running(tmp_path, 1)) as running:
        yield running.server


@pytest.fixture
def two_workers(tmp_path: Path) -> Iterator[Server]:
    """A server with two workers, started."""
    with contextlib.closing(_Running(tmp_path, 2)) as running:
        yield running.server


class _Running:
    def __init__(self, folder: Path, workers: int) -> None:
        self.server = Server(folder, workers=workers)
        self.server.start()

    def close(self) -> None:
        self.server.kill_group()
