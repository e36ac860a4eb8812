"""The ledger's tables, declared once for SQLite and PostgreSQL. A change here needs a migration of the same effect beside it.

Invariant: the columns of `exposures` are the fields of `ledger.records.Exposure`, in their order; and what belongs to a day is
partitioned by an exposure's id alone, which holds its time, so that an id exists once however often it is written.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Double, Index, Integer, MetaData, String, Table, Text, Uuid

METADATA = MetaData()

ID = String(36).with_variant(Uuid(as_uuid=False), "postgresql")
"""16 bytes in PostgreSQL, text in SQLite; in both it sorts as time."""

EPOCHS = Table(
    "epochs",
    METADATA,
    Column("test", Text, primary_key=True),
    Column("epoch", BigInteger, primary_key=True, autoincrement=False),
    Column("document", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("at", Text, nullable=False),
    Column("digest", String(64), nullable=False, comment="SHA-256 of the document with sorted keys and no spaces"),
)

EXPOSURES = Table(
    "exposures",
    METADATA,
    Column("id", ID, primary_key=True),
    Column("puid", Text, nullable=False),
    Column("row", Integer, nullable=False),
    Column("at", String(27), nullable=False, comment="RFC 3339 in UTC with microseconds: text sorts as time"),
    Column("test", Text, nullable=False),
    Column("epoch", BigInteger, nullable=False, comment="0: no usable epoch"),
    Column("customer", Text, comment="canonical key, or its HMAC; null: unknown"),
    Column("bucket", Integer),
    Column("assigned", Text, nullable=False),
    Column("served", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("propensity", Double, nullable=False),
    Column("scores", Text, nullable=False, comment="JSON object"),
    Column("decision", Text, nullable=False, comment="JSON object"),
    Column("digest", Text, nullable=False),
    Column("latency_ms", Double, nullable=False),
    postgresql_partition_by="RANGE (id)",
)
Index("exposures_at_id", EXPOSURES.c.at, EXPOSURES.c.id)
Index("exposures_customer", EXPOSURES.c.customer)

INPUTS = Table(
    "inputs",
    METADATA,
    Column("exposure", ID, primary_key=True, comment="no foreign key: exposures and inputs are dropped at different ages"),
    Column("input", Text, nullable=False, comment="JSON object"),
    postgresql_partition_by="RANGE (exposure)",
)

PAIRS = Table(
    "pairs",
    METADATA,
    Column("exposure", ID, primary_key=True),
    Column("arm", Text, primary_key=True, comment="the arm that did not serve the row"),
    Column("digest", Text, nullable=False),
    Column("scores", Text, nullable=False, comment="JSON object"),
    postgresql_partition_by="RANGE (exposure)",
)

GAPS = Table(
    "gaps",
    METADATA,
    Column("id", ID, primary_key=True),
    Column("test", Text, nullable=False),
    Column("start", String(27), nullable=False),
    Column("end", String(27), nullable=False),
    Column("rows", BigInteger, nullable=False, comment="answered by the champion, unrecorded"),
)

SEGMENTS = Table(
    "segments",
    METADATA,
    Column("name", Text, primary_key=True, comment="a spool segment's file name, unique everywhere"),
    Column("shipped", BigInteger, nullable=False, comment="bytes whose records are in this ledger"),
)

DAILY = EXPOSURES, INPUTS, PAIRS
"""The tables with a partition a day in PostgreSQL. The first column of each is an exposure's id."""
