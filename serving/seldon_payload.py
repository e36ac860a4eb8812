"""Payloads of Seldon's v1 protocol as Seldon's Python wrapper gives them to a class, and makes them of what a class returns.

Invariant: the same request, class and node give the same JSON here as under `seldon-core-microservice` 1.17.1.
Source of the conventions: Seldon Core's documentation of its Python wrapper, and its answers (tests compare them).
"""

from __future__ import annotations

import base64
import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Payload = dict[str, Any]

METRIC_TYPES = ("COUNTER", "GAUGE", "TIMER")


class Misuse(Exception):
    """What the wrapper answers as a Status JSON: `info`, its `reason`, and the HTTP status."""

    def __init__(self, info: str, reason: str = "MICROSERVICE_BAD_DATA", status: int = 400) -> None:
        super().__init__(info)
        self.reason = reason
        self.status = status


class Request(NamedTuple):
    """What a class is given of one message: an array, text, bytes or JSON; the columns' names; meta, None where absent."""

    features: Any
    names: list[str]
    meta: Payload | None


class Result(NamedTuple):
    """What a class returned, with the tags and metrics of this very call (Seldon's `SeldonResponse`)."""

    data: Any
    tags: Payload
    metrics: list[Payload]

    @classmethod
    def of(cls, returned: Any) -> Result:
        """Take a SeldonResponse apart, known by its class's name, for Seldon's package is not imported here."""
        if type(returned).__name__ == "SeldonResponse":
            return cls(returned.data, returned.tags or {}, returned.metrics or [])
        return cls(returned, {}, [])


def request_parts(message: Any) -> Request:
    """Return what a class is given of a parsed message. Raises Misuse if it holds no payload, numpy's errors."""
    if type(message) is not dict:
        raise Misuse(f"Invalid request data type: {message}")
    meta = message.get("meta")
    if "data" in message:
        data = message["data"]
        return Request(_array(data), data.get("names", []), meta)
    if "jsonData" in message:
        return Request(message["jsonData"], [], meta)
    if "strData" in message:
        return Request(message["strData"], [], meta)
    if "binData" in message:
        return Request(base64.b64decode(message["binData"]), [], meta)
    raise Misuse(f"Invalid request data type: {message}")


def feedback_parts(message: Any) -> Request:
    """Return features or truth of a feedback's part, whose numbers are floats; an empty array where it holds none."""
    data = (message or {}).get("data") or {}
    array = _array(data)
    names: list[str] = data.get("names", [])
    return Request(array.astype(np.float64) if np.issubdtype(array.dtype, np.number) else array, names, None)


def response(component: object, request: Payload, result: Result, meta: Payload | None, path: Mapping[str, str]) -> Payload:
    """Return the message that a class's result is. `meta` is passed on, the class's own tags over it; `path` is its image.

    A number array answers in the kind of the request (ndarray or tensor), other payloads in their own. Raises Misuse.
    """
    answer = _payload(component, request, result.data)
    meta = meta or {}
    tags = {**meta.get("tags", {}), **_own(component, "tags", {}), **result.tags}
    metrics = [*meta.get("metrics", []), *result.metrics]
    puid = request.get("meta", {}).get("puid")
    request_path = {**path, **meta.get("requestPath", {})}
    said = {"tags": tags, "metrics": metrics, "puid": puid, "requestPath": request_path}
    answer["meta"] = {name: value for name, value in said.items() if value}
    return answer


def measured(component: object, result: Result, method: str) -> Result:
    """Return the result with the class's metrics before its own. Raises Misuse for one that Prometheus could not take."""
    told: list[Payload] = []
    for metrics in (result.metrics, _own(component, "metrics", [])):
        if not _valid(metrics):
            raise Misuse(f"Bad metric created during request: {json.dumps(metrics)}", "MICROSERVICE_BAD_METRIC", 500)
        told = [*({**each, "tags": {**each["tags"], "method": method}} if "tags" in each else each for each in metrics), *told]
    return result._replace(metrics=told)


def takes(method: Any, argument: str) -> bool:
    """Tell whether a method takes this keyword."""
    try:
        parameters = inspect.signature(method).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(each.name == argument or each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)


def _array(data: Payload) -> Any:
    if "tensor" in data:
        return np.array(data["tensor"].get("values", [])).reshape(data["tensor"]["shape"])
    if "ndarray" in data:
        return np.array(data["ndarray"])
    if "tftensor" in data:
        raise Misuse("tftensor is not supported; send ndarray or tensor")
    return np.array([])


def _payload(component: object, request: Payload, data: Any) -> Payload:
    if isinstance(data, dict):
        return {"jsonData": data}
    if isinstance(data, bytes | bytearray):
        return {"binData": base64.b64encode(data).decode()}
    if isinstance(data, str):
        return {"strData": data}
    if not isinstance(data, np.ndarray | list):
        raise Misuse(f"Unknown data type returned as payload (must be list or np array):{data}")
    array = np.asarray(data)
    names = _class_names(component, array)
    as_tensor = "tensor" in request["data"] if "data" in request else True
    if as_tensor and np.issubdtype(array.dtype, np.number):
        return {"data": {"tensor": {"shape": array.shape, "values": array.ravel().tolist()}, "names": names}}
    return {"data": {"ndarray": data.tolist() if isinstance(data, np.ndarray) else data, "names": names}}


def _class_names(component: object, array: Any) -> Sequence[str]:
    if array.ndim < 2:
        return []
    names = getattr(component, "class_names", None)
    if names is None:
        return [f"t:{i}" for i in range(array.shape[1])]
    return list(names() if inspect.ismethod(names) else names)


def _own(component: object, method: str, default: Any) -> Any:
    found = getattr(component, method, None)
    return default if found is None else found()


def _valid(metrics: Any) -> bool:
    return type(metrics) is list and all(
        {"key", "value", "type"} <= each.keys() and each["type"] in METRIC_TYPES and isinstance(each["value"], int | float)
        for each in metrics
    )
