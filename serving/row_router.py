"""Contender's own router: it sends each row of a request to the arm of its customer and puts the answers back in order.

Invariant: one epoch for the whole request, and every row answered leaves one exposure in the spool before its answer leaves.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol

from ledger.records import ExposureBatch, uuid7
from router.epoch import CHAMPION, Epoch
from router.errors import InvalidEpoch, InvalidKey
from router.keys import canonical_key
from router.split import NO_EPOCH, Assignment, Splitter
from serving.engine import Child
from serving.errors import BadRequest
from serving.messages import Message
from serving.nodes import Call
from serving.table import Table

log = logging.getLogger("contender.router")

FALLBACK_ERROR, FALLBACK_DIGEST = "fallback:error", "fallback:digest"


class Epochs(Protocol):
    """Where the current epoch is read from, once a request."""

    @property
    def current(self) -> Splitter | None: ...


class RowObserver(Protocol):
    """Who is told of every row answered, after it was recorded."""

    def rows(self, batch: ExposureBatch) -> None: ...


class Arms:
    """Which child of the router serves which digest. The first child is the champion where an epoch names no digest."""

    def __init__(self, names: Sequence[str], digests: Mapping[str, str]) -> None:
        self._index = {name: i for i, name in enumerate(names)}
        self._by_digest = {digest: self._index[name] for name, digest in digests.items()}
        self.names = list(names)
        self.digests = [digests.get(name, "") for name in names]

    def accept(self, epoch: Epoch) -> None:
        """Raise InvalidEpoch if no child serves the epoch's champion."""
        if epoch.champion and self._by_digest and epoch.champion not in self._by_digest:
            served = ", ".join(f"{name} {digest[:12]}" for name, digest in zip(self.names, self.digests, strict=True))
            raise InvalidEpoch(f"champion: no node serves {epoch.champion[:12]}; served are {served}")

    def resolve(self, epoch: Epoch | None) -> dict[str, int | None]:
        """Return the child's index for each arm; None for a challenger whose digest nobody serves."""
        if epoch is None:
            return {CHAMPION: 0}
        found: dict[str, int | None] = {CHAMPION: self._by_digest.get(epoch.champion, 0)}
        for name, arm in epoch.arms.items():
            by_name = self._index.get(name)
            found[name] = self._by_digest.get(arm.digest) if arm.digest and self._by_digest else by_name
        return found


class _Answered(NamedTuple):
    """What became of the rows: the merged table, and per row the arm that served, why, and its digest."""

    table: Table
    served: list[str]
    reasons: list[str]
    digests: list[str]
    indices: set[int]


