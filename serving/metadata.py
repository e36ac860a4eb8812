"""What nodes say of themselves, and what follows from it for the graph: its inputs and its outputs.

Invariant: a description is passed on field by field, as the stock executor does; fields it doesn't know are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serving import wire
from serving.errors import ServingError
from serving.graph import COMBINER, MODEL, OUTPUT_TRANSFORMER, TRANSFORMER, GraphNode
from serving.messages import Message

Description = dict[str, Any]


def read(message: Message, node: str) -> Description:
    """Return the known fields that a node's description sets. Raises ServingError naming node and field."""
    try:
        value = wire.parse_doubles(message.body)
    except ValueError as error:
        raise ServingError(f"metadata of node {node}: {error}") from None
    if value is None:
        return {}
    if type(value) is not dict:
        raise ServingError(f"metadata of node {node}: {value!r:.40} is no JSON object")
    # Go matches names without regard to case.
    fields = {name.lower(): each for name, each in value.items()}
    found = {
        "name": _text(fields.get("name"), node, "name"),
        "platform": _text(fields.get("platform"), node, "platform"),
        "versions": [_text(each, node, "versions") for each in _of(list, fields.get("versions"), node, "versions")],
        "custom": {name: _text(each, node, "custom") for name, each in _of(dict, fields.get("custom"), node, "custom").items()},
    }
    free = {name: fields[name] for name in ("inputs", "outputs") if fields.get(name) is not None}
    return {name: each for name, each in found.items() if each} | free


def ends(node: GraphNode, described: Mapping[str, Description]) -> tuple[Any, Any]:
    """Return what the graph below this node takes and what it answers, by the first child everywhere."""
    mine = described.get(node.name, {})
    inputs, outputs = mine.get("inputs"), mine.get("outputs")
    if not node.children:
        return inputs, outputs
    first_inputs, first_outputs = ends(node.children[0], described)
    if node.type in (MODEL, TRANSFORMER):
        return inputs, first_outputs
    if node.type in (OUTPUT_TRANSFORMER, COMBINER):
        return first_inputs, outputs
    return first_inputs, first_outputs


def _text(value: Any, node: str, field: str) -> str:
    if value is not None and type(value) is not str:
        raise ServingError(f"metadata of node {node}: {field}: {value!r:.40} is no string")
    return value or ""


def _of(kind: type, value: Any, node: str, field: str) -> Any:
    if value is not None and type(value) is not kind:
        raise ServingError(f"metadata of node {node}: {field}: {value!r:.40} is no {kind.__name__}")
    return value or kind()
