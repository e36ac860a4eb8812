"""Contender's own router: it sends each row of a request to the arm of its customer and puts the answers back in order.

Invariant: one epoch for the whole request, and every row answered leaves one exposure in the spool before its answer leaves;
while that can't be, the champion alone serves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, NamedTuple, Protocol

from ledger.records import ExposureBatch, Inputs, Now, uuid7
from router.epoch import CHAMPION, Epoch
from router.errors import InvalidKey
from router.keys import canonical_key, canonical_keys
from router.split import KILL, NO_EPOCH, STALE, Assignment, Assignments, Splitter
from serving.arms import DIGEST, ERROR, Answer, Arms, Challengers, ask
from serving.engine import AnswerAgain, Child
from serving.errors import BadRequest
from serving.messages import Message
from serving.nodes import Call
from serving.recorder import Recorder
from serving.shadow import Shadow
from serving.table import Table

MAX_PUID = 1024
"""Characters of a request's id, as of a key: it stands on every exposure."""

WITHOUT_EPOCH = Assignment(CHAMPION, NO_EPOCH, None, 1.0)
UNRECORDED = Assignment(CHAMPION, "unrecorded", None, 1.0)


class Epochs(Protocol):
    """Where the current epoch is read from, once a request."""

    @property
    def current(self) -> Splitter | None: ...


class RowObserver(Protocol):
    """Who is told of every request's rows, after they were recorded, and of rows that could not be."""

    def rows(self, batch: ExposureBatch) -> None: ...

    def unrecorded(self, rows: int) -> None: ...


class Part(NamedTuple):
    """What one child answered: its index, the rows it was asked for, and its answer to them, in this order."""

    child: int
    rows: Sequence[int]
    answer: Answer


@dataclass(slots=True)
class Routed:
    """One request between its split and its record. Lists hold one value a row, in input order."""

    started: float
    puid: str
    message: Message
    table: Table
    keys: list[str | None]
    epoch: Epoch | None
    assigned: Assignments
    served: list[str]
    reasons: list[str]
    parts: list[Part]

    @property
    def mixed(self) -> bool:
        """Tell whether several arms served."""
        return self.served.count(self.served[0]) != len(self.served)

    def merged(self) -> tuple[Table, list[str]]:
        """Return the arms' answers and each row's digest in input order.

        The last part is the champion's, where it answered any row.
        """
        _, _, (table, digest) = self.parts[-1]
        if len(self.parts) == 1:
            return table, [digest] * self.table.count
        places = [0] * self.table.count
        place = 0
        for _, rows, _ in self.parts:
            for row in rows:
                places[row] = place
                place += 1
        ordered = itemgetter(*places)

        def merge(parts: Iterable[list[Any]]) -> list[Any]:
            whole: list[Any] = []
            for part in parts:
                whole += part
            return list(ordered(whole))

        columns = list(map(merge, zip(*[answer.table.columns for _, _, answer in self.parts], strict=True)))
        return Table(table.names, columns=columns), merge([answer.digest] * len(rows) for _, rows, answer in self.parts)


