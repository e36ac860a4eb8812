"""A running server, asked over HTTP as any client would."""

from __future__ import annotations

import http.client
from typing import Any
from urllib.parse import urlsplit

import orjson

from console.errors import CommandError

PREDICTIONS = "/api/v1.0/predictions"


class Server:
    """One keep-alive connection to a server's base URL."""

    def __init__(self, url: str, *, timeout: float = 30) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise CommandError(f"{url!r} is no server's address; write one such as http://127.0.0.1:9000")
        self.url = url
        self._base = parts.path.rstrip("/")
        self._connection = http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=timeout)

    def predict(self, message: dict[str, Any]) -> dict[str, Any]:
        """Post one message and return the parsed answer. Raises CommandError with the server's own words."""
        return self._ask("POST", PREDICTIONS, orjson.dumps(message))

    def _ask(self, method: str, path: str, body: bytes) -> dict[str, Any]:
        try:
            self._connection.request(method, self._base + path, body, {"Content-Type": "application/json"})
            answer = self._connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise CommandError(f"{self.url}: {error}; is the server running? `make run` starts one") from None
        try:
            parsed = orjson.loads(content)
        except orjson.JSONDecodeError:
            raise CommandError(f"{self.url}: answered {answer.status} without JSON") from None
        if answer.status != 200:
            status = parsed.get("status") if isinstance(parsed, dict) else None
            info = status.get("info") if isinstance(status, dict) else content[:200].decode(errors="replace")
            raise CommandError(f"{self.url}: {answer.status}: {info}")
        if not isinstance(parsed, dict):
            raise CommandError(f"{self.url}: answered JSON that is no object")
        return parsed
