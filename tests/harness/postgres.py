"""A real PostgreSQL server of the tests' own, which they may stop, freeze and start again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import psycopg

from harness.ports import free_port


def programs() -> Path | None:
    """Return the folder of initdb and its siblings, the newest version's; None where PostgreSQL isn't installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]), reverse=True)
    if found:
        return found[0].parent
    initdb = shutil.which("initdb")
    return Path(initdb).parent if initdb else None


class Postgres:
    """One server on 127.0.0.1. `url` is its database `postgres`, as the superuser of that name, without a password."""

    def __init__(self, folder: Path, programs: Path, *, settings: str) -> None:
        self._folder = folder
        # PostgreSQL refuses to run as root, so root hands it to the package's own user.
        self._user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        self._control = [*self._user, str(programs / "pg_ctl"), "-D", str(folder / "data")]
        self.port = free_port()
        self._options = f"-c listen_addresses=127.0.0.1 -p {self.port} -k {folder} {settings}"
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        if self._user:
            shutil.chown(folder, "postgres")
        _quiet(*self._user, programs / "initdb", "-D", folder / "data", "-A", "trust", "-U", "postgres", "-E", "UTF8")

    def start(self) -> None:
        _quiet(*self._control, "-l", self._folder / "log", "-o", self._options, "-w", "start")

    def stop(self, mode: str = "immediate") -> None:
        """Stop it: "immediate" is a crash, "fast" ends every session with a word."""
        _quiet(*self._control, "-m", mode, "-w", "stop")

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Let every process of the server hang, as on a machine that does: connections stay, and nobody answers."""
        master = int((self._folder / "data/postmaster.pid").read_text().split()[0])
        processes = [master, *_children(master)]
        for pid in processes:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in processes:
                os.kill(pid, signal.SIGCONT)

    def database(self) -> str:
        """Make an empty database and return its URL."""
        name = f"d{uuid4().hex}"
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"postgresql://postgres@127.0.0.1:{self.port}/{name}"


@contextmanager
def running(programs: Path, *, settings: str = "-c fsync=off") -> Iterator[Postgres]:
    """Run a server in a folder of its own, both of which end with the block."""
    folder = Path(tempfile.mkdtemp(prefix="contender-postgres-"))
    try:
        server = Postgres(folder, programs, settings=settings)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _children(pid: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = status.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(after_name[1]) == pid:
            found.append(int(status.parent.name))
    return found


def _quiet(*command: object) -> None:
    """Run a program that may leave a daemon behind: output goes nowhere, or the pipe would never end."""
    nowhere = subprocess.DEVNULL
    subprocess.run(list(map(str, command)), check=True, stdout=nowhere, stderr=nowhere, cwd="/", timeout=60)
