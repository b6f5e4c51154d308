"""Brings a database to this release's schema, from several processes at once if need be."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, column, select, table, text

from owl_celery.errors import StoreError
from owl_celery.store.models import OwlModel, SchemaRow

VERSION_TABLE: Final = "owl_alembic_version"
REVISIONS: Final = ("0001", "0002")
"""Every revision of this release, oldest first; the last is what it writes."""

SCHEMA: Final = len(REVISIONS)
"""Number of the schema; a database says in ``owl_schema`` from which number on it can be used."""

POSTGRES_LOCK: Final = 0x6F776C5F63656C
"""Key of the advisory lock under which a database is migrated."""

MIGRATION_SECONDS: Final = 120

_version = table(VERSION_TABLE, column("version_num"))
_lock = threading.Lock()


def is_current(connection: Connection) -> bool:
    """Whether this release can use the database as it is.

    Raises
    ------
    StoreError
        When a newer release has changed the database so that this one cannot use it.

    """
    if not connection.dialect.has_table(connection, VERSION_TABLE):
        return False
    revision = connection.execute(select(_version)).scalar_one_or_none()
    if revision is None or revision in REVISIONS:
        return bool(revision == REVISIONS[-1])
    readable_by = connection.execute(select(_column(SchemaRow, "readable_by"))).scalar_one()
    if readable_by > SCHEMA:
        raise StoreError(
            "A newer release of owl_celery has changed the database (DATABASE_URL, or "
            "CONTINUOUS_LEARNING_STORAGE_PATH) so that this one cannot use it: upgrade "
            "owl_celery, or name another database."
        )
    return True


def migrate(connection: Connection) -> None:
    """Bring the database to the last revision, within the transaction of this connection.

    On Postgres only one process at a time does so; on SQLite the caller holds the lock file.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SET LOCAL lock_timeout = '{MIGRATION_SECONDS}s'"))
        connection.execute(text(f"SET LOCAL statement_timeout = '{MIGRATION_SECONDS}s'"))
        connection.execute(text(f"SELECT pg_advisory_xact_lock({POSTGRES_LOCK})"))
    if is_current(connection):
        return
    # Alembic takes a while to import, and a database is current nearly always.
    from alembic import command

    # Alembic's context is one for the whole process.
    with _lock:
        command.upgrade(alembic_config(connection), REVISIONS[-1])


def alembic_config(connection: Connection) -> Any:
    """Configuration of Alembic for the migrations of this package on one connection."""
    from alembic.config import Config

    config = Config()
    folder = str(Path(__file__).with_name("migrations"))
    config.set_main_option("script_location", folder.replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def _column(model: type[OwlModel], name: str) -> Any:
    return OwlModel.metadata.tables[str(model.__tablename__)].c[name]
