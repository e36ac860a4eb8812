"""The state folder of a server on this machine, and the ledger within it, as the commands see them."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from console.errors import CommandError

if TYPE_CHECKING:
    from ledger.store import Store


class Home:
    """The folder that CONTENDER_HOME names (default ./var), and the ledger that belongs to it."""

    def __init__(self, path: Path, store: str | None = None) -> None:
        """`store` is a path or a URL, by default what CONTENDER_STORE says, else ledger.db in the folder."""
        self.path = path
        given = os.environ.get("CONTENDER_STORE") if store is None else store
        self.ledger = given or str(path / "ledger.db")
        self.spool = path / "spool"
        self.epoch_file = path / "epoch.json"
        self._lock = path / "server.lock"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder as its one server. Raises CommandError if another server has it."""
        self.path.mkdir(parents=True, exist_ok=True)
        with self._lock.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise CommandError(f"{self.path}: another server uses this folder; stop it or set CONTENDER_HOME") from None
            os.set_inheritable(file.fileno(), False)
            yield

    def served(self) -> bool:
        """Return whether a server runs on this folder now."""
        if not self._lock.exists():
            return False
        with self._lock.open("r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def open_store(self, *, create: bool = False) -> Store:
        """Open the ledger. Raises CommandError if there is none and `create` is off."""
        from ledger.store import Store

        if create:
            self.path.mkdir(parents=True, exist_ok=True)
        elif "://" not in self.ledger and not Path(self.ledger).exists():
            raise CommandError(f"{self.ledger}: no ledger here; start `contender serve` once, or set CONTENDER_HOME")
        return Store.open(self.ledger, patient=True)

    def test(self, store: Store, named: str | None) -> str:
        """Return the test meant: the one named, or the only one there is. Raises CommandError."""
        tests = store.tests()
        if named is None and len(tests) == 1:
            return tests[0]
        if named in tests:
            return str(named)
        known = ", ".join(tests) or "none"
        raise CommandError(f"no test {named!r}; known: {known}" if named else f"name the test with --test; known: {known}")
