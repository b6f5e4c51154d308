"""Transactions on one database: opened when needed, in the process that needs them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from owl_celery.errors import StoreError
from owl_celery.store.engine import Database, make_engine, read_options
from owl_celery.store.migrate import is_current, migrate
from owl_celery.store.problems import explain, is_passing, misfit
from owl_celery.store.sqlite_file import prepared


class Sessions:
    """Opens a database at first use in each process, so that a fork never shares a connection.

    Parameters
    ----------
    database
        Its schema is brought up to date before the first transaction.

    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self._engine: Engine | None = None
        self._pid = 0
        self._inode: int | None = None
        self._lock = threading.Lock()

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that is committed at the end, and undone by an exception.

        Raises
        ------
        StoreError
            When the database cannot be reached, written or brought up to date, here or within.

        """
        with self._translated(), self._opened().begin() as connection:
            yield connection

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees everything as it was at one moment.

        Raises
        ------
        StoreError
            As ``writing``.

        """
        with self._translated(), self._reader(self._opened()).begin() as connection:
            yield connection

    def engine(self) -> Engine:
        """The engine of this process, on a database that has the schema of this release.

        Raises
        ------
        StoreError
            As ``writing``.

        """
        with self._translated():
            return self._opened()

    def close(self) -> None:
        """Close the connections; the next use opens new ones."""
        with self._lock:
            self._dispose()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn the database's complaints into a sentence; what may be unsound is opened anew."""
        try:
            yield
        except SQLAlchemyError as error:
            if not is_passing(error):
                self.close()
            raise StoreError(explain(self.database, error)) from error
        except (ValueError, OverflowError) as error:
            # The SQLite driver says by these that a value does not fit.
            raise StoreError(misfit(self.database, str(error))) from error

    def _opened(self) -> Engine:
        with self._lock:
            if self._engine is not None and self._pid == os.getpid() and not self._was_replaced():
                return self._engine
            self._dispose()
            engine = make_engine(self.database)
            try:
                self._prepare(engine)
            except BaseException:
                engine.dispose()
                raise
            self._engine, self._pid = engine, os.getpid()
            return engine

    def _prepare(self, engine: Engine) -> None:
        path = self.database.path
        with nullcontext() if path is None else prepared(self.database, path):
            with self._reader(engine).begin() as connection:
                is_ready = is_current(connection)
            if not is_ready:
                with engine.begin() as connection:
                    migrate(connection)
            self._inode = None if path is None else path.stat().st_ino

    def _reader(self, engine: Engine) -> Engine:
        return engine.execution_options(**read_options(self.database))

    def _was_replaced(self) -> bool:
        """Whether the file that we have open is no longer the one of that name."""
        if self.database.path is None:
            return False
        try:
            return self.database.path.stat().st_ino != self._inode
        except OSError:
            return True

    def _dispose(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            # The connections of a parent process are not ours to close.
            engine.dispose(close=self._pid == os.getpid())
