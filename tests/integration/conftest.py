"""Real servers for the tests that need one; each is the test's own, and ends with it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.ports import free_port
from harness.server import Server


def _postgres_programs() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)
    if found:
        return found[0].parent
    initdb = shutil.which("initdb")
    return Path(initdb).parent if initdb else None


def _quiet(*command: object) -> None:
    """Run a program that may leave a daemon behind: output goes nowhere, or the pipe would never end."""
    nowhere = subprocess.DEVNULL
    subprocess.run(list(map(str, command)), check=True, stdout=nowhere, stderr=nowhere, cwd="/", timeout=60)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The address of a PostgreSQL server of this session's own."""
    programs = _postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL's initdb is missing: install the package postgresql")
    folder = Path(tempfile.mkdtemp(prefix="contender-postgres-"))
    # PostgreSQL refuses to run as root, so root hands it to the package's own user.
    user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    if user:
        shutil.chown(folder, "postgres")
    port = free_port()
    try:
        _quiet(*user, programs / "initdb", "-D", folder / "data", "-A", "trust", "-U", "postgres", "-E", "UTF8")
        options = f"-c listen_addresses=127.0.0.1 -p {port} -k {folder} -c fsync=off"
        control = [*user, programs / "pg_ctl", "-D", folder / "data"]
        _quiet(*control, "-l", folder / "log", "-o", options, "-w", "start")
        yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
        _quiet(*control, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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
