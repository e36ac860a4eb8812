"""Seldon's messages as its protobuf schema allows them in JSON, which decides how the stock executor routes.

A router's answer and a client's feedback are read strictly: one unknown field, or a float where the schema has an integer,
and the routing in it doesn't count. Invariant: `conforms` never changes what it is given.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[Any], bool]

_INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")
_REAL = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
FLOAT32_MAX = 3.4028235677973366e38
_DOUBLE_MAX = 1.7976931348623157e308


def _anything(value: Any) -> bool:
    return True


def _nothing(value: Any) -> bool:
    return False


def _text(value: Any) -> bool:
    return type(value) is str


def _boolean(value: Any) -> bool:
    return type(value) is bool


def _array(value: Any) -> bool:
    return type(value) is list


def _integer(bits: int, *, signed: bool = True) -> Check:
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)

    def check(value: Any) -> bool:
        if type(value) is str and _INTEGER.fullmatch(value.strip()) and len(value) < 30:
            value = int(value)
        return type(value) is int and low <= value <= high

    return check


def _real(limit: float) -> Check:
    def check(value: Any) -> bool:
        if type(value) is str:
            if value in ("NaN", "Infinity", "-Infinity"):
                return True
            if not _REAL.fullmatch(value.strip()):
                return False
            value = float(value)
        return type(value) in (int, float) and -limit <= value <= limit

    return check


def _bytes(value: Any) -> bool:
    if type(value) is not str:
        return False
    try:
        base64.b64decode(value.replace("\r", "").replace("\n", "").encode(), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        return False
    return True


def _one_of(*names: str) -> Check:
    """Return the check of an enumeration: a name, or any number."""
    number = _integer(32)

    def check(value: Any) -> bool:
        return value in names if type(value) is str else number(value)

    return check


def _list(of: Check) -> Check:
    return lambda value: type(value) is list and all(each is None or of(each) for each in value)


def _map(of: Check) -> Check:
    return lambda value: type(value) is dict and all(each is None or of(each) for each in value.values())


def _message(fields: Mapping[str, Check]) -> Check:
    """Return the check of an object with these fields and no other; null stands for an absent one."""

    def check(value: Any) -> bool:
        if type(value) is not dict:
            return False
        for name, each in value.items():
            field = fields.get(name)
            if field is None or not (each is None or field(each)):
                return False
        return True

    return check


def _with_snake_case(fields: Mapping[str, Check]) -> dict[str, Check]:
    """Add the names that TensorFlow's own schema has, which are accepted beside their JSON names."""
    return {**fields, **{re.sub("([A-Z])", lambda m: "_" + m[1].lower(), name): check for name, check in fields.items()}}


_INT32, _INT64, _UINT64 = _integer(32), _integer(64), _integer(64, signed=False)
_FLOAT, _DOUBLE = _real(FLOAT32_MAX), _real(_DOUBLE_MAX)

_TENSOR_TYPES = [
    "FLOAT",
    "DOUBLE",
    "INT32",
    "UINT8",
    "INT16",
    "INT8",
    "STRING",
    "COMPLEX64",
    "INT64",
    "BOOL",
    "QINT8",
    "QUINT8",
    "QINT32",
    "BFLOAT16",
    "QINT16",
    "QUINT16",
    "UINT16",
    "COMPLEX128",
    "HALF",
    "RESOURCE",
    "VARIANT",
    "UINT32",
    "UINT64",
]
_DATA_TYPE = _one_of("DT_INVALID", *(f"DT_{name}{suffix}" for name in _TENSOR_TYPES for suffix in ("", "_REF")))
_TENSOR_SHAPE = _message(_with_snake_case({"dim": _list(_message({"size": _INT64, "name": _text})), "unknownRank": _boolean}))
_RESOURCE = _message(
    _with_snake_case(
        {
            "device": _text,
            "container": _text,
            "name": _text,
            "hashCode": _UINT64,
            "maybeTypeName": _text,
            "dtypesAndShapes": _list(_message(_with_snake_case({"dtype": _DATA_TYPE, "shape": _TENSOR_SHAPE}))),
        }
    )
)


def _tensor(value: Any) -> bool:
    """Check TensorFlow's TensorProto, which may hold others within its variants."""
    return _TENSOR_PROTO(value)


_VARIANT = _message(_with_snake_case({"typeName": _text, "metadata": _bytes, "tensors": _list(_tensor)}))
_TENSOR_PROTO = _message(
    _with_snake_case(
        {
            "dtype": _DATA_TYPE,
            "tensorShape": _TENSOR_SHAPE,
            "versionNumber": _INT32,
            "tensorContent": _bytes,
            "halfVal": _list(_INT32),
            "floatVal": _list(_FLOAT),
            "doubleVal": _list(_DOUBLE),
            "intVal": _list(_INT32),
            "stringVal": _list(_bytes),
            "scomplexVal": _list(_FLOAT),
            "int64Val": _list(_INT64),
            "boolVal": _list(_boolean),
            "dcomplexVal": _list(_DOUBLE),
            "resourceHandleVal": _list(_RESOURCE),
            "variantVal": _list(_VARIANT),
            "uint32Val": _list(_integer(32, signed=False)),
            "uint64Val": _list(_UINT64),
        }
    )
)
_METRIC = _message({"key": _text, "type": _one_of("COUNTER", "GAUGE", "TIMER"), "value": _FLOAT, "tags": _map(_text)})
_META = _message(
    {
        "puid": _text,
        "tags": _map(_anything),
        "routing": _map(_INT32),
        "requestPath": _map(_text),
        "metrics": _list(_METRIC),
    }
)
_STATUS = _message({"code": _INT32, "info": _text, "reason": _text, "status": _one_of("SUCCESS", "FAILURE")})
_DATA = _message(
    {
        "names": _list(_text),
        "tensor": _message({"shape": _list(_INT32), "values": _list(_DOUBLE)}),
        "ndarray": _array,
        "tftensor": _tensor,
    }
)
_SELDON_MESSAGE = _message(
    {
        "status": _STATUS,
        "meta": _META,
        "data": _DATA,
        "binData": _bytes,
        "strData": _text,
        "jsonData": _anything,
        # A protobuf Any: of its type URLs none carries a route, so it isn't looked into.
        "customData": _nothing,
    }
)
_FEEDBACK = _message({"request": _SELDON_MESSAGE, "response": _SELDON_MESSAGE, "reward": _FLOAT, "truth": _SELDON_MESSAGE})


def is_seldon_message(value: Any) -> bool:
    """Tell whether a parsed JSON value is a SeldonMessage."""
    return _SELDON_MESSAGE(value)


def is_feedback(value: Any) -> bool:
    """Tell whether a parsed JSON value is a Feedback."""
    return _FEEDBACK(value)
