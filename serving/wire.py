"""JSON and response bytes as the stock executor, a Go program, reads and writes them.

Invariant: what it takes for JSON is JSON here, and what it refuses is refused, so that a graph behaves the same under both.
"""

from __future__ import annotations

import json
import math
import re
from decimal import Decimal
from typing import Any, NoReturn

import orjson

_MARKUP = {b"<": b"\\u003c", b">": b"\\u003e", b"&": b"\\u0026"}
_SEPARATORS = {"\u2028".encode(): b"\\u2028", "\u2029".encode(): b"\\u2029"}
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_LONG_NUMBER = re.compile(rb"\d{16}")
_WHITESPACE = " \t\r\n"


def _constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")


def _real(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is out of range")
    return value


def _number(text: str) -> int | float:
    """Return the double nearest to the text; whole ones below 1e21 as the integer that Go prints for them."""
    value = _real(text)
    if value.is_integer() and 0 < abs(value) < 1e21:
        return int(value) if abs(value) <= 2**53 else int(Decimal(repr(value)))
    return value


_EXACT = json.JSONDecoder(parse_constant=_constant, parse_float=_real)
_DOUBLES = json.JSONDecoder(parse_constant=_constant, parse_float=_number, parse_int=_number)


def _decode(body: bytes, decoder: json.JSONDecoder, *, whole: bool) -> Any:
    text = body.decode(errors="replace")
    start = len(text) - len(text.lstrip(_WHITESPACE))
    try:
        value, end = decoder.raw_decode(text, start)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if whole and text[end:].strip(_WHITESPACE):
        raise ValueError(f"{text[end:]!r:.20} after the JSON value")
    return value


def parse(body: bytes) -> Any:
    """Return the JSON value of the whole body. Invalid UTF-8 is replaced. Raises ValueError."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return _decode(body, _EXACT, whole=True)


def parse_first(body: bytes) -> Any:
    """Return the first JSON value of the body, whatever follows it. Raises ValueError."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return _decode(body, _EXACT, whole=False)


def parse_doubles(body: bytes) -> Any:
    """Return the JSON value of the whole body, every number rounded to a double. Raises ValueError."""
    if _LONG_NUMBER.search(body) is None:
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError:
            pass
    return _decode(body, _DOUBLES, whole=True)


def dump(value: Any) -> bytes:
    """Return the value as JSON with sorted keys."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError:
        # Integers beyond 64 bits, or text with a lone surrogate.
        text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        return _LONE_SURROGATE.sub("\ufffd", text).encode()


def is_json(body: bytes) -> bool:
    """Tell whether the whole body is one JSON value."""
    try:
        parse(body)
    except ValueError:
        return False
    return True


def escape(body: bytes) -> bytes:
    """Return the body with the characters escaped that a browser could take for markup or a line end in a script."""
    for character, escaped in _MARKUP.items():
        if character in body:
            body = body.replace(character, escaped)
    # Looking for a separator's three bytes takes fifty times as long as for its first, which few other characters have.
    if b"\xe2" in body:
        for character, escaped in _SEPARATORS.items():
            body = body.replace(character, escaped)
    return body


def sniff(body: bytes) -> str:
    """Return the content type that Go guesses for an error's body: by signature, else text unless a control byte is in it.

    The signatures are those of the WHATWG's MIME sniffing standard that an escaped body can begin with, at offset 0.
    """
    for signature, kind in _SIGNATURES:
        if body.startswith(signature):
            return kind
    return "application/octet-stream" if _BINARY.search(body, 0, 512) else "text/plain; charset=utf-8"


_BINARY = re.compile(rb"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f]")
_SIGNATURES = (
    (b"\xef\xbb\xbf", "text/plain; charset=utf-8"),
    (b"\xfe\xff", "text/plain; charset=utf-16be"),
    (b"\xff\xfe", "text/plain; charset=utf-16le"),
    (b"%PDF-", "application/pdf"),
    (b"%!PS-Adobe-", "application/postscript"),
    (b"\x1f\x8b\x08", "application/x-gzip"),
    (b"PK\x03\x04", "application/zip"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"BM", "image/bmp"),
)