class RowRouter:
    """Evaluates a ROUTER node with the parameter contender=v1 in the engine's process (a `Split` of the engine)."""

    immediate = True

    def __init__(
        self,
        *,
        name: str,
        test: str,
        key: str,
        arms: Arms,
        challengers: Challengers,
        epochs: Epochs,
        recorder: Recorder,
        observer: RowObserver,
        check: Callable[[Table], None] = lambda table: None,
        key_header: str = "x-customer-key",
        max_rows: int = 10_000,
        keep_inputs: bool = True,
        shadow: Shadow | None = None,
        pseudonym: Callable[[str], str] | None = None,
    ) -> None:
        """`check` validates all rows before any arm is asked; without a `shadow` the epochs' flag has no effect.

        `pseudonym` makes what is recorded for a customer key; None records the key.
        """
        self._name = name
        self._test = test
        self._key = key
        self._arms = arms
        self._challengers = challengers
        self._epochs = epochs
        self._recorder = recorder
        self._observer = observer
        self._check = check
        self._key_header = key_header.encode()
        self._max_rows = max_rows
        self._keep_inputs = keep_inputs
        self._shadow = shadow
        self._pseudonym = pseudonym
        self._now = Now()

    async def predict(self, message: Message, call: Call, children: Sequence[Child]) -> Message:
        """Answer the key, the arm that served and the model's columns for each row.

        Raises BadRequest or TooLarge before anything is asked or recorded; a champion's failure passes through.
        """
        started = time.perf_counter()
        table = message.table(self._max_rows)
        puid = _puid(message, call)
        keys, echo = self._keys(message, table, call)
        self._check(table)
        splitter = self._epochs.current
        if not self._recorder.open():
            assigned = Assignments.of(UNRECORDED, times=table.count)
        elif splitter is None:
            assigned = Assignments.of(WITHOUT_EPOCH, times=table.count)
        else:
            assigned = splitter.split(keys)
        routed = Routed(
            started=started,
            puid=puid,
            message=message,
            table=table,
            keys=keys,
            epoch=None if splitter is None else splitter.epoch,
            assigned=assigned,
            served=assigned.arms.copy(),
            reasons=assigned.reasons,
            parts=[],
        )
        await self._ask_arms(routed, call, children)
        merged, digests = routed.merged()
        scores = dict(zip(merged.names, merged.columns, strict=True))
        scores.pop(self._key, None)
        call.finishers.append(lambda final: self._finish(final, routed, scores, digests, call, children))
        return Message.of(Table([self._key, "arm", *scores], columns=[echo, routed.served, *scores.values()]), message.meta)

    def _keys(self, message: Message, table: Table, call: Call) -> tuple[list[str | None], list[Any]]:
        """Return each row's canonical key, and the key as the client wrote it for the answer."""
        field = self._key
        column = table.column(field)
        try:
            if column is None:
                keys: list[str | None] = [None] * table.count
            else:
                keys = canonical_keys(column, field)
            if None not in keys:
                return keys, column or []
            tags = message.meta.get("tags")
            given: object = tags.get(field) if type(tags) is dict else None
            named = canonical_key(given, f"meta.tags.{field}")
            if named is None and table.count == 1:
                given = named = canonical_key(self._header(call), self._key_header.decode())
        except InvalidKey as error:
            raise BadRequest(str(error)) from None
        written = keys if column is None else column
        if named is None:
            return keys, list(written)
        echo = [given if key is None else as_sent for key, as_sent in zip(keys, written, strict=True)]
        return [named if key is None else key for key in keys], echo

    def _header(self, call: Call) -> str | None:
        for name, value in call.headers:
            if name == self._key_header:
                try:
                    return value.decode()
                except UnicodeDecodeError:
                    raise BadRequest(f"header {self._key_header.decode()}: {value!r:.80} is not UTF-8") from None
        return None

    async def _ask_arms(self, routed: Routed, call: Call, children: Sequence[Child]) -> None:
        """Ask each arm for its rows, challengers first, so that the champion can answer theirs too if they fail."""
        roles = self._arms.resolve(routed.epoch)
        served = routed.served
        if routed.mixed:
            rows_of = {arm: [row for row, each in enumerate(served) if each == arm] for arm in dict.fromkeys(served)}
        else:
            rows_of = {served[0]: list(range(len(served)))}
        to_champion = rows_of.pop(CHAMPION, [])
        for arm, rows in rows_of.items():
            outcome = await self._ask_challenger(arm, roles.get(arm), rows, routed, call, children)
            if isinstance(outcome, str):
                for row in rows:
                    routed.served[row], routed.reasons[row] = CHAMPION, outcome
                to_champion += rows
        if to_champion:
            to_champion.sort()
            champion = roles[CHAMPION] or 0
            answer = await ask(children[champion], self._part(routed, to_champion), len(to_champion), call)
            misfits = self._add(routed, champion, to_champion, answer)
            if misfits:
                await self._answer_again(routed, misfits, children[champion], champion, call)

    async def _ask_challenger(
        self, arm: str, index: int | None, rows: list[int], routed: Routed, call: Call, children: Sequence[Child]
    ) -> Answer | str:
        if index is None:
            return DIGEST
        digest = "" if routed.epoch is None else routed.epoch.arms[arm].digest
        message = self._part(routed, rows)
        outcome = await self._challengers.ask(arm, digest, children[index], message, len(rows), call)
        if isinstance(outcome, Answer):
            self._add(routed, index, rows, outcome)
        return outcome

    async def _answer_again(self, routed: Routed, rows: list[int], champion: Child, index: int, call: Call) -> None:
        """Let the champion answer rows whose challenger answered other columns than the champion does."""
        for row in rows:
            routed.served[row], routed.reasons[row] = CHAMPION, ERROR
        answer = await ask(champion, self._part(routed, rows), len(rows), call)
        self._add(routed, index, rows, answer)

    def _part(self, routed: Routed, rows: list[int]) -> Message:
        """Return the message for an arm: the client's own where the arm gets all rows."""
        if len(rows) == routed.table.count:
            return routed.message
        return Message.of(routed.table.take(rows), routed.message.meta)

    def _add(self, routed: Routed, index: int, rows: list[int], answer: Answer) -> list[int]:
        """Add a part; return the rows of earlier parts with other columns, which are taken out."""
        self._arms.learn(index, answer.digest)
        misfits = [part for part in routed.parts if part.answer.table.names != answer.table.names]
        routed.parts = [part for part in routed.parts if part not in misfits] if misfits else routed.parts
        routed.parts.append(Part(index, rows, answer))
        return sorted(row for part in misfits for row in part.rows)

    def _finish(
        self,
        final: Message,
        routed: Routed,
        scores: dict[str, list[Any]],
        digests: list[str],
        call: Call,
        children: Sequence[Child],
    ) -> Message:
        """Add meta to the final answer and write the exposures, after the answer's bytes were made: nothing can fail then."""
        epoch = routed.epoch
        decided = final.table(routed.table.count)
        mixed, assigned, puid = routed.mixed, routed.assigned, routed.puid
        tags = {
            **(final.meta.get("tags") or {}),
            "test": self._test,
            "epoch": epoch.epoch if epoch else None,
            "arm": routed.served if mixed else routed.served[0],
            "digest": digests if mixed else digests[0],
        }
        routing = {self._name: -1 if mixed else routed.parts[0].child}
        done = Message.of(decided, {"puid": puid, "tags": tags, "routing": routing})
        _ = done.body
        batch = ExposureBatch(
            id=uuid7(),
            puid=puid,
            at=self._now(),
            test=self._test,
            epoch=epoch.epoch if epoch else 0,
            latency_ms=round((time.perf_counter() - routed.started) * 1000, 3),
            customers=self._recorded(routed.keys),
            buckets=assigned.buckets,
            assigned=assigned.arms,
            served=routed.served,
            reasons=routed.reasons,
            propensities=assigned.propensities,
            digests=digests,
            scores=scores,
            decision={
                name: column
                for name, column in zip(decided.names, decided.columns, strict=True)
                if name not in scores and name not in (self._key, "arm")
            },
            inputs=_inputs(routed.table, self._key) if self._keep_inputs else None,
        )
        if self._recorder.record(batch.encode()):
            self._observer.rows(batch)
            if epoch is not None and epoch.shadow and self._shadow is not None and routed.reasons[0] not in (KILL, STALE):
                self._follow(self._shadow, batch.id, routed, epoch, children, call)
            return done
        if set(routed.served) != {CHAMPION}:
            # Nobody may get the challenger unrecorded. The recorder is closed by now, so the champion answers all rows.
            raise AnswerAgain
        self._recorder.missed(routed.table.count)
        self._observer.unrecorded(routed.table.count)
        return done

    def _recorded(self, keys: list[str | None]) -> list[str | None]:
        """Return the customers as the ledger may hold them."""
        hidden = self._pseudonym
        return keys if hidden is None else [None if key is None else hidden(key) for key in keys]

    def _follow(self, shadow: Shadow, batch: str, routed: Routed, epoch: Epoch, children: Sequence[Child], call: Call) -> None:
        """Have the other arms score these rows once the answer has left; not while the champion is to serve alone."""
        digests = {CHAMPION: epoch.champion} | {name: arm.digest for name, arm in epoch.arms.items()}
        arms = {
            arm: (None if index is None else children[index], digests[arm]) for arm, index in self._arms.resolve(epoch).items()
        }
        call.followers.append(lambda: shadow.follow(batch, routed.served, arms, lambda rows: self._part(routed, rows), call))


def _puid(message: Message, call: Call) -> str:
    """Return the request's id: of its meta, else of its header, else made for it. Raises BadRequest if no store can hold it."""
    given = message.meta.get("puid")
    puid, field = (given, "meta.puid") if type(given) is str and given else (call.puid, "header Seldon-Puid")
    if len(puid) > MAX_PUID:
        raise BadRequest(f"{field} has {len(puid)} characters; at most {MAX_PUID} are allowed")
    if "\0" in puid:
        raise BadRequest(f"{field}: {puid!r:.80} contains U+0000, which no id may hold")
    return puid


def _inputs(table: Table, key: str) -> Inputs:
    """Return the rows as they came, without the key: the exposure beside them names the customer."""
    names = table.names
    if key not in names:
        return {"names": names, "rows": table.rows}
    at = names.index(key)
    if at == 0:
        return {"names": names[1:], "rows": [row[1:] for row in table.rows]}
    return {"names": names[:at] + names[at + 1 :], "rows": [row[:at] + row[at + 1 :] for row in table.rows]}
