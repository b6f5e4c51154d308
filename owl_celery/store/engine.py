"""Which database the settings name, and SQLAlchemy engines that suit it."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import ConnectionPoolEntry

from owl_celery.errors import StoreError
from owl_celery.settings import Settings

FILE_NAME: Final = "owl.sqlite3"
BUSY_SECONDS: Final = 2.0
CONNECT_SECONDS: Final = 3
STATEMENT_SECONDS: Final = 10
JOURNAL_BYTES: Final = 16 * 2**20
READ_ONLY: Final = "owl_read_only"
"""Execution option of a transaction that only reads, all of it at one moment."""

EXAMPLE: Final = (
    "write it as postgresql://user:password@host/name or sqlite:////folder/file.sqlite3"
)


@dataclass(frozen=True, slots=True)
class Database:
    """One database as the settings name it.

    Parameters
    ----------
    url
        Address with the driver that we use.
    path
        The file of an SQLite database; None for Postgres.
    setting
        Name of the setting that decides, for messages.

    """

    url: URL
    path: Path | None
    setting: str

    def __str__(self) -> str:
        """Where it is, for messages: never with a password."""
        return str(self.path or self.url.database or "")

    @property
    def server(self) -> str:
        """Host and port of Postgres, for messages."""
        host = self.url.host or self.url.query.get("host") or "localhost"
        return f"{host if isinstance(host, str) else ','.join(host)}:{self.url.port or 5432}"

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must not be said."""
        in_query = self.url.query.get("password", ())
        found = (self.url.password, *((in_query,) if isinstance(in_query, str) else in_query))
        return tuple(str(secret) for secret in found if secret)


def database_of(settings: Settings) -> Database:
    """Find the database: ``database_url`` when set, else SQLite under the storage path.

    Raises
    ------
    StoreError
        When ``database_url`` is no address of a database that we can use.

    """
    if settings.database_url is None:
        path = settings.continuous_learning_storage_path.expanduser().absolute() / FILE_NAME
        return Database(_sqlite_url(path), path, "CONTINUOUS_LEARNING_STORAGE_PATH")
    address = settings.database_url.get_secret_value().strip()
    try:
        url = make_url(address)
    except (ArgumentError, ValueError):
        # The cause may quote the address, and the address may hold a password.
        raise StoreError(f"Setting DATABASE_URL is no database address: {EXAMPLE}.") from None
    kind = url.drivername.partition("+")[0]
    if kind == "sqlite":
        return _sqlite(url)
    if kind not in ("postgresql", "postgres"):
        raise StoreError(f"Setting DATABASE_URL names neither Postgres nor SQLite: {EXAMPLE}.")
    if find_spec("psycopg") is None:
        raise StoreError(
            "Setting DATABASE_URL names Postgres, for which psycopg is missing: "
            "pip install 'owl-celery[postgres]'."
        )
    return Database(url.set(drivername="postgresql+psycopg"), None, "DATABASE_URL")


def _sqlite(url: URL) -> Database:
    name = url.database or ""
    if name in ("", ":memory:") or name.startswith("file:") or url.query:
        raise StoreError(
            "Setting DATABASE_URL names no SQLite file: write sqlite:////folder/file.sqlite3, or "
            "leave it out for a file under CONTINUOUS_LEARNING_STORAGE_PATH."
        )
    path = Path(name).expanduser().absolute()
    return Database(_sqlite_url(path), path, "DATABASE_URL")


def _sqlite_url(path: Path) -> URL:
    return URL.create("sqlite+pysqlite", database=str(path))


def make_engine(database: Database) -> Engine:
    """Make an engine with short timeouts; it connects at first use.

    Raises
    ------
    StoreError
        When the driver cannot be imported.

    """
    try:
        if database.path is not None:
            engine = create_engine(
                database.url,
                pool_size=1,
                hide_parameters=True,
                connect_args={"timeout": BUSY_SECONDS},
            )
            event.listen(engine, "connect", _set_up_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
            return engine
        engine = create_engine(
            database.url,
            pool_size=1,
            pool_pre_ping=True,
            hide_parameters=True,
            connect_args={
                "application_name": "owl_celery",
                "connect_timeout": CONNECT_SECONDS,
                "tcp_user_timeout": STATEMENT_SECONDS * 1000,
                # A pooler between us and Postgres may give each transaction another server process.
                "prepare_threshold": None,
            },
        )
    except ImportError as error:
        raise StoreError(
            f"Setting DATABASE_URL names Postgres, but psycopg cannot be imported ({error}): "
            "pip install 'owl-celery[postgres]'."
        ) from error
    event.listen(engine, "begin", _begin_postgres)
    return engine


def _set_up_sqlite(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
    assert isinstance(connection, sqlite3.Connection)
    # Python's own transactions leave out the BEGIN of reads and of DDL; ours is explicit.
    connection.isolation_level = None
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(f"PRAGMA journal_size_limit = {JOURNAL_BYTES}")


def _begin_sqlite(connection: Connection) -> None:
    # A deferred transaction that writes late fails at once instead of waiting for its turn.
    is_read_only = connection.get_execution_options().get(READ_ONLY)
    connection.exec_driver_sql("BEGIN" if is_read_only else "BEGIN IMMEDIATE")


def _begin_postgres(connection: Connection) -> None:
    # A controller that hangs within a transaction must not keep the next one waiting for ever.
    connection.exec_driver_sql(
        f"SET LOCAL statement_timeout = '{STATEMENT_SECONDS}s';"
        f"SET LOCAL lock_timeout = '{STATEMENT_SECONDS // 2}s';"
        f"SET LOCAL idle_in_transaction_session_timeout = '{STATEMENT_SECONDS}s'"
    )


def read_options(database: Database) -> dict[str, Any]:
    """Execution options of a transaction that reads everything at one moment."""
    if database.path is not None:
        return {READ_ONLY: True}
    return {READ_ONLY: True, "isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
