"""Every error that serving raises on purpose, and the HTTP status each one becomes: the only place where that is decided."""

from __future__ import annotations

import orjson


class ServingError(Exception):
    """Base of the tree. `status` is the HTTP status, `reason` a constant for programs; the message is for people."""

    status = 500
    reason = "INTERNAL_ERROR"

    def body(self) -> bytes:
        """Return the Status JSON that Seldon's clients know."""
        status = {"code": self.status, "info": str(self), "reason": self.reason, "status": "FAILURE"}
        return orjson.dumps({"status": status})


class BadRequest(ServingError):
    """The request can't be understood or breaks the signature; the message names the field, the row and what would be right."""

    status = 400
    reason = "BAD_REQUEST"


class TooLarge(BadRequest):
    """The body or its number of rows is over the limit."""

    status = 413
    reason = "TOO_LARGE"


class UnsupportedMediaType(BadRequest):
    """The body isn't declared as JSON."""

    status = 415
    reason = "UNSUPPORTED_MEDIA_TYPE"


class NodeUnreachable(ServingError):
    """A node didn't answer: connection refused, reset, or over its time budget."""

    reason = "NODE_UNREACHABLE"


class NodeFailed(ServingError):
    """A node answered with an error, whose status and body pass through to the client as they are."""

    reason = "NODE_FAILED"

    def __init__(self, node: str, status: int, body: bytes, content_type: str | None) -> None:
        super().__init__(f"node {node} answered {status}")
        self.status = status
        self.node = node
        self.node_body = body
        self.content_type = content_type

    def body(self) -> bytes:
        return self.node_body


class GraphError(ServingError):
    """A graph can't be run: unknown type, two nodes of one name, a wrong number of children."""

    reason = "GRAPH_ERROR"
