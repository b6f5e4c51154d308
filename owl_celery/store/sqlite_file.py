"""The file of an SQLite database: made private, locked while it is prepared, checked."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final

from owl_celery.errors import StoreError
from owl_celery.private_files import make_private_folder
from owl_celery.store.engine import BUSY_SECONDS, Database

logger = logging.getLogger(__name__)

LOCK_SECONDS: Final = 30.0
POLL_SECONDS: Final = 0.02
DAMAGED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


@contextmanager
def prepared(database: Database, path: Path) -> Iterator[None]:
    """Hold the database's lock file while the database is brought up to date.

    The folder (0700) and the file (0600) exist then, and the file is sound: a damaged one has
    been moved aside, with one line in the log, and the next connection starts afresh.

    Raises
    ------
    StoreError
        When the folder or the file cannot be written.

    """
    try:
        make_private_folder(path.parent)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        lock = os.open(path.with_name(path.name + ".lock"), flags, 0o600)
    except OSError as error:
        raise _unwritable(database, error) from error
    try:
        _lock(lock, path)
        try:
            _create(path)
            damage = damage_of(path)
            if damage is not None:
                _move_aside(path, damage)
                _create(path)
        except OSError as error:
            raise _unwritable(database, error) from error
        yield
    finally:
        os.close(lock)


def _create(path: Path) -> None:
    """Make an empty private file, where there is none; one that exists is not even opened."""
    # To close any descriptor of a file drops all POSIX locks that this process has on it, those of
    # SQLite's own connections too. Another process that leaves then believes that it is the last,
    # and deletes the -wal and -shm files under them: what they commit after that is lost.
    if path.is_symlink() and not path.exists():
        # SQLite would follow it, and make a file that all may read wherever it leads.
        raise FileNotFoundError(errno.ENOENT, "a link that leads nowhere", str(path))
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))


def damage_of(path: Path) -> str | None:
    """What SQLite says is wrong with a file; None when it is sound or busy."""
    try:
        with closing(sqlite3.connect(path, timeout=BUSY_SECONDS)) as connection:
            (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", None)
        return str(error) if code is not None and code & 0xFF in DAMAGED else None
    return None if verdict == "ok" else str(verdict)


def _move_aside(path: Path, damage: str) -> None:
    """Rename a damaged database and its journal; nothing is deleted."""
    aside = path.with_name(f"{path.name}.corrupt-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
    count = 1
    while aside.exists():
        count += 1
        aside = aside.with_name(f"{aside.name.partition('.again-')[0]}.again-{count}")
    path.rename(aside)
    for suffix in ("-wal", "-shm"):
        journal = path.with_name(path.name + suffix)
        if journal.exists():
            journal.rename(aside.with_name(aside.name + suffix))
    logger.error(
        "The database %s is damaged (%s); it was moved to %s and learning starts afresh",
        path,
        damage.splitlines()[0],
        aside.name,
    )


def _lock(descriptor: int, path: Path) -> None:
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise StoreError(
                    f"Another process has been preparing the database {path} for "
                    f"{LOCK_SECONDS:.0f} seconds: stop it, then start again."
                ) from None
        time.sleep(POLL_SECONDS)


def _unwritable(database: Database, error: OSError) -> StoreError:
    return StoreError(
        f"Setting {database.setting}: cannot write {error.filename or database} "
        f"({error.strerror}); name a folder that this user can write."
    )
