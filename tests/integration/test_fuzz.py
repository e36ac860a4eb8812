"""Ten thousand odd requests to a real server: nothing makes it fail, leak, or record what it refused."""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import random
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from harness.server import PREDICTIONS, Server

VOLUME = 10_000
"""Requests of the mutator; hypothesis adds about a thousand."""

GROWTH_BYTES = 20 * 1024 * 1024
"""What a worker's memory may grow by after the warm-up."""

NAMES = ["device_id", "phone_brand", "device_model"]
ROUTES = [PREDICTIONS, "/api/v0.1/predictions", "/api/v1.0/feedback", "/api/v0.1/feedback", "/api/v1.0/status",
          "/api/v1.0/health/status", "/api/v1.0/status/champion", "/api/v1.0/metadata", "/api/v1.0/metadata/campaigns",
          "/live", "/ready", "/", "//", "/%00", "/api/v1.0/status/%ff", "/api/v1.0/predictions/", "/a/../b", "*",
          "/" + "x" * 3000]  # fmt: skip
METHODS = ["POST"] * 40 + ["GET", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "LOCK"]
CONTENT_TYPES = [b"application/json"] * 8 + [
    b"",
    b"text/plain",
    b"application/json; charset=latin-1",
    b"application/x+json",
    b"\xff",
]
ODD_NUMBERS = [
    b"NaN",
    b"Infinity",
    b"-Infinity",
    b"1e400",
    b"-0",
    b"0.1e-400",
    b"9" * 400,
    b"9223372036854775808",
    b"1.0",
    b"01",
    b"+1",
]
ODD_TEXTS = [
    '"\\ud800"',
    '"\\udfff\\ud800"',
    '"\\u0000"',
    '"a\\u0000b"',
    '"\u202e\U0001f468\u200d"',
    '""',
    '" "',
    '"' + "k" * 5000 + '"',
]
WORDS = [b"null", b"true", b"[]", b"{}", b'""', b"0", *ODD_NUMBERS, *(text.encode() for text in ODD_TEXTS)]


class Wire:
    """A keep-alive connection that sends bytes as they are and reads whole answers."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket: socket.socket | None = None
        self.sent = 0

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def ask(self, data: bytes, *, head: bool = False) -> tuple[int, bytes] | None:
        """Return status and body of the answer; None if the server closed the connection without one. Fails if it is cut."""
        self.sent += 1
        if self._socket is None:
            self._socket = socket.create_connection(("127.0.0.1", self._port), timeout=30)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        answer = None
        with contextlib.suppress(ConnectionError):
            self._socket.sendall(data)
            answer = self._read(self._socket, head)
        if answer is None:
            self.close()
        return answer

    def _read(self, connection: socket.socket, head: bool) -> tuple[int, bytes] | None:
        received = b""
        while b"\r\n\r\n" not in received:
            more = connection.recv(65536)
            if not more:
                assert not received, f"cut within the head: {received!r}"
                return None
            received += more
        lines, _, body = received.partition(b"\r\n\r\n")
        first, *rest = lines.split(b"\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in rest)}
        status = int(first.split()[1])
        length = 0 if head or status in (204, 304) else int(headers[b"content-length"])
        while len(body) < length:
            more = connection.recv(65536)
            assert more, "cut within the body"
            body += more
        assert len(body) == length, "more than the answer's length came"
        if headers.get(b"connection", b"").lower() == b"close":
            self.close()
        return status, body


class Ledger:
    """What was sent and answered, to be compared with what was recorded."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.statuses: Counter[int | None] = Counter()
        self.rows: Counter[str] = Counter()

    def judge(self, answer: tuple[int, bytes] | None, request: bytes) -> None:
        status = None if answer is None else answer[0]
        self.statuses[status] += 1
        if answer is None:
            return
        assert answer[0] < 500, (request[:2000], answer)
        if answer[0] == 200 and b'"puid"' in answer[1] and b'"routing":{"router"' in answer[1]:
            parsed = json.loads(answer[1])
            self.rows[parsed["meta"]["puid"]] += len(parsed["data"]["ndarray"])


