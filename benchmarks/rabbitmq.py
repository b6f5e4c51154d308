"""A RabbitMQ server of our own, for tests and benchmarks: the system's, on loopback only."""

from __future__ import annotations

import base64
import http.client
import itertools
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from owl_celery.embedded import LOOPBACK, free_port
from owl_celery.errors import BrokerError
from owl_celery.guard import GuardedProcess

START_SECONDS: Final = 60.0
PROGRAMS: Final = (Path("/usr/lib/rabbitmq/bin/rabbitmq-server"),)
"""Before what is on PATH: Debian's there insists on root or the user rabbitmq."""

USER: Final = "guest"
CONFIGURATION: Final = """\
listeners.tcp.1 = {host}:{port}
management.tcp.ip = {host}
management.tcp.port = {management_port}
management_agent.disable_metrics_collector = true
collect_statistics_interval = 100
log.console = true
log.console.level = warning
log.file = false
disk_free_limit.absolute = 1MB
vm_memory_high_watermark.absolute = 1GB
"""


class RabbitServer:
    """A server that listens on loopback only, and ends with this process, even by SIGKILL.

    It has free ports, a private folder and an ``epmd`` of its own, so that any number of them run
    beside each other and beside the system's. It starts within some seconds, so one is started for
    a whole run, and a virtual host for each test within some milliseconds. ``stop`` is a crash, by
    SIGKILL; what the server has promised to keep is there after the next ``start``.

    Attributes
    ----------
    port
        Where AMQP is spoken.

    Raises
    ------
    BrokerError
        When RabbitMQ is not installed, or does not start.

    """

    def __init__(self) -> None:
        self._program = find_program()
        self._folder = Path(tempfile.mkdtemp(prefix="owl-rabbit-"))
        self._numbers = itertools.count()
        self._epmd_port, self._management_port, self.port = (free_port() for _ in range(3))
        self._epmd: GuardedProcess | None = None
        self._server: GuardedProcess | None = None
        (self._folder / "rabbitmq.conf").write_text(
            CONFIGURATION.format(
                host=LOOPBACK, port=self.port, management_port=self._management_port
            )
        )
        (self._folder / "enabled_plugins").write_text("[rabbitmq_management].")

    def start(self) -> Self:
        """Start the server and wait until it answers; without effect when it runs."""
        if self._server is not None:
            return self
        if self._epmd is None:
            # Else the server starts one that outlives it.
            self._epmd = GuardedProcess(
                ["epmd", "-port", str(self._epmd_port), "-address", LOOPBACK], remove=self._folder
            )
        server = GuardedProcess(
            # An end in good order takes six seconds.
            [str(self._program)],
            stop_signal=signal.SIGKILL,
            env=self._environment(),
        )
        deadline = time.monotonic() + START_SECONDS
        try:
            while server.is_running and time.monotonic() < deadline:
                if self._answers():
                    self._server = server
                    return self
                time.sleep(0.05)
            raise BrokerError(f"RabbitMQ did not start: {server.output()[-2000:]}")
        finally:
            if self._server is None:
                server.stop()

    def stop(self) -> None:
        """Kill the server; without effect when it does not run."""
        server, self._server = self._server, None
        if server is not None:
            server.stop()

    def close(self) -> None:
        """End everything and delete the folder."""
        self.stop()
        if self._epmd is not None:
            self._epmd.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @contextmanager
    def virtual_host(self) -> Iterator[str]:
        """Address of a fresh, empty virtual host, ``amqp://...``; deleted at the end."""
        name = f"test{next(self._numbers)}"
        self.ask("PUT", f"vhosts/{name}")
        rights = {"configure": ".*", "write": ".*", "read": ".*"}
        self.ask("PUT", f"permissions/{name}/{USER}", rights)
        try:
            yield f"amqp://{USER}:{USER}@{LOOPBACK}:{self.port}/{name}"
        finally:
            if self._server is not None:
                self.ask("DELETE", f"vhosts/{name}")

    def queues(self, url: str) -> dict[str, dict[str, Any]]:
        """What RabbitMQ tells of each queue in the virtual host of an address, by name.

        ``messages_ready`` wait, ``messages_unacknowledged`` are held by consumers.
        """
        # Without statistics, which are seconds old.
        options = "disable_stats=true&enable_queue_totals=true"
        found = self.ask("GET", f"queues/{url.rsplit('/', 1)[-1]}?{options}")
        return {queue["name"]: queue for queue in found}

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Ask the management API.

        Raises
        ------
        BrokerError
            When it refuses.

        """
        connection = http.client.HTTPConnection(LOOPBACK, self._management_port, timeout=10.0)
        token = base64.b64encode(f"{USER}:{USER}".encode()).decode()
        headers = {"Authorization": f"Basic {token}", "Content-Type": "application/json"}
        try:
            connection.request(method, f"/api/{path}", json.dumps(body or {}), headers)
            reply = connection.getresponse()
            text = reply.read()
        finally:
            connection.close()
        if reply.status >= 400:
            raise BrokerError(f"RabbitMQ refused {method} {path}: {text.decode()}")
        return json.loads(text) if text else None

    def _answers(self) -> bool:
        try:
            self.ask("GET", "health/checks/virtual-hosts")
        except (OSError, http.client.HTTPException, BrokerError):
            return False
        return True

    def _environment(self) -> dict[str, str]:
        folder = self._folder
        return {
            **os.environ,
            "HOME": str(folder),  # Of .erlang.cookie.
            "ERL_EPMD_ADDRESS": LOOPBACK,
            "ERL_EPMD_PORT": str(self._epmd_port),
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_NODENAME": f"owl{self.port}@localhost",
            # One core is enough, and nobody waits for work by going round in circles.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                "+S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none "
                "-kernel inet_dist_use_interface {127,0,0,1}"
            ),
            # The script becomes the server, which is then ended by the signal itself.
            "detached": "1",
        }


def find_program() -> Path:
    """Find the script that starts a server.

    Raises
    ------
    BrokerError
        When there is none.

    """
    for path in PROGRAMS:
        if path.exists():
            return path
    if found := shutil.which("rabbitmq-server"):
        return Path(found)
    raise BrokerError("There is no RabbitMQ: install rabbitmq-server (apt-get install ...).")
