"""The customer key has one canonical form, so that one customer is one string wherever the key comes from.

Invariant: a key that could be read in two ways (a float, a boolean, an integer beyond 64 bits) is refused, never rounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from router.errors import InvalidKey, shown

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
MAX_LENGTH = 1024
"""Characters. Real keys are shorter than 100; the bound keeps a request from filling the ledger through its key."""


def canonical_key(value: object, field: str, row: int | None = None) -> str | None:
    """Return the canonical form of a parsed JSON value, or None where the customer is unknown (null or empty).

    A string stays as it is, without trimming or case folding; an integer in int64 range becomes its decimal form.
    Raises InvalidKey for everything else, naming `field` and, if given, the 0-based `row`.
    """
    if type(value) is str:
        if value == "":
            return None
        if len(value) > MAX_LENGTH:
            raise InvalidKey(f"{_where(field, row)}: the key has {len(value)} characters; at most {MAX_LENGTH} are allowed")
        if "\0" in value:
            raise InvalidKey(f"{_where(field, row)}: {shown(value)} contains U+0000, which no key may hold")
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise InvalidKey(
                    f"{_where(field, row)}: {shown(value)} contains a lone surrogate and is no Unicode text"
                ) from None
        return value
    if type(value) is int:
        if INT64_MIN <= value <= INT64_MAX:
            return str(value)
        raise InvalidKey(f"{_where(field, row)}: the integer {value} is beyond 64 bits; send the key as a string")
    if value is None:
        return None
    raise InvalidKey(
        f"{_where(field, row)}: {shown(value)} is a {_json_type(value)}; a customer key is a string or an integer"
        + (", because large ids lose digits as floats" if isinstance(value, float) else "")
    )


def canonical_keys(column: Sequence[object], field: str) -> list[str | None]:
    """Return the canonical form of each row's value, as `canonical_key` does, at once where all are plain text."""
    if len(column) > 1 and set(map(type, column)) == {str}:
        texts = cast("Sequence[str]", column)
        whole = "".join(texts)
        if whole.isascii() and "\0" not in whole and "" not in texts and max(map(len, texts)) <= MAX_LENGTH:
            return list(texts)
    return [canonical_key(value, field, row) for row, value in enumerate(column)]


def _where(field: str, row: int | None) -> str:
    return field if row is None else f"row {row}, field {field!r}"


def _json_type(value: object) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, float):
        return "floating-point number"
    return "list" if isinstance(value, list) else "object" if isinstance(value, dict) else type(value).__name__
