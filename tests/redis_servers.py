"""Redis servers for the tests that need more than an empty one: users, TLS, Sentinel, Cluster."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from owl_celery.embedded import find_program, free_port
from owl_celery.guard import GuardedProcess
from owl_celery.testing import wait_until
from tests.programs import find_program as find_tool

READY: Final = ("eady to accept connections", "Sentinel ID is")
HOST: Final = "127.0.0.1"


class RedisServer:
    """A server in a private folder; it ends with this process.

    Parameters
    ----------
    directives
        Lines of its configuration beside ``port``, ``dir`` and the like; ``{port}`` and
        ``{folder}`` are filled in.
    arguments
        Of its command line.

    Attributes
    ----------
    port, folder
        Where it listens, by TCP and by the socket ``redis.sock``.

    """

    def __init__(self, *directives: str, arguments: Sequence[str] = ()) -> None:
        # The nodes of a cluster talk at a port that is 10,000 higher.
        self.port = next(port for port in iter(free_port, 0) if port <= 55_535)
        # Not pytest's temporary folder: a socket's path must stay under 108 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="owl-redis-"))
        config = self.folder / "redis.conf"
        lines = (
            *("bind 127.0.0.1", "pidfile {folder}/pid", "dir {folder}", "daemonize no"),
            *directives,
        )
        text = "\n".join(lines).replace("{port}", str(self.port))
        config.write_text(text.replace("{folder}", str(self.folder)))
        self._process = GuardedProcess(
            [str(find_program()), str(config), *arguments],
            remove=self.folder,
            env={**os.environ, "LC_ALL": "C"},
        )
        try:
            wait_until(self._is_ready, "Redis to start")
        except AssertionError as error:
            output = self._process.output()
            self.stop()
            raise AssertionError(f"{error} It said: {output}") from None

    def _is_ready(self) -> bool:
        return any(words in self._process.output() for words in READY)

    def kill(self) -> None:
        """End it by SIGKILL."""
        os.kill(int((self.folder / "pid").read_text()), signal.SIGKILL)
        wait_until(lambda: not self._process.is_running, "Redis to be gone")

    def stop(self) -> None:
        """End it and delete its folder."""
        self._process.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def plain(*directives: str) -> RedisServer:
    """A server that keeps nothing on disk."""
    return RedisServer("port {port}", 'save ""', *directives)


def tls(folder: Path) -> RedisServer:
    """A server that speaks TLS alone, to those who show the certificate in ``folder``."""
    certificate, key = make_certificate(folder)
    return RedisServer(
        *("port 0", "tls-port {port}", 'save ""', "tls-auth-clients yes"),
        *(f"tls-cert-file {certificate}", f"tls-key-file {key}"),
        f"tls-ca-cert-file {certificate}",
    )


def sentinel(master: RedisServer, *directives: str) -> RedisServer:
    """A Sentinel that alone decides within half a second that ``mymaster`` is gone."""
    return RedisServer(
        "port {port}",
        f"sentinel monitor mymaster {HOST} {master.port} 1",
        "sentinel down-after-milliseconds mymaster 500",
        "sentinel failover-timeout mymaster 2000",
        *directives,
        arguments=["--sentinel"],
    )


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Make a certificate of this machine that vouches for itself, and its key."""
    folder.mkdir(exist_ok=True)
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        [
            *(find_tool("openssl"), "req", "-x509", "-days", "2", "-nodes"),
            *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-subj", f"/CN={HOST}", "-addext", f"subjectAltName=IP:{HOST}"),
            *("-out", certificate, "-keyout", key),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key
