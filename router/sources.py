"""Where an engine's current epoch comes from. Workers read one small file that the supervisor replaces atomically.

Invariant: the last good epoch stays until a newer good one arrives; a record that is refused is counted and told, never used.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from router.epoch import Epoch
from router.errors import InvalidEpoch
from router.split import Splitter


def write_epoch_file(path: Path, epoch: Epoch) -> None:
    """Replace `path` atomically, so that a reader sees the old record or the new one and nothing between."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(epoch.to_json())
        Path(name).replace(path)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise


class EpochFile:
    """The epoch in a file, re-read only when the file was replaced.

    `accept` may refuse an epoch by raising InvalidEpoch (an engine refuses a champion digest that it doesn't serve).
    """

    def __init__(
        self,
        path: Path,
        *,
        secret: bytes = b"",
        accept: Callable[[Epoch], None] = lambda epoch: None,
        refused: Callable[[InvalidEpoch], None] = lambda error: None,
    ) -> None:
        self._path = path
        self._secret = secret
        self._accept = accept
        self._refused = refused
        self._seen: tuple[int, int] | None = None
        self.current: Splitter | None = None

    def refresh(self) -> bool:
        """Take over the file's epoch if it is new and acceptable; return whether the current epoch changed.

        A missing file leaves the last epoch in place: the control plane may be down.
        """
        try:
            state = self._path.stat()
            mark = (state.st_ino, state.st_mtime_ns)
            if mark == self._seen:
                return False
            document = self._path.read_bytes()
        except FileNotFoundError:
            return False
        self._seen = mark
        try:
            epoch = Epoch.from_json(document)
            if self.current is not None and epoch == self.current.epoch:
                return False
            self._accept(epoch)
        except InvalidEpoch as error:
            self._refused(error)
            return False
        self.current = Splitter(epoch, secret=self._secret)
        return True