class RowRouter:
    """Evaluates a ROUTER node with the parameter contender=v1 in the engine's process (a `Split` of the engine)."""

    def __init__(
        self,
        *,
        name: str,
        test: str,
        key: str,
        arms: Arms,
        epochs: Epochs,
        record: Callable[[bytes], None],
        check: Callable[[Table], None] | None = None,
        observer: RowObserver | None = None,
        key_header: str = "x-customer-key",
        max_rows: int = 10_000,
        keep_inputs: bool = True,
    ) -> None:
        """`check` validates all rows before any arm is asked; `record` writes one spool line and returns when it is written."""
        self._name = name
        self._test = test
        self._key = key
        self._arms = arms
        self._epochs = epochs
        self._record = record
        self._check = check
        self._observer = observer
        self._key_header = key_header.encode()
        self._max_rows = max_rows
        self._keep_inputs = keep_inputs
        self._resolved: tuple[Splitter | None, dict[str, int | None]] = (None, arms.resolve(None))

    async def predict(self, message: Message, call: Call, children: Sequence[Child]) -> Message:
        """Answer the key, the arm served and the model's columns for each row.

        Raises BadRequest or TooLarge before anything is asked or recorded; a champion's failure passes through.
        """
        started = time.perf_counter()
        table = message.table(self._max_rows)
        keys, echo = self._keys(message, table, call)
        if self._check is not None:
            self._check(table)
        splitter = self._epochs.current
        epoch = None if splitter is None else splitter.epoch
        nobody = Assignment(CHAMPION, NO_EPOCH, None, 1.0)
        assigned = [nobody] * len(keys) if splitter is None else splitter.assign(keys)
        answered = await self._ask(message, table, assigned, call, children, self._resolve(splitter))
        names = [self._key, "arm", *(name for name in answered.table.names if name != self._key)]
        scores = {n: c for n, c in zip(answered.table.names, answered.table.columns, strict=True) if n != self._key}
        merged = Table(names, columns=[echo, answered.served, *scores.values()])

        def finish(final: Message) -> Message:
            return self._finish(final, message, call, started, table, keys, epoch, assigned, answered, scores)

        call.finishers.append(finish)
        return Message.of(merged, dict(message.meta))

    def _resolve(self, splitter: Splitter | None) -> dict[str, int | None]:
        if self._resolved[0] is not splitter:
            self._resolved = (splitter, self._arms.resolve(None if splitter is None else splitter.epoch))
        return self._resolved[1]

    def _keys(self, message: Message, table: Table, call: Call) -> tuple[list[str | None], list[Any]]:
        """Return each row's canonical key, and the key as the client wrote it for the answer."""
        field = self._key
        column = table.column(field)
        try:
            if column is None:
                keys: list[str | None] = [None] * table.count
            else:
                keys = [canonical_key(value, field, row) for row, value in enumerate(column)]
            if None not in keys:
                return keys, column or []
            tags = message.meta.get("tags")
            other: object = tags.get(field) if type(tags) is dict else None
            named = canonical_key(other, f"meta.tags.{field}")
            if named is None and table.count == 1:
                other = named = canonical_key(self._header(call), self._key_header.decode())
        except InvalidKey as error:
            raise BadRequest(str(error)) from None
        if named is None:
            return keys, column or list(keys)
        echo = [other if key is None else written for key, written in zip(keys, column or keys, strict=True)]
        return [named if key is None else key for key in keys], echo

    def _header(self, call: Call) -> str | None:
        for name, value in call.headers:
            if name.lower() == self._key_header:
                try:
                    return value.decode()
                except UnicodeDecodeError:
                    raise BadRequest(f"header {self._key_header.decode()}: {value!r:.80} is not UTF-8") from None
        return None

    async def _ask(
        self,
        message: Message,
        table: Table,
        assigned: list[Assignment],
        call: Call,
        children: Sequence[Child],
        roles: Mapping[str, int | None],
    ) -> _Answered:
        groups: dict[str, list[int]] = {}
        for row, assignment in enumerate(assigned):
            groups.setdefault(assignment.arm, []).append(row)
        served = [assignment.arm for assignment in assigned]
        reasons = [assignment.reason for assignment in assigned]
        to_champion = groups.pop(CHAMPION, [])
        parts: list[tuple[int, list[int], Table]] = []
        for arm, rows in groups.items():
            index = roles.get(arm)
            answer = None if index is None else await self._ask_challenger(message, table, rows, call, children[index])
            if index is not None and answer is not None:
                parts.append((index, rows, answer))
                continue
            for row in rows:
                served[row], reasons[row] = CHAMPION, FALLBACK_DIGEST if index is None else FALLBACK_ERROR
            to_champion += rows
        if to_champion:
            champion = roles[CHAMPION] or 0
            to_champion.sort()
            parts.append((champion, to_champion, await self._ask_child(message, table, to_champion, call, children[champion])))
        digests = [""] * table.count
        for index, rows, _ in parts:
            for row in rows:
                digests[row] = self._arms.digests[index]
        return _Answered(_merge(parts, table.count), served, reasons, digests, {index for index, _, _ in parts})

    async def _ask_challenger(self, message: Message, table: Table, rows: list[int], call: Call, child: Child) -> Table | None:
        """Return the challenger's answer, or None if it failed in any way: then the champion answers these rows."""
        try:
            return await self._ask_child(message, table, rows, call, child)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a challenger does must not reach its customers
            log.warning("%s failed for %d rows, the champion answers them: %s", child.name, len(rows), error)
            return None

    async def _ask_child(self, message: Message, table: Table, rows: list[int], call: Call, child: Child) -> Table:
        whole = len(rows) == table.count
        answer = await child.predict(message if whole else Message.of(table.take(rows), dict(message.meta)), call)
        answered = answer.table(self._max_rows)
        if answered.count != len(rows):
            raise BadRequest(f"node {child.name} answered {answered.count} rows for {len(rows)}")
        return answered

    def _finish(
        self,
        final: Message,
        message: Message,
        call: Call,
        started: float,
        table: Table,
        keys: list[str | None],
        epoch: Epoch | None,
        assigned: list[Assignment],
        answered: _Answered,
        scores: dict[str, list[Any]],
    ) -> Message:
        """Add meta to the final answer and write the exposures, after the answer's bytes were made: nothing can fail then."""
        decided = final.table(self._max_rows)
        mixed = len(answered.indices) > 1
        given = message.meta.get("puid")
        puid = given if type(given) is str and given else call.puid
        tags = {
            **(final.meta.get("tags") or {}),
            "test": self._test,
            "epoch": epoch.epoch if epoch else None,
            "arm": answered.served if mixed else answered.served[0],
            "digest": answered.digests if mixed else answered.digests[0],
        }
        routing = {self._name: -1 if mixed else next(iter(answered.indices))}
        done = Message.of(decided, {"puid": puid, "tags": tags, "routing": routing})
        _ = done.body
        decision = {
            name: column
            for name, column in zip(decided.names, decided.columns, strict=True)
            if name not in scores and name not in (self._key, "arm")
        }
        batch = ExposureBatch(
            id=str(uuid7()),
            puid=puid,
            at=datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
            test=self._test,
            epoch=epoch.epoch if epoch else 0,
            latency_ms=round((time.perf_counter() - started) * 1000, 3),
            customers=keys,
            buckets=[each.bucket for each in assigned],
            assigned=[each.arm for each in assigned],
            served=answered.served,
            reasons=answered.reasons,
            propensities=[each.propensity for each in assigned],
            digests=answered.digests,
            scores=scores,
            decision=decision,
            inputs=_inputs(table, self._key) if self._keep_inputs else None,
        )
        self._record(batch.encode())
        if self._observer is not None:
            self._observer.rows(batch)
        return done


def _merge(parts: list[tuple[int, list[int], Table]], count: int) -> Table:
    """Put the arms' answers back in input order."""
    if len(parts) == 1:
        return parts[0][2]
    names = parts[-1][2].names
    columns: list[list[Any]] = [[None] * count for _ in names]
    for _, rows, answer in parts:
        for column, name in zip(columns, names, strict=True):
            for row, value in zip(rows, answer.column(name) or (), strict=True):
                column[row] = value
    return Table(names, columns=columns)


def _inputs(table: Table, key: str) -> dict[str, Any]:
    """Return the rows as they came, without the key: the exposure beside them names the customer."""
    names = table.names
    if key not in names:
        return {"names": names, "rows": table.rows}
    at = names.index(key)
    return {"names": names[:at] + names[at + 1 :], "rows": [row[:at] + row[at + 1 :] for row in table.rows]}