def request(method: str, path: str, body: bytes, headers: list[tuple[bytes, bytes]]) -> bytes:
    lines = [f"{method} {path} HTTP/1.1".encode("latin-1", "replace"), b"Host: x", *(n + b": " + v for n, v in headers)]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def json_request(body: bytes, headers: list[tuple[bytes, bytes]] | None = None) -> bytes:
    length = (b"Content-Length", b"%d" % len(body))
    return request("POST", PREDICTIONS, body, [(b"Content-Type", b"application/json"), length, *(headers or [])])


def memory(server: Server) -> dict[int, int]:
    """Return the resident bytes of each process of the server, by pid."""
    assert server.process is not None
    group = server.process.pid
    found = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(status.read_text().rpartition(")")[2].split()[2]) == group:
                pages = int((status.parent / "statm").read_text().split()[1])
                found[int(status.parent.name)] = pages * 4096
    return found


@pytest.fixture
def ledger(server: Server) -> Iterator[Ledger]:
    """Judges answers, and at the end whether exactly the rows answered were recorded."""
    judge = Ledger(server)
    yield judge
    assert server.get("/ready").status == 200
    total = sum(judge.rows.values())
    end = time.monotonic() + 30
    while server.metric("contender_ledger_rows_total") < total and time.monotonic() < end:
        time.sleep(0.1)
    # Not `splitlines`, which takes U+2028 within a text for the end of a line.
    lines = server.contender("exposures", "--format", "jsonl").stdout.split("\n")
    assert Counter(json.loads(line)["puid"] for line in lines if line) == judge.rows
    assert server.metric("contender_ledger_errors_total") == server.metric("contender_ledger_skipped_lines_total") == 0
    assert server.metric("contender_unrecorded_rows_total") == 0


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["", "小米", "MI 2", "1", -1, 2**63]),
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=6
)
names = st.lists(st.one_of(st.sampled_from([*NAMES, "median_lat", "hour_0"]), st.text(max_size=8)), max_size=5)
rows = st.lists(st.lists(values, max_size=5) | values, max_size=4)
good_rows = st.lists(
    st.tuples(st.text(max_size=12) | st.integers(), st.text(min_size=1, max_size=8), st.text(min_size=1)), max_size=5
)
payloads = st.one_of(
    st.builds(lambda rows: {"data": {"names": NAMES, "ndarray": rows}}, good_rows),
    st.builds(lambda names, rows: {"data": {"names": names, "ndarray": rows}}, names, rows),
    st.builds(lambda names, shape, cells: {"data": {"names": names, "tensor": {"shape": shape, "values": cells}}}, names,
              st.lists(st.integers(-1, 5) | values, max_size=3), st.lists(scalars, max_size=9)),
    st.builds(lambda rows: {"jsonData": rows}, st.lists(st.dictionaries(st.sampled_from(NAMES), values), max_size=3) | values),
    st.builds(lambda text: {"strData": text}, st.text() | values),
    st.builds(lambda data: {"binData": base64.b64encode(data).decode()}, st.binary()),
    st.dictionaries(st.sampled_from(["data", "jsonData", "strData", "binData", "meta", "x"]), values),
    values,
)  # fmt: skip
metas = (
    st.none()
    | values
    | st.builds(
        lambda puid, tags: {"puid": puid, "tags": tags}, values, st.dictionaries(st.sampled_from(["device_id", "x"]), values)
    )
)


