"""Every error that serving raises on purpose, and the HTTP status each one becomes: the only place where that is decided."""

from __future__ import annotations

import orjson


class ServingError(Exception):
    """Base of the tree. `status` is the HTTP status, `reason` a constant for programs; the message is for people."""

    status = 500
    reason = "INTERNAL_ERROR"

    def body(self) -> bytes:
        """Return the Status JSON that Seldon's clients know."""
        return status_json(self.status, str(self), self.reason)


def status_json(code: int, info: str, reason: str) -> bytes:
    """Return Seldon's Status message of a failure as JSON. Text that is no Unicode (a lone surrogate) is replaced."""
    status = {"code": code, "info": info.encode(errors="replace").decode(), "reason": reason, "status": "FAILURE"}
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


class NotFound(BadRequest):
    """Nothing is served under this path, or no node has this name."""

    status = 404
    reason = "NOT_FOUND"


class UnknownNode(ServingError):
    """The path names a node that the graph lacks: as recorded of the stock executor its own fault, 500."""


class MethodNotAllowed(BadRequest):
    """The path is served, but not with this HTTP method; `allowed` lists those that are."""

    status = 405
    reason = "METHOD_NOT_ALLOWED"

    def __init__(self, method: str, path: str, allowed: str) -> None:
        super().__init__(f"{method} {path}: {allowed} is expected")
        self.allowed = allowed


class BadRoute(ServingError):
    """A router named no child: its answer can't be read, or the index is out of range."""

    reason = "BAD_ROUTE"


class BadFeedback(BadRequest):
    """The client's feedback names a child that its router doesn't have."""

    reason = "BAD_FEEDBACK"


class NodeUnreachable(ServingError):
    """A node didn't answer: connection refused, reset, or over its time budget."""

    reason = "NODE_UNREACHABLE"


class NodeFailed(ServingError):
    """A node answered with an error, whose status and body pass through to the client as they are."""

    reason = "NODE_FAILED"

    def __init__(
        self, node: str, status: int, body: bytes, content_type: str | None, content_encoding: str | None = None
    ) -> None:
        super().__init__(f"node {node} answered {status}")
        self.status = status
        self.node = node
        self.node_body = body
        self.content_type = content_type
        self.content_encoding = content_encoding
        # Whether the answer's routing belongs into this body, because the stock executor takes it for an answer.
        self.injected = False

    def body(self) -> bytes:
        return self.node_body

    def hidden(self) -> NodeFailed:
        """Return the failure with a Status JSON in place of the node's body, for a body that was not meant for clients.

        The HTTP status stays the node's; the code within is 500, as recorded.
        """
        body = status_json(500, str(self), self.reason)
        return NodeFailed(self.node, self.status, body, "application/json")


class GraphError(ServingError):
    """A graph can't be run: unknown type, two nodes of one name, a wrong number of children. One fault a line."""

    reason = "GRAPH_ERROR"

    def __init__(self, *faults: str) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults
