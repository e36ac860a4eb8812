"""The schema's history, one for both databases: numbered revisions, each with what leads to it from the one before.

Invariant: a database that has run every revision has the tables of `ledger.schema`, no more and no less. Alembic is loaded only
where there is something to migrate, because a server starts faster without it.
"""

from __future__ import annotations

import logging
from pathlib import Path

from sqlalchemy import Column, Connection, MetaData, String, Table, insert, inspect, select
from sqlalchemy.schema import CreateTable

from ledger.errors import SchemaMismatch

HEAD = "0001"
"""The revision that this program reads and writes. Revisions are numbers of four digits, so that they compare."""

VERSION = Table("alembic_version", MetaData(), Column("version_num", String(32), primary_key=True))
"""Alembic's own table."""


def revision(connection: Connection) -> str | None:
    """Return the database's revision; None where it has none: it is empty, or an SQLite file from before there were any."""
    if not inspect(connection).has_table(VERSION.name):
        return None
    found: str | None = connection.execute(select(VERSION.c.version_num)).scalar()
    return found


def check(found: str | None, where: str) -> None:
    """Raise SchemaMismatch, with what to do, unless the revision found is this program's."""
    if found == HEAD:
        return
    if found is None:
        raise SchemaMismatch(f"{where}: has no ledger yet; run `contender ledger migrate`")
    if found > HEAD:
        raise SchemaMismatch(
            f"{where}: the ledger's schema {found} is newer than this program's {HEAD}; run the newer release of contender"
        )
    raise SchemaMismatch(
        f"{where}: the ledger's schema {found} is older than this program's {HEAD}; run `contender ledger migrate`"
    )


def stamp(connection: Connection) -> None:
    """Note that the tables, just made from `ledger.schema`, are this program's."""
    connection.execute(CreateTable(VERSION))
    connection.execute(insert(VERSION).values(version_num=HEAD))


def upgrade(connection: Connection) -> None:
    """Run the revisions that are missing, within the caller's transaction. Tables of older files are taken over as they are."""
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    command.upgrade(config, HEAD)