def test_no_structure_makes_it_fail(server: Server, ledger: Ledger) -> None:
    @settings(max_examples=1000, deadline=None, derandomize=True, database=None, phases=[Phase.generate, Phase.shrink],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(payloads, metas)
    def send(payload: Any, meta: Any) -> None:
        if isinstance(payload, dict) and meta is not None:
            payload = {**payload, "meta": meta}
        data = json_request(json.dumps(payload).encode())
        ledger.judge(wire.ask(data), data)

    with Wire(server.port) as wire:
        send()
        assert wire.sent >= 1000
    assert ledger.rows, "nothing was accepted: the payloads test nothing but refusals"


def valid(chosen: random.Random) -> bytes:
    """Return the body of a request that would be accepted."""
    count = chosen.choice((1, 1, 1, 2, 9))
    rows = [[str(chosen.randint(-(2**63), 2**63)), chosen.choice(("小米", "三星", "?")), "MI 2"] for _ in range(count)]
    meta = {"puid": f"p{chosen.randint(0, 10**9)}", "tags": {"device_id": "t"}}
    kind = chosen.randrange(4)
    if kind == 0:
        return json.dumps({"jsonData": [dict(zip(NAMES, row, strict=True)) for row in rows], "meta": meta}).encode()
    text = "\n".join(",".join(map(str, row)) for row in [NAMES, *rows])
    if kind == 1:
        return json.dumps({"strData": text, "meta": meta}).encode()
    if kind == 2:
        return json.dumps({"binData": base64.b64encode(text.encode()).decode(), "meta": meta}).encode()
    return json.dumps({"data": {"names": NAMES, "ndarray": rows}, "meta": meta}, ensure_ascii=chosen.random() < 0.5).encode()


def mutated(body: bytes, chosen: random.Random) -> bytes:
    """Return the body with up to three bytes, stretches or values changed."""
    for _ in range(chosen.randrange(4)):
        at = chosen.randrange(len(body) + 1)
        end = min(len(body), at + chosen.randrange(1, 12))
        kind = chosen.randrange(6)
        if kind == 0:
            body = body[:at] + bytes([chosen.randrange(256)]) + body[at + 1 :]
        elif kind == 1:
            body = body[:at] + body[end:]
        elif kind == 2:
            body = body[:at] + body[at:end] * chosen.choice((2, 3, 50)) + body[end:]
        elif kind == 3:
            body = body[:at] + chosen.choice(WORDS) + body[at:]
        else:
            # A whole value is replaced, so that the JSON stays whole.
            quotes = [i for i, byte in enumerate(body) if byte == ord('"')]
            if len(quotes) > 3:
                start = chosen.randrange(0, len(quotes) - 1)
                body = body[: quotes[start]] + chosen.choice(WORDS) + body[quotes[start + 1] + 1 :]
    return body


def deep(chosen: random.Random) -> bytes:
    depth = chosen.choice((100, 1000, 1024, 5000, 50_000))
    inner = chosen.choice((b'{"a":', b"["))
    closing = b"}" if inner[:1] == b"{" else b"]"
    nested = inner * depth + b"1" + closing * depth
    good = b'{"data":{"names":["device_id","phone_brand","device_model"],"ndarray":[["1","a","b"]]},"meta":'
    rows = b'{"data":{"names":["device_id"],"ndarray":%b}}'
    where = chosen.choice((b"%b", rows, b'{"jsonData":%b}', good + b"%b}", good + b'{"tags":%b}}'))
    return where % nested


def headers_for(body: bytes, chosen: random.Random) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Return headers and the body as it goes over the wire: plain, chunked, or said to be compressed."""
    kind = chosen.choice(CONTENT_TYPES)
    headers = [(b"Content-Type", kind)] if kind else []
    odd = chosen.randrange(12)
    if odd == 0:
        headers.append((b"Seldon-Puid", chosen.choice((b"", b"\xff\xfe", b"x" * 2000, b"a b", b"p1", "小".encode()))))
    elif odd == 1:
        headers.append((b"X-Customer-Key", chosen.choice((b"", b"\xff", b"k" * 2000, b"1", "小米".encode()))))
    elif odd == 2:
        headers.append((b"Ce-Specversion", b"0.3"))
    elif odd == 3:
        headers += [(b"X-%d" % i, b"v" * 50) for i in range(chosen.choice((5, 90)))]
    elif odd == 4:
        headers += headers
    elif odd == 5:
        headers.append((b"Content-Encoding", b"gzip"))
        body = gzip.compress(body, 1) if chosen.random() < 0.5 else body
    elif odd == 6:
        headers.append((b"Accept-Encoding", b"gzip, br;q=0, *"))
    if chosen.random() < 0.15:
        cuts = sorted(chosen.randrange(len(body) + 1) for _ in range(2))
        parts = [part for part in (body[: cuts[0]], body[cuts[0] : cuts[1]], body[cuts[1] :]) if part]
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
        return [*headers, (b"Transfer-Encoding", b"chunked")], chunks + b"0\r\n\r\n"
    return [*headers, (b"Content-Length", b"%d" % len(body))], body


def test_no_mutation_makes_it_fail_or_grow(server: Server, ledger: Ledger) -> None:
    chosen = random.Random(20_240_501)
    kinds: list[Callable[[], bytes]] = [lambda: mutated(valid(chosen), chosen)] * 40 + [lambda: deep(chosen)]
    early: dict[int, int] = {}
    with Wire(server.port) as wire:
        for number in range(VOLUME):
            body = chosen.choice(kinds)()
            method = chosen.choice(METHODS)
            path = PREDICTIONS if chosen.random() < 0.8 else chosen.choice(ROUTES)
            headers, sent = headers_for(body, chosen)
            data = request(method, path, sent, headers)
            ledger.judge(wire.ask(data, head=method == "HEAD"), data)
            if number == VOLUME // 3:
                early = memory(server)
    grown = {pid: size - early[pid] for pid, size in memory(server).items() if pid in early}
    assert set(grown) == set(early), "a process ended"
    assert max(grown.values()) < GROWTH_BYTES, grown
    assert ledger.statuses[200] > VOLUME / 20
    assert ledger.statuses[400] > VOLUME / 20
    assert ledger.statuses[None] < VOLUME / 20, ledger.statuses


POST = b"POST /api/v1.0/predictions HTTP/1.1\r\nHost: x\r\n"
BROKEN = [
    b"\r\n\r\n",
    b"GET\r\n\r\n",
    b"\x00\x01\x02\xff" * 20 + b"\r\n\r\n",
    b"POST /api/v1.0/predictions HTTP/9.9\r\nHost: x\r\n\r\n",
    POST + b"Content-Length: -1\r\n\r\n",
    POST + b"Content-Length: abc\r\n\r\n{}",
    POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n{}{}{}",
    POST + b"Content-Length: 999999999999\r\n\r\n{}",
    POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    POST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    b"GET /live HTTP/1.1\r\nHost : x\r\nBad Header\r\n\r\n",
    b"GET /live HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
    b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /live HTTP/1.0\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
]


def test_what_is_no_http_is_answered_or_the_connection_closed(server: Server, ledger: Ledger) -> None:
    for data in BROKEN:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            received = b""
            with contextlib.suppress(ConnectionResetError):
                while more := connection.recv(65536):
                    received += more
        if received:
            assert received.startswith(b"HTTP/1.1 "), (data[:80], received)
            status = int(received.split()[1])
            assert status < 500 or status in (501, 505), (data[:80], received)
    # A body that never comes whole: the client gives up, and nothing is recorded.
    body = valid(random.Random(1))
    for cut in (0, 1, len(body) // 2, len(body) - 1):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            connection.sendall(json_request(body)[: -(len(body) - cut)])
    with Wire(server.port) as wire:
        ledger.judge(wire.ask(json_request(body)), body)
    assert server.metric('contender_requests_total{code="500",route="/api/v1.0/predictions"}') == 0


REFUSED_META: list[tuple[Any, str]] = [
    ({"puid": "a\0b"}, "meta.puid"),
    ({"puid": "p" * 1025}, "1025"),
    ({"puid": "\ud800"}, "JSON"),
    ({"tags": [1]}, "meta.tags"),
    ({"tags": {"device_id": "a\0b"}}, "U+0000"),
    ({"tags": {"x": json.loads("[" * 300 + "]" * 300)}}, "Recursion"),
    ([], "meta"),
]


def test_a_meta_that_no_store_can_hold_is_refused(server: Server, ledger: Ledger) -> None:
    for meta, named in REFUSED_META:
        answer = server.post({"data": {"names": NAMES, "ndarray": [[None, "a", "b"]]}, "meta": meta})
        assert answer.status == 400, (meta, answer.body)
        assert named in json.loads(answer.body)["status"]["info"]
    answer = server.post({"data": {"names": NAMES, "ndarray": [["1", "a", "b"]]}}, {"Seldon-Puid": "p" * 1025})
    assert (answer.status, b"Seldon-Puid" in answer.body) == (400, True)
