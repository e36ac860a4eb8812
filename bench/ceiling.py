"""The ceiling: a bare ASGI application that parses the same body, runs the champion's ONNX graph and answers its columns.

No routing, validation of the message, ledger, metrics or errors: what is left is what any server of this model must do. It
asks one model for all rows, where the engine asks two. Run as `python -m bench.ceiling PORT BUNDLE RULES WORKERS`.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from multiprocessing import get_context
from pathlib import Path
from socket import socket
from typing import Any

import orjson

from serving.bundle import Bundle
from serving.campaigns import AGE_BANDS, load_rules
from serving.server import Server

Send = Callable[[dict[str, Any]], Awaitable[None]]

START = {"type": "http.response.start", "status": 200}
HEADERS = [(b"content-type", b"application/json")]


class Ceiling:
    """Answers any POST as a prediction, and any GET with nothing."""

    def __init__(self, bundle: Path, rules: Path) -> None:
        self._bundle = Bundle.load(bundle)
        read = load_rules(rules)
        self._genders: dict[int, str] = {decile: name for name, rule in read.gender.items() for decile in rule.deciles}
        self._campaigns = {
            (gender, band): ",".join(
                str(each.id)
                for each in read.campaigns
                if each.when.gender in (None, gender) and each.when.age_band in (None, band)
            )
            for gender in (*read.gender, "")
            for band in AGE_BANDS
        }

    async def __call__(self, scope: dict[str, Any], receive: Callable[[], Awaitable[dict[str, Any]]], send: Send) -> None:
        message = await receive()
        body = message["body"]
        while message.get("more_body"):
            message = await receive()
            body += message["body"]
        answer = self.answer(body) if scope["method"] == "POST" else b""
        await send({**START, "headers": [*HEADERS, (b"content-length", b"%d" % len(answer))]})
        await send({"type": "http.response.body", "body": answer})

    def answer(self, body: bytes) -> bytes:
        data = orjson.loads(body)["data"]
        names, rows = data["names"], data["ndarray"]
        bundle = self._bundle
        columns = bundle.answer(bundle.signature.encode(names, rows, ignore=bundle.key))
        genders = [self._genders.get(decile, "") for decile in columns["gender_decile"]]
        campaigns = list(map(self._campaigns.__getitem__, zip(genders, columns["age_band"], strict=True)))
        at = names.index(bundle.key)
        table = [[row[at] for row in rows], ["champion"] * len(rows), *columns.values(), genders, campaigns]
        answered = [bundle.key, "arm", *columns, "gender", "campaigns"]
        return orjson.dumps({"data": {"names": answered, "ndarray": list(zip(*table, strict=True))}, "meta": {}})


def serve(bundle: Path, rules: Path, listener: socket) -> None:
    """Serve on a listener with the engine's own server settings."""
    Server(Ceiling(bundle, rules)).run(sockets=[listener])


def main(port: int, bundle: Path, rules: Path, workers: int) -> None:
    """Serve by so many processes on one listener, as the supervisor does."""
    listener = socket()
    listener.bind(("127.0.0.1", port))
    listener.listen(2048)
    spawn = get_context("spawn")
    started = [spawn.Process(target=serve, args=(bundle, rules, listener), daemon=True) for _ in range(workers - 1)]
    for process in started:
        process.start()
    serve(bundle, rules, listener)
    for process in started:
        process.terminate()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
