"""What lets people watch the demo: console, API and metrics, in a process of their own."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final
from urllib.error import URLError
from urllib.request import urlopen

from owl_celery.embedded import LOOPBACK, free_port
from owl_celery.errors import WorkerError
from owl_celery.guard import GuardedProcess

START_SECONDS: Final = 30.0
PORT_TRIES: Final = 3
LAST_LINES: Final = 5


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where to look.

    Parameters
    ----------
    console, api, metrics
        Address of the page, of the health in the API, and of the Prometheus metrics.

    """

    console: str
    api: str
    metrics: str

    @classmethod
    def on(cls, port: int, metrics_port: int) -> Addresses:
        """Those of a server on these ports of loopback."""
        console = f"http://{LOOPBACK}:{port}/"
        return cls(
            console=console,
            api=f"{console}api/v1/learning/health",
            metrics=f"http://{LOOPBACK}:{metrics_port}/metrics",
        )


@contextmanager
def watched(environment: Mapping[str, str]) -> Iterator[Addresses]:
    """Run ``owl serve`` on free ports until the end; it ends with us, also when we are killed.

    Parameters
    ----------
    environment
        Variables of the application.

    Raises
    ------
    WorkerError
        When it does not start; the message has its last words.

    """
    command = [sys.executable, "-m", "celery", "-A", "workers.app", "owl", "serve"]
    for left in reversed(range(PORT_TRIES)):
        port, metrics_port = free_port(), free_port()
        ports = {"OWL_API_PORT": str(port), "OWL_METRICS_PORT": str(metrics_port)}
        server = GuardedProcess(command, env={**os.environ, **environment, **ports})
        try:
            addresses = Addresses.on(port, metrics_port)
            if _wait(server, addresses):
                yield addresses
                return
            # Another process may take a free port before the server binds it: then try again.
            if not left:
                last = "\n".join(server.output().splitlines()[-LAST_LINES:])
                raise WorkerError(f"The demo's server did not start. Its last words:\n{last}")
        finally:
            server.stop()


def _wait(server: GuardedProcess, addresses: Addresses) -> bool:
    """Wait until the console is served; False when it will not be."""
    deadline = time.monotonic() + START_SECONDS
    while server.is_running and time.monotonic() < deadline:
        try:
            with urlopen(addresses.console, timeout=2.0):
                return True
        except (URLError, OSError):
            time.sleep(0.1)
    return False
