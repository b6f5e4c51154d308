"""The database of what is learned, where faults can reach it."""

from __future__ import annotations

import os
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from benchmarks.faults.application import NAMESPACE
from benchmarks.postgres import PostgresServer
from owl_celery.settings import Settings
from owl_celery.store import open_store
from owl_celery.store.base import Store
from owl_celery.types import Outcome

SMALL_DISK: Final = "size=16m,mode=0700"


class Database(ABC):
    """A database, and how a controller finds it."""

    @abstractmethod
    def environment(self) -> Mapping[str, str]:
        """Settings of whoever uses it."""

    def close(self) -> None:
        """Give back what it takes."""

    def tries(self) -> int:
        """Tries that are in the aggregates; each outcome counts once."""
        with self._open() as store:
            return sum(row.tries for row in store.load().aggregates.task_types)

    def outcomes(self) -> list[Outcome]:
        """Raw outcomes, the latest 10,000."""
        with self._open() as store:
            return list(store.recent(10_000))

    @contextmanager
    def _open(self) -> Iterator[Store]:
        values = {name.removeprefix("OWL_").lower(): v for name, v in self.environment().items()}
        store = open_store(Settings.load(None, **values), NAMESPACE)
        try:
            yield store
        finally:
            store.close()


class SqliteDatabase(Database):
    """An SQLite file.

    Parameters
    ----------
    folder
        Made here; empty.
    wants_disk
        Whether it should be on a small disk of its own, if we may mount one.

    Attributes
    ----------
    path
        The file.
    is_disk
        Whether the folder is a disk of its own.

    """

    def __init__(self, folder: Path, wants_disk: bool = False) -> None:
        folder.mkdir(mode=0o700)
        self.folder = folder
        self.path = folder / "owl.sqlite3"
        may_mount = wants_disk and os.geteuid() == 0
        self.is_disk = may_mount and _mount("-t", "tmpfs", "-o", SMALL_DISK, "faults", folder)

    def environment(self) -> Mapping[str, str]:
        return {"OWL_CONTINUOUS_LEARNING_STORAGE_PATH": str(self.folder)}

    def remount(self, options: str) -> None:
        """Mount the small disk otherwise.

        Raises
        ------
        OSError
            When the system refuses.

        """
        if not _mount("-o", f"remount,{options}", self.folder):
            raise OSError(f"{self.folder} cannot be mounted {options}.")

    def close(self) -> None:
        if self.is_disk:
            subprocess.run(["umount", "-l", self.folder], check=False)


def _mount(*arguments: str | Path) -> bool:
    done = subprocess.run(["mount", *arguments], check=False, capture_output=True)
    return done.returncode == 0


class PostgresDatabase(Database):
    """A PostgreSQL server of our own.

    Attributes
    ----------
    server
        To be killed, and started again.

    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        self.server = PostgresServer()
        self._stack.callback(self.server.stop)
        self._url = self._stack.enter_context(self.server.database())

    def environment(self) -> Mapping[str, str]:
        return {"OWL_DATABASE_URL": self._url}

    def close(self) -> None:
        self._stack.close()
