"""Records: ids keep the layout of RFC 9562 and their order, and what is encoded is what is read."""

from __future__ import annotations

import threading
import uuid
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.errors import BrokenRecord
from ledger.records import (
    MAX_ROWS,
    EpochRecord,
    Exposure,
    ExposureBatch,
    Gap,
    Inputs,
    Now,
    PairBatch,
    UuidGenerator,
    decode,
    row_id,
    timestamp,
    uuid7,
)

AT = "2026-03-01T12:00:00.000001Z"

words = st.text(st.characters(codec="utf-8"), max_size=12)
numbers = st.floats(allow_nan=False, allow_infinity=False)
plain = words.filter(lambda text: "\0" not in text)
"""Outside JSON U+0000 is replaced, so no engine's record comes back with one."""
values = st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), numbers, words)


@st.composite
def batches(draw: st.DrawFn) -> ExposureBatch:
    count = draw(st.integers(1, 5))

    def column(each: st.SearchStrategy[Any]) -> Any:
        return draw(st.lists(each, min_size=count, max_size=count))

    names = draw(st.lists(words, max_size=3, unique=True))
    return ExposureBatch(
        id=uuid7(),
        puid=draw(plain),
        at=timestamp(draw(st.datetimes(datetime(1970, 1, 1), timezones=st.just(UTC)))),
        test=draw(plain),
        epoch=draw(st.integers(0, 2**63 - 1)),
        latency_ms=draw(numbers),
        customers=column(st.none() | plain),
        buckets=column(st.none() | st.integers(0, 9999)),
        assigned=column(st.sampled_from(["champion", "challenger"])),
        served=column(st.sampled_from(["champion", "challenger"])),
        reasons=column(plain),
        propensities=column(st.floats(0, 1)),
        digests=column(plain),
        scores={name: column(values) for name in draw(st.lists(words, max_size=3, unique=True))},
        decision={name: column(values) for name in draw(st.lists(words, max_size=3, unique=True))},
        inputs=Inputs(names=names, rows=[[draw(values) for _ in names] for _ in range(count)]) if draw(st.booleans()) else None,
    )


def batch(**changes: Any) -> ExposureBatch:
    """Two rows, changed as told."""
    made = ExposureBatch(
        id=uuid7(),
        puid="p",
        at=AT,
        test="campaigns",
        epoch=3,
        latency_ms=1.5,
        customers=["a", None],
        buckets=[17, None],
        assigned=["challenger", "champion"],
        served=["champion", "champion"],
        reasons=["fallback:error", "no-key"],
        propensities=[0.1, 1.0],
        digests=["d", "d"],
        scores={"age": [31.5, None]},
        decision={"campaigns": ["1,2", "6"]},
        inputs={"names": ["brand", "events"], "rows": [["小米", 3], [None, 0]]},
    )
    return msgspec.structs.replace(made, **changes)


@given(milliseconds=st.integers(0, 2**48 - 1), rest=st.integers(0, 999_999))
def test_an_id_has_the_layout_of_version_7_and_the_time_of_the_clock(milliseconds: int, rest: int) -> None:
    made = uuid.UUID(UuidGenerator(lambda: milliseconds * 1_000_000 + rest)())
    assert made.version == 7
    assert made.variant == uuid.RFC_4122
    assert made.int >> 80 == milliseconds
    assert made.int >> 64 & 0xFFF == rest * 4096 // 1_000_000


@given(st.lists(st.integers(0, 2**60), min_size=2, max_size=50))
def test_ids_rise_whatever_the_clock_does(times: list[int]) -> None:
    clock = iter(times)
    generator = UuidGenerator(lambda: next(clock))
    made = [generator() for _ in times]
    assert made == sorted(set(made))
    assert all(uuid.UUID(each).version == 7 for each in made)


def test_ids_of_a_clock_that_stands_still_run_over_into_the_next_millisecond() -> None:
    generator = UuidGenerator(lambda: 5_000_000)
    made = [uuid.UUID(generator()) for _ in range(5000)]
    assert made == sorted(set(made))
    assert made[-1].int >> 80 == 6


