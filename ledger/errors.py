"""What can go wrong between an answer and the ledger. None of it loses a record: the spool keeps what the store can't take."""

from __future__ import annotations


class LedgerError(Exception):
    """Base of the tree."""


class BrokenRecord(LedgerError):
    """A spool line that can't be read: torn, of a kind this version doesn't know, or with columns that don't fit together."""


class SpoolError(LedgerError):
    """The spool could not be written or read; the message names the file and the operating system's reason."""


class SpoolFull(SpoolError):
    """The spool is at its bound, or the disk is full. The line was not written, and no part of it stays."""


class StoreError(LedgerError):
    """The store can't be used as asked; the message says why."""


class StoreUnavailable(StoreError):
    """The store is away, locked, full or damaged for now. Nothing was written; the same call may succeed later."""


class SchemaMismatch(StoreUnavailable):
    """The database has another schema than this program's, or none yet; the message says what to do. Nothing was written."""


class EpochConflict(LedgerError):
    """Somebody else made this epoch first: the writer built on `expected`, the newest there is `found` (0: none)."""

    def __init__(self, test: str, *, expected: int, found: int) -> None:
        super().__init__(
            f"test {test}: this change was made on top of epoch {expected}, but epoch {found} is the newest; "
            "look at what changed and try again"
        )
        self.test = test
        self.expected = expected
        self.found = found
