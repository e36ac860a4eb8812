"""Which child a router chose, as its answer, a client's feedback, or an answer's meta tells it.

Invariant: an index read here is -1 (all children), -2 (none: the request is the answer), or that of an existing child.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from serving import schema, wire
from serving.errors import BadFeedback, BadRoute
from serving.graph import GraphNode
from serving.messages import Message

ALL, NONE = -1, -2


def chosen(answer: Message, router: str, children: int) -> int:
    """Return the index in a router's answer: the first value of its first row, or of a bare JSON list of integers.

    Raises BadRoute.
    """
    body = answer.body
    try:
        value = wire.parse_first(body)
        index = _of_list(wire.parse(body)) if type(value) is list else _of_message(value)
    except ValueError as error:
        raise BadRoute(f"router {router} answered {body[:80].decode(errors='replace')!r}: {error}") from None
    return existing(index, router, children)


def existing(index: int, router: str, children: int) -> int:
    """Return the index if it is ALL, NONE or a child's. Raises BadRoute."""
    if not NONE <= index < children:
        raise BadRoute(f"router {router} chose {index}; 0 to {children - 1} is expected, {ALL} for all, {NONE} for none")
    return index


def _of_list(values: Any) -> int:
    if not values:
        raise ValueError("the list is empty; a child's index is expected")
    for value in values:
        if not (value is None or (type(value) is int and abs(value) < 2**63)):
            raise ValueError(f"{value!r} is no integer")
    return values[0] or 0


def _of_message(value: Any) -> int:
    if not schema.is_seldon_message(value):
        raise ValueError("neither a SeldonMessage nor a list of integers")
    data = value.get("data")
    if data is None or any(value.get(other) is not None for other in ("strData", "binData", "jsonData")):
        raise ValueError("data with ndarray or tensor is expected")
    if data.get("tftensor") is not None:
        return _first(data["tftensor"].get("intVal") or data["tftensor"].get("int_val"))
    if data.get("ndarray") is not None:
        return _of_ndarray(data["ndarray"])
    if data.get("tensor") is not None:
        return _first(data["tensor"].get("values"))
    return ALL


def _of_ndarray(rows: list[Any]) -> int:
    if not rows or any(row == [] for row in rows):
        raise ValueError("the ndarray is empty, or a row of it; a child's index is expected")
    first = rows[0][0] if type(rows[0]) is list else rows[0]
    # Whatever is no number counts as 0, as recorded; a fraction is cut off.
    return int(first) if type(first) in (int, float) else 0


def _first(values: list[Any] | None) -> int:
    if not values:
        raise ValueError("the tensor has no values; a child's index is expected")
    number = float(values[0] or 0)
    if not math.isfinite(number):
        raise ValueError(f"{values[0]!r} is no index")
    return int(number)


def named(feedback: Message, router: str, children: int) -> int:
    """Return the index that a client's feedback gives for this router in response.meta.routing; ALL where it gives none.

    Raises BadFeedback if there is no such child.
    """
    try:
        value = wire.parse_first(feedback.body)
    except ValueError:
        return ALL
    if not schema.is_feedback(value):
        return ALL
    routing = ((value.get("response") or {}).get("meta") or {}).get("routing") or {}
    if router not in routing:
        return ALL
    index = int(routing[router] or 0)
    if not ALL <= index < children:
        raise BadFeedback(
            f"response.meta.routing.{router}: {index}; 0 to {children - 1} is expected, or {ALL} for all children"
        )
    return index


def inject(message: Message, routing: Mapping[str, int]) -> Message:
    """Return the message with this routing in its meta, written anew; as it is where it is no JSON. No meta: none is added."""
    try:
        value = wire.parse_doubles(message.body)
    except ValueError:
        return message
    if type(value) is dict and type(value.get("meta")) is dict:
        value["meta"]["routing"] = dict(routing)
    return Message(wire.dump(value), message.content_type)


def random_split(node: GraphNode) -> float:
    """Return the first child's part under RANDOM_ABTEST: 0.5 unless `ratioA` is the node's one parameter. Raises BadRoute."""
    if list(node.parameters) != ["ratioA"]:
        return 0.5
    text = node.parameters["ratioA"].text
    try:
        ratio = float.fromhex(text) if text.lower().startswith("0x") else float(text)
    except ValueError:
        ratio = None
    # Only a written infinity may be infinite.
    if ratio is None or text != text.strip() or (abs(ratio) > schema.FLOAT32_MAX and math.isfinite(ratio)):
        raise BadRoute(f"node {node.name}: parameter ratioA is {text!r}; a number is expected")
    return ratio
