"""Which database the settings name, and what is said about one that cannot be used."""

from __future__ import annotations

import importlib.util
import sqlite3
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine
from sqlalchemy.exc import DBAPIError
from sqlmodel import SQLModel

from owl_celery import aggregates
from owl_celery.errors import StoreError
from owl_celery.settings import Settings
from owl_celery.store import open_store
from owl_celery.store.engine import Database, database_of
from owl_celery.store.migrate import REVISIONS, SCHEMA, alembic_config
from owl_celery.store.models import OwlModel
from owl_celery.store.problems import explain, is_passing
from owl_celery.types import Outcome

SECRET = "s3cret-w0rd"


def named(url: str) -> Database:
    return database_of(Settings.load(database_url=url))


def test_sqlite_under_the_storage_path_is_the_default(tmp_path: Path) -> None:
    database = database_of(Settings.load(continuous_learning_storage_path=tmp_path / "x"))
    assert database.path == tmp_path / "x" / "owl.sqlite3"
    assert database.setting == "CONTINUOUS_LEARNING_STORAGE_PATH"
    assert str(database) == str(tmp_path / "x" / "owl.sqlite3")


def test_the_home_folder_may_be_written_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    database = database_of(Settings.load(continuous_learning_storage_path="~/learning"))
    assert database.path == tmp_path / "learning" / "owl.sqlite3"


@pytest.mark.parametrize(
    "scheme",
    ["postgresql", "postgres", "postgresql+psycopg", "postgresql+psycopg2", "postgresql+asyncpg"],
)
def test_every_postgres_address_uses_psycopg_3(scheme: str) -> None:
    database = named(f"{scheme}://u:{SECRET}@db.example:6432/learned")
    assert database.url.drivername == "postgresql+psycopg"
    assert (database.path, database.server, str(database)) == (
        None,
        "db.example:6432",
        "learned",
    )
    assert database.secrets == (SECRET,)


def test_a_socket_and_a_password_in_the_query_are_understood() -> None:
    database = named(f"postgresql:///learned?host=/run/pg&password={SECRET}")
    assert (database.server, database.secrets) == ("/run/pg:5432", (SECRET,))


@pytest.mark.parametrize("url", ["sqlite:////tmp/a.db", "sqlite+pysqlite:////tmp/a.db"])
def test_an_sqlite_address_names_a_file(url: str) -> None:
    database = named(url)
    assert (str(database.path), database.setting) == ("/tmp/a.db", "DATABASE_URL")


def test_a_relative_sqlite_file_is_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert named("sqlite:///a.db").path == tmp_path / "a.db"


@pytest.mark.parametrize(
    "url",
    [
        f"nonsense {SECRET}",
        f"postgresql://u:{SECRET}@host:port/db",
        f"mysql://u:{SECRET}@host/db",
        f"redis://:{SECRET}@host/0",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///file:a.db?uri=true",
    ],
)
def test_a_wrong_address_is_refused_in_a_sentence_without_the_password(url: str) -> None:
    with pytest.raises(StoreError) as caught:
        open_store(Settings.load(database_url=url))
    message = str(caught.value)
    assert message.startswith("Setting DATABASE_URL")
    assert message.endswith(".")
    assert SECRET not in message
    assert caught.value.__cause__ is None


def test_missing_psycopg_is_said_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec

    def without_psycopg(name: str, package: str | None = None) -> Any:
        return None if name == "psycopg" else find_spec(name, package)

    monkeypatch.setattr("owl_celery.store.engine.find_spec", without_psycopg)
    with pytest.raises(StoreError, match=r"pip install 'owl-celery\[postgres\]'"):
        named("postgresql://host/db")


def test_the_settings_never_show_the_password() -> None:
    assert SECRET not in repr(named(f"postgresql://u:{SECRET}@host/db"))


def test_the_tables_have_the_columns_of_the_values() -> None:
    pairs = {
        "owl_task_type": aggregates.TaskTypeStats,
        "owl_worker": aggregates.WorkerStats,
        "owl_assignment": aggregates.AssignmentStats,
        "owl_service": aggregates.ServiceStats,
        "owl_algorithm": aggregates.AlgorithmStats,
        "owl_curve": aggregates.CurvePoint,
        "owl_q_value": aggregates.QValue,
    }
    for table, kind in pairs.items():
        columns = set(OwlModel.metadata.tables[table].c.keys())
        assert columns == {"namespace"} | {field.name for field in fields(kind)}, table
    columns = set(OwlModel.metadata.tables["owl_outcome"].c.keys())
    assert columns == {"namespace", "number", "key"} | {field.name for field in fields(Outcome)}


def test_the_tables_are_not_in_the_metadata_of_users() -> None:
    assert not [name for name in SQLModel.metadata.tables if name.startswith("owl_")]
    assert all(name.startswith("owl_") for name in OwlModel.metadata.tables)


def test_every_migration_is_known_in_order() -> None:
    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        scripts = ScriptDirectory.from_config(alembic_config(connection))
    engine.dispose()
    found = [script.revision for script in scripts.walk_revisions()]
    assert tuple(reversed(found)) == REVISIONS
    assert len(REVISIONS) == SCHEMA


def sqlite_error(code: int, text: str) -> DBAPIError:
    cause = sqlite3.OperationalError(text)
    cause.sqlite_errorcode = code
    return DBAPIError("SELECT 1", {}, cause)


@pytest.mark.parametrize(
    ("code", "passes", "cure"),
    [
        (sqlite3.SQLITE_BUSY, True, "it is tried again"),
        (sqlite3.SQLITE_FULL, True, "make room, or change CONTINUOUS_LEARNING_STORAGE_PATH"),
        (sqlite3.SQLITE_READONLY, False, "name a folder that this user can write"),
        (sqlite3.SQLITE_IOERR, False, "look after it, or change CONTINUOUS_LEARNING_STORAGE_PATH"),
        (sqlite3.SQLITE_CORRUPT, False, "learning starts afresh"),
        (sqlite3.SQLITE_READONLY | 8 << 8, False, "name a folder that this user can write"),
    ],
)
def test_each_complaint_of_sqlite_has_a_cure(
    tmp_path: Path, code: int, passes: bool, cure: str
) -> None:
    database = database_of(Settings.load(continuous_learning_storage_path=tmp_path))
    error = sqlite_error(code, "it does not work")
    assert cure in explain(database, error)
    assert is_passing(error) is passes


class FakePostgresError(Exception):
    """Has the attribute of psycopg's errors."""

    def __init__(self, text: str, sqlstate: str | None) -> None:
        super().__init__(text)
        self.sqlstate = sqlstate


@pytest.mark.parametrize(
    ("sqlstate", "text", "cure"),
    [
        (None, 'FATAL:  password authentication failed for user "u"', "refuses user 'u'"),
        ("28P01", "falsches Passwort", "correct the name or the password"),
        (None, 'FATAL:  database "db" does not exist', "CREATE DATABASE"),
        (None, "connection refused", "start it, or correct the address"),
        ("57P01", "terminating connection", "start it, or correct the address"),
        ("42501", "permission denied for schema public", "grant CREATE"),
        ("XX000", f"internal error {SECRET}\nmore", "state XX000"),
    ],
)
def test_each_complaint_of_postgres_has_a_cure(sqlstate: str | None, text: str, cure: str) -> None:
    database = named(f"postgresql://u:{SECRET}@db.example/db")
    said = explain(database, DBAPIError("SELECT 1", {}, FakePostgresError(text, sqlstate)))
    assert cure in said
    assert said.startswith("Setting DATABASE_URL")
    assert SECRET not in said
    assert "\n" not in said
