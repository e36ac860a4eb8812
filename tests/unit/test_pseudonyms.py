"""Pseudonyms of customer keys: the standard's HMAC, and a secret that is one."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.epoch import customer_hash
from router.errors import InvalidSecret
from router.pseudonyms import pseudonyms, read_secret

SECRET = b"0123456789abcdef0123456789abcdef"


@settings(deadline=None)
@given(st.binary(min_size=32, max_size=200), st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
def test_a_pseudonym_is_the_standard_hmac_of_secrets_of_any_length(secret: bytes, key: str) -> None:
    made = pseudonyms(secret)
    expected = hmac.new(secret, key.encode(), hashlib.sha256).hexdigest()
    assert made(key) == made(key) == customer_hash(key, secret) == expected


def test_a_known_vector() -> None:
    """RFC 4231, case 6: a key longer than a block."""
    made = pseudonyms(b"\xaa" * 131)
    assert made("Test Using Larger Than Block-Size Key - Hash Key First") == (
        "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"
    )


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_a_secret_is_read_without_its_line_end(tmp_path: Path, end: bytes) -> None:
    path = tmp_path / "secret"
    path.write_bytes(SECRET + end)
    assert read_secret(path) == SECRET


def test_a_short_secret_is_refused_with_its_length_and_what_would_do(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(SECRET[:31] + b"\n")
    with pytest.raises(InvalidSecret, match=r"secret: .* has 31 bytes; at least 32 are needed, such as `openssl rand"):
        read_secret(path)


def test_a_secret_that_can_not_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidSecret, match=r"missing: .* can't be read: No such file"):
        read_secret(tmp_path / "missing")
    with pytest.raises(InvalidSecret, match="Is a directory"):
        read_secret(tmp_path)