def test_ids_of_several_threads_are_all_different() -> None:
    made: list[list[str]] = [[] for _ in range(4)]
    threads = [threading.Thread(target=lambda own=own: own.extend(uuid7() for _ in range(5000))) for own in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(own == sorted(own) for own in made)
    assert len({each for own in made for each in own}) == 20_000


def test_two_processes_at_the_same_moment_make_different_ids() -> None:
    assert len({UuidGenerator(lambda: 1_700_000_000_000_000_000)() for _ in range(2000)}) == 2000


@given(st.integers(0, MAX_ROWS - 1))
def test_a_rows_id_is_the_batchs_plus_its_index_and_lies_before_the_next_batch(row: int) -> None:
    first, following = uuid7(), uuid7()
    made = uuid.UUID(row_id(first, row))
    assert made.int == uuid.UUID(first).int + row
    assert made.version == 7
    assert made.variant == uuid.RFC_4122
    assert first <= row_id(first, row) < following


@given(batches())
def test_what_is_encoded_is_what_is_read(made: ExposureBatch) -> None:
    line = made.encode()
    assert b"\n" not in line
    assert decode(line) == made


def test_equal_values_of_routing_are_written_once_and_read_in_full() -> None:
    made = batch()
    line = orjson.loads(made.encode())
    assert line["served"] == ["champion"]
    assert line["digests"] == ["d"]
    assert line["assigned"] == ["challenger", "champion"]
    assert line["scores"]["age"] == [31.5, None]
    read = decode(made.encode())
    assert isinstance(read, ExposureBatch)
    assert read.served == ["champion", "champion"]


def test_rows_are_in_the_order_of_an_exposures_fields() -> None:
    made = batch()
    rows = list(made.rows())
    assert [dict(zip(Exposure.__struct_fields__, row, strict=True)) for row in rows][1] == {
        "id": row_id(made.id, 1),
        "puid": "p",
        "row": 1,
        "at": AT,
        "test": "campaigns",
        "epoch": 3,
        "customer": None,
        "bucket": None,
        "assigned": "champion",
        "served": "champion",
        "reason": "no-key",
        "propensity": 1.0,
        "scores": '{"age":null}',
        "decision": '{"campaigns":"6"}',
        "digest": "d",
        "latency_ms": 1.5,
    }
    assert rows[0][0] == made.id
    assert list(made.input_rows()) == [
        (made.id, '{"brand":"小米","events":3}'),
        (row_id(made.id, 1), '{"brand":null,"events":0}'),
    ]


def test_a_batch_without_scores_decision_and_inputs_still_has_its_rows() -> None:
    made = batch(scores={}, decision={}, inputs=None)
    assert [row[12:14] for row in made.rows()] == [("{}", "{}"), ("{}", "{}")]
    assert list(made.input_rows()) == []


def test_numpys_numbers_are_numbers_and_what_json_lacks_is_null() -> None:
    read = decode(batch(scores={"x": [np.float32(0.5), np.int64(3)], "y": [float("nan"), float("inf")]}).encode())
    assert isinstance(read, ExposureBatch)
    assert read.scores == {"x": [0.5, 3], "y": [None, None]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "outcome"}, "outcome"),
        ({"id": "00000000-0000-4000-8000-000000000000"}, "id"),
        ({"id": row_id(uuid7(), 1)}, "id"),
        ({"at": "yesterday"}, "at"),
        ({"at": "2026-03-01T12:00:00Z"}, "at"),
        ({"epoch": 2**63}, "epoch"),
        ({"epoch": True}, "epoch"),
        ({"buckets": [17, 10_000]}, "buckets"),
        ({"buckets": [17]}, "2 customers and a column of 1"),
        ({"served": ["champion"] * 3}, "2 customers and a column of 3"),
        ({"served": None}, "served"),
        ({"scores": {"age": [1]}}, "2 customers and a column of 1"),
        ({"decision": {"campaigns": []}}, "2 customers and a column of 0"),
        ({"inputs": {"names": ["brand"], "rows": [["a"]]}}, "2 rows of 1 values"),
        ({"inputs": {"names": ["brand"], "rows": [["a"], ["b", 1]]}}, "2 rows of 1 values"),
        ({"inputs": {"names": ["brand"]}}, "rows"),
    ],
)
def test_a_line_that_does_not_fit_is_refused_naming_what(change: dict[str, Any], said: str) -> None:
    line = orjson.loads(batch().encode())
    with pytest.raises(BrokenRecord, match=said):
        decode(orjson.dumps({**line, **change}))


