"""The split in SQL: PostgreSQL's and SQLite's buckets are Python's, key by key."""

from __future__ import annotations

import random
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from ledger.store import Store
from router.assignment import bucket

BUCKET = (
    "SELECT (('x'||substr(encode(sha256(convert_to(%s||':'||key,'UTF8')),'hex'),1,8))::bit(32)::bigint * 10000) >> 32 "
    "FROM unnest(%s::text[]) WITH ORDINALITY AS given(key, place) ORDER BY place"
)


def keys() -> list[str]:
    """Return golden keys, ids of real length, and text of every kind that a key may be."""
    chosen = random.Random(4)
    ids = [str(chosen.randint(-(2**63), 2**63 - 1)) for _ in range(2000)]
    letters = "aß小米 '\"\\;%_\n\t👩‍🚀é\u200b:"
    words = ["".join(chosen.choices(letters, k=chosen.randint(1, 12))) for _ in range(500)]
    return ["-8076087639492063270", "1", "customer-42", "小米", "", *ids, *words]


@pytest.mark.parametrize("salt", ["campaigns-1", "", "sél:t"])
def test_postgresql_gives_the_same_buckets(postgres: str, salt: str) -> None:
    with psycopg.connect(postgres) as connection:
        found = [row[0] for row in connection.execute(BUCKET, (salt, keys()))]
    assert found == [bucket(salt, key) for key in keys()]


@pytest.mark.parametrize("salt", ["campaigns-1", "", "sél:t"])
def test_the_ledgers_own_function_gives_the_same_buckets(postgres: str, salt: str) -> None:
    with closing(Store.open(postgres)) as store:
        store.migrate()
    with psycopg.connect(postgres) as connection:
        asked = "SELECT contender_bucket(%s, key) FROM unnest(%s::text[]) WITH ORDINALITY AS given(key, place) ORDER BY place"
        found = [row[0] for row in connection.execute(asked, (salt, keys()))]
        assert connection.execute("SELECT contender_bucket('s', NULL)").fetchone() == (None,)
    assert found == [bucket(salt, key) for key in keys()]


@pytest.mark.parametrize("salt", ["campaigns-1", "", "sél:t"])
def test_sqlite_gives_the_same_buckets(tmp_path: Path, salt: str) -> None:
    store = Store.open(tmp_path / "ledger.db")
    try:
        assert [store.bucket(salt, key) for key in keys()] == [bucket(salt, key) for key in keys()]
    finally:
        store.close()
