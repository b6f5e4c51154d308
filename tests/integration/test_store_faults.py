"""Databases that are damaged, locked, absent, too new or not ours."""

from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from benchmarks.postgres import PostgresServer
from owl_celery.embedded import free_port
from owl_celery.errors import StaleCursorError, StoreError
from owl_celery.settings import Settings
from owl_celery.store import open_store, sqlite_file
from owl_celery.store.base import FIRST_CURSOR
from owl_celery.store.engine import make_engine
from owl_celery.store.migrate import SCHEMA, VERSION_TABLE, alembic_config, migrate
from owl_celery.store.models import OwlModel
from owl_celery.store.sql import SqlStore
from owl_celery.tracker import TaskPerformanceTracker
from tests.integration.test_store import commit, execute, learn, opened
from tests.learning import CountingPolicy, outcome, stream

pytestmark = pytest.mark.integration


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the SQLite database of the default settings is."""
    return tmp_path / "learning" / "owl.sqlite3"


@pytest.fixture
def store(path: Path) -> Iterator[SqlStore]:
    opened_store = open_store(Settings.load(continuous_learning_storage_path=path.parent), "app")
    yield opened_store
    opened_store.close()


def copies(path: Path) -> list[Path]:
    """What was moved aside, without journals."""
    found = path.parent.glob("owl.sqlite3.corrupt-*")
    return sorted(copy for copy in found if not copy.name.endswith(("-wal", "-shm")))


def cursor_elsewhere(path: Path) -> str:
    """The cursor that another process reads, in a connection that it closes."""
    program = (
        "import sqlite3, sys\n"
        "connection = sqlite3.connect(sys.argv[1])\n"
        "print(connection.execute('SELECT cursor FROM owl_learner').fetchone()[0])\n"
        "connection.close()\n"
    )
    command_line = [sys.executable, "-c", program, str(path)]
    return subprocess.run(command_line, check=True, capture_output=True, text=True).stdout.strip()


class TestSqliteFile:
    def test_nothing_is_touched_before_first_use(self, store: SqlStore, path: Path) -> None:
        store.close()
        assert not path.parent.exists()

    def test_folder_and_files_are_private(self, store: SqlStore, path: Path) -> None:
        commit(store)
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}

    def test_a_folder_that_exists_keeps_its_mode(self, store: SqlStore, path: Path) -> None:
        path.parent.mkdir(mode=0o755)
        commit(store)
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755

    def test_it_is_written_ahead_and_synchronised_at_checkpoints(self, store: SqlStore) -> None:
        commit(store)
        engine = make_engine(store.database)
        with engine.connect() as connection:
            modes = [
                connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
                for name in ("journal_mode", "synchronous", "busy_timeout")
            ]
        engine.dispose()
        assert modes == ["wal", 1, 2000]

    @pytest.mark.parametrize("name", ["50 % off", "ünï 🦉", "a?b#c;d"])
    def test_a_path_may_have_any_name(self, tmp_path: Path, name: str) -> None:
        settings = Settings.load(continuous_learning_storage_path=tmp_path / name)
        store = open_store(settings, "app")
        commit(store, outcomes=[outcome()])
        store.close()
        assert (tmp_path / name / "owl.sqlite3").stat().st_size > 0

    def test_a_path_that_cannot_be_written_is_said_with_the_setting(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way")
        for folder in (tmp_path / "file" / "below", tmp_path / "file", Path("/proc/owl/x")):
            store = open_store(Settings.load(continuous_learning_storage_path=folder), "app")
            with pytest.raises(StoreError) as caught:
                store.load()
            message = str(caught.value)
            assert message.startswith("Setting CONTINUOUS_LEARNING_STORAGE_PATH: cannot write")
            assert message.endswith("name a folder that this user can write.")

    def test_a_folder_in_the_place_of_the_file_is_said(self, store: SqlStore, path: Path) -> None:
        path.mkdir(parents=True)
        with pytest.raises(StoreError, match="cannot write"):
            store.load()

    def test_a_path_made_writable_is_used_at_the_next_try(self, tmp_path: Path) -> None:
        (tmp_path / "x").write_text("in the way")
        store = open_store(Settings.load(continuous_learning_storage_path=tmp_path / "x"), "app")
        with pytest.raises(StoreError):
            store.load()
        (tmp_path / "x").unlink()
        assert store.load().cursor == FIRST_CURSOR
        store.close()

    def test_a_locked_database_is_a_short_wait_and_then_an_error(
        self, store: SqlStore, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("owl_celery.store.engine.BUSY_SECONDS", 0.05)
        commit(store)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreError, match="is locked by another process"):
                commit(store, "1-0", "2-0")
            assert store.load().cursor == "1-0"
            other.execute("ROLLBACK")
        commit(store, "1-0", "2-0")

    def test_a_full_disk_is_said_and_survived(self, store: SqlStore) -> None:
        learn(store, TaskPerformanceTracker(CountingPolicy()), stream(5))
        engine = store.engine()
        with engine.connect() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StoreError, match="is full: make room"):
            commit(store, "5-0", "6-0", policy_state={"x": "y" * 100_000})
        store.close()
        commit(store, "5-0", "6-0", policy_state={"x": "y" * 100_000})

    @pytest.mark.parametrize("damage", ["garbage", "header", "pages", "truncated"])
    def test_a_damaged_file_is_moved_aside(
        self, store: SqlStore, path: Path, damage: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        learn(store, TaskPerformanceTracker(CountingPolicy()), stream(200))
        execute(store, "PRAGMA wal_checkpoint(TRUNCATE)")
        store.close()
        whole = path.read_bytes()
        broken = {
            "garbage": b"this is no database" * 500,
            "header": b"X" * 200 + whole[200:],
            "pages": whole[:4096] + b"\xff" * (len(whole) - 4096),
            "truncated": whole[: len(whole) // 2],
        }[damage]
        path.write_bytes(broken)
        assert store.load().cursor == FIRST_CURSOR
        (aside,) = copies(path)
        assert aside.read_bytes() == broken
        assert [record.name for record in caplog.records] == ["owl_celery.store.sqlite_file"]
        commit(store)
        store.close()
        assert store.load().cursor == "1-0"
        assert copies(path) == [aside]

    def test_damage_under_way_is_an_error_and_then_a_fresh_start(
        self, store: SqlStore, path: Path
    ) -> None:
        learn(store, TaskPerformanceTracker(CountingPolicy()), stream(200))
        execute(store, "PRAGMA wal_checkpoint(TRUNCATE)")
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.write(b"\xff" * size)
        with pytest.raises(StoreError, match="is damaged"):
            commit(store, "200-0", "201-0", outcomes=[outcome(n) for n in range(200)])
        assert store.load().cursor == FIRST_CURSOR
        assert len(copies(path)) == 1

    def test_each_damaged_file_is_kept(self, store: SqlStore, path: Path) -> None:
        for count in (1, 2, 3):
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"no database" * 100)
            assert store.load().cursor == FIRST_CURSOR
            store.close()
            assert len(copies(path)) == count

    def test_a_deleted_file_is_noticed(self, store: SqlStore, path: Path) -> None:
        commit(store)
        path.unlink()
        with pytest.raises(StaleCursorError):
            commit(store, "1-0", "2-0")
        assert store.load().cursor == FIRST_CURSOR
        assert path.exists()

    def test_a_second_opening_keeps_the_locks_of_the_first(
        self, store: SqlStore, path: Path
    ) -> None:
        commit(store)
        with opened(f"sqlite:///{path}") as second:
            assert second.load().cursor == "1-0"
            assert cursor_elsewhere(path) == "1-0"
            # The last connection to leave removes the journal, and this process is still there.
            assert path.with_name(path.name + "-wal").exists()
            commit(store, "1-0", "2-0")
            assert cursor_elsewhere(path) == "2-0"

    def test_an_empty_file_is_a_fresh_database(self, store: SqlStore, path: Path) -> None:
        path.parent.mkdir()
        path.touch()
        assert store.load().cursor == FIRST_CURSOR
        assert copies(path) == []

    def test_a_database_that_somebody_prepares_for_ever_is_an_error(
        self, store: SqlStore, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sqlite_file, "LOCK_SECONDS", 0.05)
        with (
            sqlite_file.prepared(store.database, path),
            pytest.raises(StoreError, match="Another process has been preparing"),
        ):
            store.load()


@pytest.fixture(params=["sqlite", "postgres"])
def any_store(
    request: pytest.FixtureRequest, path: Path, postgres_server: PostgresServer
) -> Iterator[SqlStore]:
    if request.param == "sqlite":
        with opened(f"sqlite:///{path}") as sqlite_store:
            yield sqlite_store
    else:
        with postgres_server.database() as url, opened(url) as postgres_store:
            yield postgres_store


class TestMigrations:
    def test_they_make_the_tables_of_the_models(self, any_store: SqlStore) -> None:
        any_store.load()
        with any_store.engine().begin() as connection:
            context = MigrationContext.configure(
                connection, opts={"version_table": VERSION_TABLE, "compare_type": True}
            )
            assert compare_metadata(context, OwlModel.metadata) == []

    def test_they_can_be_taken_back_and_run_again(self, any_store: SqlStore) -> None:
        commit(any_store)
        engine = any_store.engine()
        with engine.begin() as connection:
            command.downgrade(alembic_config(connection), "base")
        with engine.begin() as connection:
            left = connection.dialect.get_table_names(connection)
            assert left == [VERSION_TABLE]
            migrate(connection)
        assert any_store.load().cursor == FIRST_CURSOR

    def test_one_that_fails_leaves_nothing_behind(
        self, any_store: SqlStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        execute_first(any_store, "CREATE TABLE owl_curve (x INTEGER)")
        with pytest.raises(StoreError, match="owl_curve"):
            any_store.load()
        execute(any_store, "DROP TABLE owl_curve")
        assert any_store.load().cursor == FIRST_CURSOR

    def test_a_newer_schema_that_only_adds_is_used(self, any_store: SqlStore) -> None:
        commit(any_store, outcomes=[outcome(0)])
        any_store.close()
        execute(any_store, f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
        execute(any_store, "ALTER TABLE owl_outcome ADD COLUMN colour TEXT DEFAULT 'red' NOT NULL")
        commit(any_store, "1-0", "2-0", outcomes=[outcome(1)])
        assert any_store.recent(5) == [outcome(0), outcome(1)]

    def test_a_newer_schema_that_we_cannot_use_is_said(self, any_store: SqlStore) -> None:
        commit(any_store)
        any_store.close()
        execute(any_store, f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
        execute(any_store, f"UPDATE owl_schema SET readable_by = {SCHEMA + 1}")
        with pytest.raises(StoreError, match="upgrade owl_celery, or name another database"):
            any_store.load()

    def test_migrations_of_the_user_are_left_alone(self, any_store: SqlStore) -> None:
        execute_first(any_store, "CREATE TABLE alembic_version (version_num TEXT)")
        execute(any_store, "INSERT INTO alembic_version VALUES ('theirs')")
        any_store.load()
        with any_store.engine().begin() as connection:
            found = connection.execute(text("SELECT version_num FROM alembic_version"))
            assert found.scalar_one() == "theirs"


def execute_first(store: SqlStore, statement: str) -> None:
    """Do something in a database before the store has seen it."""
    if store.database.path is not None:
        store.database.path.parent.mkdir(parents=True, exist_ok=True)
    execute(store, statement)


class TestPostgres:
    def failure(self, url: str) -> StoreError:
        store = open_store(Settings.load(database_url=url), "app")
        with pytest.raises(StoreError) as caught:
            store.load()
        store.close()
        assert str(caught.value).startswith("Setting DATABASE_URL")
        assert "\n" not in str(caught.value)
        return caught.value

    def test_no_server_is_said_without_the_password(self) -> None:
        port = free_port()
        error = self.failure(f"postgresql://user:s3cret@127.0.0.1:{port}/db")
        assert f"cannot reach Postgres at 127.0.0.1:{port}" in str(error)
        assert "s3cret" not in "".join(traceback.format_exception(error))

    def test_an_unknown_host_is_said(self) -> None:
        assert "cannot reach Postgres" in str(self.failure("postgresql://nowhere.invalid/db"))

    def test_a_missing_database_is_said(self, postgres_server: PostgresServer) -> None:
        error = self.failure(postgres_server.url("missing"))
        assert "has no database 'missing'; create it by CREATE DATABASE" in str(error)

    def test_an_unknown_user_is_said(self, postgres_url: str) -> None:
        error = self.failure(postgres_url.replace("//owl@", "//nobody:s3cret@"))
        assert "refuses user 'nobody'; correct the name or the password." in str(error)
        assert "s3cret" not in str(error)

    def test_a_user_without_rights_is_said(self, postgres_url: str) -> None:
        with psycopg.connect(postgres_url, autocommit=True) as admin:
            admin.execute("DROP ROLE IF EXISTS weak")
            admin.execute("CREATE ROLE weak LOGIN")
            admin.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        error = self.failure(postgres_url.replace("//owl@", "//weak@"))
        assert "may not create or write tables" in str(error)

    def test_an_option_that_makes_no_sense_is_said(self, postgres_url: str) -> None:
        assert "(" in str(self.failure(f"{postgres_url}&colour=red"))

    def test_a_lost_connection_is_made_anew(self, postgres_url: str) -> None:
        with opened(postgres_url) as store:
            commit(store)
            with psycopg.connect(postgres_url, autocommit=True) as admin:
                admin.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE application_name = 'owl_celery' AND datname = current_database()"
                )
            commit(store, "1-0", "2-0")
            assert store.load().cursor == "2-0"

    def test_a_controller_that_hangs_does_not_block_the_next(
        self, postgres_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("owl_celery.store.engine.STATEMENT_SECONDS", 1)
        with opened(postgres_url) as hanging, opened(postgres_url) as next_one:
            commit(hanging)
            with (
                pytest.raises(DBAPIError, match="idle-in-transaction"),
                hanging.engine().begin() as connection,
            ):
                connection.execute(text("UPDATE owl_learner SET cursor = 'lost'"))
                commit_until_free(next_one)
            assert next_one.load().cursor == "2-0"


def commit_until_free(store: SqlStore) -> None:
    """Commit as a controller does: a lock that takes too long is an error, and tried again."""
    for _ in range(20):
        try:
            commit(store, "1-0", "2-0")
            return
        except StaleCursorError:
            raise
        except StoreError:
            continue
    pytest.fail("The lock was never released.")
