"""Customer keys as the ledger may hold them: under a secret, an HMAC stands for each key.

Invariant: without the secret nobody can tell a key from its pseudonym, and with it one key has one pseudonym everywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from router.errors import InvalidSecret

MIN_LENGTH = 32
"""Bytes. A shorter secret could be found by trial, and with it every device id there is."""
BLOCK = 64
"""Bytes of a block of SHA-256."""


def read_secret(path: Path) -> bytes:
    """Return a file's secret without the line end that editors and `openssl rand` leave. Raises InvalidSecret."""
    try:
        secret = path.read_bytes().rstrip(b"\r\n")
    except OSError as error:
        raise InvalidSecret(f"{path}: the secret of the customer keys can't be read: {error.strerror}") from None
    if len(secret) < MIN_LENGTH:
        raise InvalidSecret(
            f"{path}: the secret of the customer keys has {len(secret)} bytes; at least {MIN_LENGTH} are needed, "
            "such as `openssl rand -hex 32` makes"
        )
    return secret


def pseudonyms(secret: bytes) -> Callable[[str], str]:
    """Return what makes `router.epoch.customer_hash` of a key: HMAC-SHA-256 (RFC 2104) in hex, the secret's part done once."""
    key = (hashlib.sha256(secret).digest() if len(secret) > BLOCK else secret).ljust(BLOCK, b"\0")
    inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in key))
    outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in key))

    def pseudonym(customer: str) -> str:
        within = inner.copy()
        within.update(customer.encode())
        around = outer.copy()
        around.update(within.digest())
        return around.hexdigest()

    return pseudonym
