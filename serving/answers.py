"""HTTP answers: what a message, or an error, becomes on its way to the client.

Invariant: an error's status is the one that `serving.errors` gives it; only the form of its body differs between surfaces.
"""

from __future__ import annotations

from dataclasses import dataclass

from serving import wire
from serving.errors import MethodNotAllowed, NodeFailed, ServingError
from serving.messages import Message

Headers = list[tuple[bytes, bytes]]

JSON = b"application/json"
TEXT = b"text/plain; charset=utf-8"
BODILESS = (204, 304)


@dataclass(slots=True)
class Answer:
    """One answer before it is written; an empty content type or encoding is left out."""

    status: int = 200
    body: bytes = b""
    content_type: bytes = b""
    content_encoding: bytes = b""
    headers: Headers | None = None


def recorded_success(message: Message) -> Answer:
    """Return the answer that a message is as the stock executor sends it: escaped, unless it is compressed."""
    if message.content_encoding is None:
        return Answer(200, wire.escape(message.body), _latin(message.content_type))
    return success(message)


def success(message: Message) -> Answer:
    """Return the answer that a message is, byte for byte."""
    return Answer(200, message.body, _latin(message.content_type), _latin(message.content_encoding))


def recorded_failure(error: ServingError) -> Answer:
    """Return the answer to an error as the stock executor sends it: a text whose content type is guessed from its body."""
    body, encoding = _body(error)
    if isinstance(error, MethodNotAllowed) or not body:
        return _bodiless(error)
    if isinstance(error, NodeFailed) and error.injected and wire.is_json(body):
        # The stock executor took this one for an answer.
        return Answer(error.status, body, _latin(error.content_type), _latin(encoding))
    return Answer(error.status, body, wire.sniff(body).encode())


def node_failure(error: ServingError) -> Answer:
    """Return the answer to an error: JSON is declared as JSON, and whatever else a node sent by its guessed content type.

    A node's 201 counts as an error, as recorded, but isn't one to the client: it stays as recorded.
    """
    body, encoding = _body(error)
    if isinstance(error, MethodNotAllowed) or not body:
        return _bodiless(error)
    if encoding and isinstance(error, NodeFailed):
        return Answer(error.status, body, _latin(error.content_type), _latin(encoding))
    declared = error.status >= 400 and wire.is_json(body)
    return Answer(error.status, body, JSON if declared else wire.sniff(body).encode())


def json_failure(error: ServingError) -> Answer:
    """Return the answer to an error as JSON in any case; what else a node sent is replaced by a Status JSON."""
    if error.status in BODILESS:
        return _bodiless(error)
    body, encoding = _body(error)
    if isinstance(error, NodeFailed) and (encoding or not wire.is_json(body)):
        body = error.hidden().body()
    return Answer(error.status, body, JSON, headers=_allow(error))


def _body(error: ServingError) -> tuple[bytes, str | None]:
    """Return the error's body, escaped unless it is compressed, and its encoding. Some statuses have no body."""
    if error.status in BODILESS:
        return b"", None
    body = error.body()
    encoding = error.content_encoding if isinstance(error, NodeFailed) else None
    return (body, encoding) if encoding else (wire.escape(body), None)


def _bodiless(error: ServingError) -> Answer:
    return Answer(error.status, headers=_allow(error))


def _allow(error: ServingError) -> Headers | None:
    return [(b"allow", error.allowed.encode())] if isinstance(error, MethodNotAllowed) else None


def _latin(text: str | None) -> bytes:
    return b"" if text is None else text.encode("latin-1", "replace")
