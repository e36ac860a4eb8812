"""Records as an engine makes them, of any day."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import msgspec

from ledger.records import ExposureBatch, timestamp, uuid7


def exposures(count: int = 1, *, days_ago: float = 0, test: str = "campaigns", **fields: Any) -> ExposureBatch:
    """Return a request's exposures with inputs; its id and its time are so many days old."""
    seconds = time.time() - days_ago * 86_400
    time_part = f"{int(seconds * 1000):012x}"
    batch = ExposureBatch(
        id=f"{time_part[:8]}-{time_part[8:]}{uuid7()[13:]}",
        puid="p",
        at=timestamp(datetime.fromtimestamp(seconds, UTC)),
        test=test,
        epoch=1,
        latency_ms=1.25,
        customers=[f"customer-{row}" for row in range(count)],
        buckets=[row % 10_000 for row in range(count)],
        assigned=["challenger"] * count,
        served=["champion"] * count,
        reasons=["fallback:error"] * count,
        propensities=[0.1] * count,
        digests=["d" * 64] * count,
        scores={"age": [30.5] * count},
        decision={"campaigns": ["1,2"] * count},
        inputs={"names": ["brand", "events"], "rows": [["小米", row] for row in range(count)]},
    )
    return msgspec.structs.replace(batch, **fields)
