"""`contender demo`: a sample population against a running server, and the split that was seen beside the arithmetic's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NamedTuple

from console.remote import Server


class Seen(NamedTuple):
    """Customers by the arm that served them, by epoch, and campaigns by arm."""

    arms: Counter[tuple[int, str]]
    campaigns: dict[str, Counter[str]]
    customers: int


def run(server: Server, names: list[str], rows: Iterator[list[Any]], batch: int, tick: Callable[[int], None]) -> Seen:
    """Send every row once, `batch` rows a request, and count what came back. Raises CommandError."""
    arms: Counter[tuple[int, str]] = Counter()
    campaigns: dict[str, Counter[str]] = {}
    customers = 0
    while chunk := list(islice(rows, batch)):
        answer = server.predict({"data": {"names": names, "ndarray": chunk}})
        columns = answer["data"]["names"]
        arm_at, campaigns_at = columns.index("arm"), columns.index("campaigns")
        epoch = answer["meta"]["tags"]["epoch"] or 0
        for row in answer["data"]["ndarray"]:
            arms[epoch, row[arm_at]] += 1
            campaigns.setdefault(row[arm_at], Counter()).update(filter(None, row[campaigns_at].split(",")))
        customers += len(chunk)
        tick(customers)
    return Seen(arms, campaigns, customers)
