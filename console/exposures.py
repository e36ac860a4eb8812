"""`contender exposures`: every row answered, from the store, after what the spool still holds was shipped."""

from __future__ import annotations

import csv
from datetime import datetime
from typing import IO, TYPE_CHECKING

import msgspec
import orjson

from console.errors import CommandError
from console.home import Home
from ledger.shipper import Shipper

if TYPE_CHECKING:
    from ledger.store import Store


def export(home: Home, store: Store, test: str, since: str | None, form: str, out: IO[str]) -> None:
    """Write the exposures as JSON lines or CSV (scores and decision as JSON text). Raises CommandError."""
    if form not in ("jsonl", "csv"):
        raise CommandError(f"format {form!r} is unknown; jsonl and csv are known")
    moment = None if since is None else _moment(since)
    if home.spool.exists():
        Shipper(home.spool, store).ship()
    writer = csv.writer(out, lineterminator="\n")
    header = False
    for exposure in store.exposures(test=test, since=moment):
        record = msgspec.structs.asdict(exposure)
        if form == "jsonl":
            out.write(orjson.dumps(record).decode() + "\n")
            continue
        if not header:
            writer.writerow(record)
            header = True
        writer.writerow(orjson.dumps(v).decode() if isinstance(v, dict) else v for v in record.values())


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = datetime.min
    if moment.tzinfo is None:
        raise CommandError(f"--since {text!r} is no RFC 3339 time; write one such as 2026-01-31T08:00:00Z")
    return moment