@pytest.mark.parametrize("line", [b"", b"\0\0\0", b"{", b"[]", b"null", b"{}", b'"\xff"', batch().encode()[:-1]])
def test_a_line_that_is_no_record_is_refused(line: bytes) -> None:
    with pytest.raises(BrokenRecord):
        decode(line)


def test_pairs_are_read_as_they_were_and_refused_when_they_do_not_fit() -> None:
    """Refused when read, since a record that fails while it is stored would hold up its segment for ever."""
    made = PairBatch(id=uuid7(), arm="challenger", digest="d", row=[0, 2], scores={"age": [30.5, None]})
    assert decode(made.encode()) == made
    first, third = row_id(made.id, 0), row_id(made.id, 2)
    assert list(made.rows()) == [(first, "challenger", "d", '{"age":30.5}'), (third, "challenger", "d", '{"age":null}')]
    for wrong in ({"scores": {"age": [30.5]}}, {"row": [0, MAX_ROWS]}, {"row": [-1, 0]}):
        with pytest.raises(BrokenRecord):
            decode(orjson.dumps({**orjson.loads(made.encode()), **wrong}))


def test_a_gap_is_read_as_it_was() -> None:
    made = Gap(id=uuid7(), test="t", start=AT, end=AT, rows=3)
    assert decode(made.encode()) == made


def test_an_epoch_is_read_as_it_was_and_its_digest_sees_the_content_only() -> None:
    made = EpochRecord(test="t", epoch=1, actor="a", reason='say "why"', at=AT, document='{"salt": "小",\n "kill": false}')
    assert decode(made.encode()) == made
    assert b"\n" not in made.encode()
    same = msgspec.structs.replace(made, document='{"kill":false,"salt":"小"}')
    other = msgspec.structs.replace(made, document='{"kill":true,"salt":"小"}')
    assert made.digest() == same.digest() != other.digest()


@pytest.mark.parametrize("document", ["", "{", "[]", "1"])
def test_an_epoch_whose_document_is_no_object_is_refused(document: str) -> None:
    with pytest.raises(BrokenRecord, match="epoch 1 of test t"):
        decode(EpochRecord(test="t", epoch=1, actor="a", reason="r", at=AT, document=document).encode())


def test_times_are_written_in_utc_and_need_a_zone() -> None:
    berlin = timezone(timedelta(hours=2))
    assert timestamp(datetime(2026, 3, 1, 14, 0, 0, 1, tzinfo=berlin)) == AT
    assert timestamp(datetime(2026, 3, 1, 12, tzinfo=UTC)) == "2026-03-01T12:00:00.000000Z"
    nanoseconds = iter([1_772_366_399_999_999_999, 1_772_366_400_000_001_000, 1_772_366_400_900_000_000, 0])
    now = Now(lambda: next(nanoseconds))
    assert [now() for _ in range(4)] == [
        "2026-03-01T11:59:59.999999Z",
        "2026-03-01T12:00:00.000001Z",
        "2026-03-01T12:00:00.900000Z",
        "1970-01-01T00:00:00.000000Z",
    ]
    with pytest.raises(ValueError, match="no time zone"):
        timestamp(datetime(2026, 3, 1))
