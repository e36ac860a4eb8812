"""What Alembic runs around each migration: on the connection, and within the transaction, of whoever called `upgrade`."""

from __future__ import annotations

from alembic import context

from ledger.schema import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    render_as_batch=True,  # SQLite alters a table by copying it
)
with context.begin_transaction():
    context.run_migrations()
