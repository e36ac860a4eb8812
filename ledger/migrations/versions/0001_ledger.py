"""The ledger as it was before there were migrations: what a file has of it already, stays. In PostgreSQL, by day."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import UUID

revision = "0001"
down_revision = None

ID = sa.String(36).with_variant(UUID(as_uuid=False), "postgresql")

BUCKET = """
CREATE OR REPLACE FUNCTION contender_bucket(salt text, key text) RETURNS integer
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
SELECT ((('x'||substr(encode(sha256(convert_to(salt||':'||key,'UTF8')),'hex'),1,8))::bit(32)::bigint * 10000) >> 32)::integer
$$
"""


def upgrade() -> None:
    op.create_table(
        "epochs",
        sa.Column("test", sa.Text, primary_key=True),
        sa.Column("epoch", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("at", sa.Text, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False, comment="SHA-256 of the document with sorted keys and no spaces"),
        if_not_exists=True,
    )
    op.create_table(
        "exposures",
        sa.Column("id", ID, primary_key=True),
        sa.Column("puid", sa.Text, nullable=False),
        sa.Column("row", sa.Integer, nullable=False),
        sa.Column("at", sa.String(27), nullable=False, comment="RFC 3339 in UTC with microseconds: text sorts as time"),
        sa.Column("test", sa.Text, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False, comment="0: no usable epoch"),
        sa.Column("customer", sa.Text, comment="canonical key, or its HMAC; null: unknown"),
        sa.Column("bucket", sa.Integer),
        sa.Column("assigned", sa.Text, nullable=False),
        sa.Column("served", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("propensity", sa.Double, nullable=False),
        sa.Column("scores", sa.Text, nullable=False, comment="JSON object"),
        sa.Column("decision", sa.Text, nullable=False, comment="JSON object"),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("latency_ms", sa.Double, nullable=False),
        postgresql_partition_by="RANGE (id)",
        if_not_exists=True,
    )
    op.create_index("exposures_at_id", "exposures", ["at", "id"], if_not_exists=True)
    op.create_index("exposures_customer", "exposures", ["customer"], if_not_exists=True)
    op.create_table(
        "inputs",
        sa.Column(
            "exposure", ID, primary_key=True, comment="no foreign key: exposures and inputs are dropped at different ages"
        ),
        sa.Column("input", sa.Text, nullable=False, comment="JSON object"),
        postgresql_partition_by="RANGE (exposure)",
        if_not_exists=True,
    )
    op.create_table(
        "pairs",
        sa.Column("exposure", ID, primary_key=True),
        sa.Column("arm", sa.Text, primary_key=True, comment="the arm that did not serve the row"),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("scores", sa.Text, nullable=False, comment="JSON object"),
        postgresql_partition_by="RANGE (exposure)",
        if_not_exists=True,
    )
    op.create_table(
        "gaps",
        sa.Column("id", ID, primary_key=True),
        sa.Column("test", sa.Text, nullable=False),
        sa.Column("start", sa.String(27), nullable=False),
        sa.Column("end", sa.String(27), nullable=False),
        sa.Column("rows", sa.BigInteger, nullable=False, comment="answered by the champion, unrecorded"),
        if_not_exists=True,
    )
    op.create_table(
        "segments",
        sa.Column("name", sa.Text, primary_key=True, comment="a spool segment's file name, unique everywhere"),
        sa.Column("shipped", sa.BigInteger, nullable=False, comment="bytes whose records are in this ledger"),
        if_not_exists=True,
    )
    if op.get_bind().dialect.name == "postgresql":
        op.execute(BUCKET)
