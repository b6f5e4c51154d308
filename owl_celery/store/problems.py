"""What went wrong with a database, in one sentence that names the setting and the cure."""

from __future__ import annotations

import re
import sqlite3
from typing import Final

from sqlalchemy.exc import DataError, DBAPIError, SQLAlchemyError

from owl_celery.store.engine import Database

PASSING: Final = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL)
"""Complaints of SQLite after which the connection and the file are as good as before."""

REFUSALS: Final = r'role ".*" does not exist|authentication failed|no password supplied'
"""What Postgres says of a user whom it does not let in."""


def explain(database: Database, error: SQLAlchemyError) -> str:
    """Say what is wrong; the text of the driver is quoted by its first line, without secrets."""
    said = _first_line(database, error)
    if isinstance(error, DataError):
        return misfit(database, said)
    if database.path is not None:
        return _explain_sqlite(database, error, said)
    return _explain_postgres(database, error, said)


def misfit(database: Database, said: str) -> str:
    """Say that a value does not fit a column."""
    return f"A value does not fit the database {database} ({said}); nothing was written."


def is_passing(error: SQLAlchemyError) -> bool:
    """Whether the connection can go on as it is."""
    return sqlite_code(error) in PASSING


def sqlite_code(error: SQLAlchemyError) -> int | None:
    """SQLite's primary error code; None when the error is not SQLite's."""
    if not isinstance(error, DBAPIError):
        return None
    code = getattr(error.orig, "sqlite_errorcode", None)
    return code & 0xFF if isinstance(code, int) else None


def _first_line(database: Database, error: SQLAlchemyError) -> str:
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    lines = str(cause).strip().splitlines()
    said = lines[0] if lines else type(cause).__name__
    for secret in database.secrets:
        said = said.replace(secret, "***")
    return said


def _explain_sqlite(database: Database, error: SQLAlchemyError, said: str) -> str:
    setting, code = database.setting, sqlite_code(error)
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return f"The database {database} is locked by another process; it is tried again."
    if code == sqlite3.SQLITE_FULL:
        return f"The disk with the database {database} is full: make room, or change {setting}."
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return (
            f"Setting {setting}: cannot write the database {database} ({said}); name a folder "
            "that this user can write."
        )
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return (
            f"The database {database} is damaged ({said}); it is moved aside at the next try, "
            "and learning starts afresh."
        )
    return f"The database {database} cannot be used ({said}); look after it, or change {setting}."


def _explain_postgres(database: Database, error: SQLAlchemyError, said: str) -> str:
    url, state, server = database.url, _sqlstate(error), database.server
    # A connection that fails has no state, only a text.
    if state == "3D000" or re.search(r'database ".*" does not exist', said):
        return (
            f"Setting DATABASE_URL: Postgres at {server} has no database {url.database!r}; create "
            "it by CREATE DATABASE, or correct the name."
        )
    if state in ("28P01", "28000") or re.search(REFUSALS, said):
        return (
            f"Setting DATABASE_URL: Postgres at {server} refuses user {url.username!r}; correct "
            "the name or the password."
        )
    if state == "42501":
        return (
            f"Setting DATABASE_URL: user {url.username!r} may not create or write tables in "
            f"{url.database!r} ({said}); grant CREATE on its schema, or name another user."
        )
    if state is None or state.startswith(("08", "57P")):
        return (
            f"Setting DATABASE_URL: cannot reach Postgres at {server} ({said}); start it, or "
            "correct the address."
        )
    return f"Setting DATABASE_URL: Postgres at {server} cannot be used ({said}, state {state})."


def _sqlstate(error: SQLAlchemyError) -> str | None:
    state = getattr(error.orig, "sqlstate", None) if isinstance(error, DBAPIError) else None
    return state if isinstance(state, str) else None
