"""The processes of one arm: servers, workers, controllers, and a producer in this process."""

from __future__ import annotations

import atexit
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from celery import Celery
from redis import Redis

from benchmarks.faults.application import NAMESPACE, Addresses, make_app
from benchmarks.faults.clock import make_clock
from benchmarks.faults.ledger import Ledger
from benchmarks.faults.plan import Plan
from benchmarks.faults.processes import CeleryProcess
from benchmarks.faults.proxy import Proxy
from benchmarks.faults.stores import PostgresDatabase, SqliteDatabase
from benchmarks.rabbitmq import RabbitServer
from owl_celery.controller.health import Health
from owl_celery.embedded import EmbeddedRedis, free_port
from owl_celery.gpus import fake_gpu
from owl_celery.installation import Parts, parts_of, uninstall
from owl_celery.keys import Keys
from owl_celery.lane import gpu_queue, lane_of_gpu
from owl_celery.wire import Heartbeat

KEYS: Final = Keys(NAMESPACE)
QUIET: Final = ("--without-mingle", "--without-gossip", "--without-heartbeat")
START_SECONDS: Final = 90.0
LAST_LINES: Final = 30
FAKES: Final = Path(__file__).with_name("fakes")
MODELS: Final = ("k80", "v100", "p100")


def shared_rabbit() -> RabbitServer:
    """One RabbitMQ for the whole suite: it takes seconds to start, and a virtual host none."""
    with _rabbit_lock:
        return _start_rabbit()


@cache
def _start_rabbit() -> RabbitServer:
    server = RabbitServer().start()
    atexit.register(server.close)
    return server


_rabbit_lock: Final = threading.Lock()


class Cluster:
    """One arm, started and ready.

    Parameters
    ----------
    arm
        As in ``make_app``.
    plan
        What it is made of.
    folder
        Takes logs and the database.

    Attributes
    ----------
    nvml
        File that says what is wrong with NVML: ``absent`` at first.
    clock
        File by which the clock of the first worker is shifted, if the plan says so.
    redis, state
        The broker and our state, by a way that no fault touches.
    ledger
        What tasks did.
    proxy
        In front of what the plan says.
    app
        The producer's application.
    workers, controllers
        Processes; those that a fault has killed stay in the list.
    numbers
        Gives each task of this cluster another number.

    """

    def __init__(self, arm: str, plan: Plan, folder: Path) -> None:
        self.arm = arm
        self.plan = plan
        self.folder = folder
        self.numbers = count(1)
        self.workers: list[CeleryProcess] = []
        self.controllers: list[CeleryProcess] = []
        self.metrics_ports: list[int] = []
        self._stack = ExitStack()
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        server = self._stack.enter_context(EmbeddedRedis())
        base = server.url.rsplit("/", 1)[0]
        port, broker = urlsplit(server.url).port or 0, f"{base}/0"
        if self.plan.broker == "rabbitmq":
            rabbit = shared_rabbit()
            broker = self._stack.enter_context(rabbit.virtual_host())
        self._broker_url = broker
        proxied = {"broker": urlsplit(broker).port or 0}.get(self.plan.proxied, port)
        self.proxy = Proxy("127.0.0.1", proxied)
        self._stack.enter_context(self.proxy)
        through = self._through if self.plan.proxied == "broker" else str
        self.addresses = Addresses(
            broker=through(broker),
            state=self._through(f"{base}/1") if self.plan.proxied == "state" else f"{base}/1",
            ledger=f"{base}/2",
            results=f"{base}/3",
        )
        self.redis = Redis.from_url(f"{base}/0", decode_responses=True)
        self.state = Redis.from_url(f"{base}/1", decode_responses=True)
        self.ledger = Ledger(self.addresses.ledger)
        for client in (self.redis, self.state, self.ledger):
            self._stack.callback(client.close)
        self.database = (
            PostgresDatabase()
            if self.plan.database == "postgres"
            else SqliteDatabase(self.folder / "learned", self.plan.database == "sqlite on a disk")
        )
        self._stack.callback(self.database.close)
        self._environment = {
            **self.addresses.environment(),
            **self.database.environment(),
            **dict(self.plan.environment),
            "FAULTS_ARM": self.arm,
        }
        self.nvml = self.folder / "nvml"
        if self.plan.nvml:
            self.nvml.write_text("absent")
            self._environment.update(FAULTS_NVML=str(self.nvml), FAULTS_FAKES=str(FAKES))
        self.clock = self.folder / "clock"
        make_clock(self.clock)
        self._stack.callback(self._stop_processes)
        self.workers = [self.start_worker(number) for number in range(self.plan.workers)]
        if self.arm == "owl":
            self.controllers = [self.start_controller() for _ in range(self.plan.controllers)]
        self.app: Celery = make_app(self.addresses, self.arm, **dict(self.plan.settings))
        self._stack.callback(self._close_app)
        self.wait(self.is_ready, "workers and controllers to be ready", START_SECONDS)

    def _through(self, url: str) -> str:
        """The same address by way of the proxy."""
        return url.replace(f":{urlsplit(url).port}/", f":{self.proxy.port}/")

    def node(self, number: int) -> str:
        """Celery node name of a worker."""
        return f"gpu{number}@faults"

    def queue(self, number: int) -> str:
        """The queue that a worker alone serves."""
        return gpu_queue(number)

    def start_worker(self, number: int, extra: Mapping[str, str] | None = None) -> CeleryProcess:
        """Start a worker; also again, after it was killed."""
        arguments = ["worker", "-n", self.node(number), "-c", "1", "-l", "INFO", *QUIET]
        environment = {**self._environment, **(extra or {})}
        if self.plan.clock and number == 0:
            environment["FAULTS_CLOCK"] = str(self.clock)
        if self.arm == "owl":
            gpu = fake_gpu(number, MODELS[number % len(MODELS)], socket.gethostname())
            environment = {**lane_of_gpu(gpu, is_simulated=not self.plan.nvml), **environment}
        elif self.arm == "celery_late":
            arguments += ["--prefetch-multiplier", "1"]
        return self._celery(arguments, environment)

    def start_plain_worker(self, *queues: str) -> CeleryProcess:
        """Start a worker without owl_celery that serves these queues."""
        arguments = ["worker", "-n", "plain@faults", "-c", "1", "-Q", ",".join(queues), *QUIET]
        return self._celery(arguments, {**self._environment, "FAULTS_ARM": "celery"})

    def start_controller(self, extra: Mapping[str, str] | None = None) -> CeleryProcess:
        """Start one more controller; it leads when no other one does."""
        environment = {"OWL_API_PORT": str(free_port()), "ENABLE_METRICS": "false"}
        if self.plan.metrics:
            self.metrics_ports.append(free_port())
            environment.update(ENABLE_METRICS="true", METRICS_PORT=str(self.metrics_ports[-1]))
        return self._celery(["owl", "serve"], {**self._environment, **environment, **(extra or {})})

    def _celery(self, arguments: list[str], environment: Mapping[str, str]) -> CeleryProcess:
        command = ["-A", "benchmarks.faults.app", *arguments]
        return CeleryProcess(command, environment, self.folder / "log")

    @property
    def parts(self) -> Parts:
        """What ``install`` made for the producer."""
        return parts_of(self.app)

    def is_ready(self) -> bool:
        """Whether every worker consumes, and the producer sees all of them."""
        if self.arm != "owl":
            return self._consumers() >= len(self.workers)
        beats = self.beats().values()
        is_open = sum(not beat.draining for beat in beats) >= len(self.workers)
        return is_open and self.open_queues() >= len(self.workers)

    def _consumers(self) -> int:
        """Workers that consume the default queue."""
        if self.plan.broker == "redis":
            return sum(one["cmd"] == "brpop" for one in self.redis.client_list())
        with self.app.connection_for_read() as connection:
            try:
                declared = connection.default_channel.queue_declare("celery", passive=True)
            except connection.channel_errors:
                return 0  # It is not there yet.
            return int(declared.consumer_count)

    def waiting(self, queue: str) -> int:
        """Messages that wait in a queue."""
        if self.plan.broker == "redis":
            return int(self.redis.llen(queue))
        return int(self._rabbit_queue(queue).get("messages_ready", 0))

    def held(self, queue: str) -> int:
        """Messages that were delivered from a queue and not acknowledged."""
        if self.plan.broker == "redis":
            texts: Any = self.redis.hvals("unacked")
            return sum(f'"{queue}"' in text for text in texts)
        return int(self._rabbit_queue(queue).get("messages_unacknowledged", 0))

    def _rabbit_queue(self, queue: str) -> dict[str, Any]:
        return shared_rabbit().queues(self._broker_url).get(queue, {})

    def open_queues(self) -> int:
        """Queues that the producer may choose from, by a view that is not stale."""
        snapshot = self.parts.sync.snapshot()
        if snapshot is None or time.monotonic() - snapshot.changed_at > 2.0:
            return 0
        return snapshot.fleet.open_count

    def beats(self) -> dict[str, Heartbeat]:
        """Latest heartbeat of each worker that has one."""
        nodes = [self.node(number) for number in range(len(self.workers))]
        texts: Any = self.state.mget([KEYS.heartbeat(node) for node in nodes])
        found = {
            node: Heartbeat.decode(text) for node, text in zip(nodes, texts, strict=True) if text
        }
        return {node: beat for node, beat in found.items() if beat is not None}

    def health(self) -> Health:
        """What the active controller says of itself; empty when none is active."""
        text: Any = self.state.get(KEYS.health)
        return (Health.decode(text) if text else None) or Health()

    def leader(self) -> CeleryProcess | None:
        """The controller that leads."""
        pid = self.health().controller.rpartition(":")[2]
        return next(
            (one for one in self.controllers if str(one.pid) == pid and one.is_running), None
        )

    def wait(self, holds: Callable[[], Any], what: str, seconds: float) -> float:
        """Wait for a condition; seconds that it took.

        Raises
        ------
        TimeoutError
            When the time is up.

        """
        began = time.monotonic()
        while not holds():
            if time.monotonic() - began > seconds:
                raise TimeoutError(f"Waited {seconds:g} s in vain for {what}.")
            time.sleep(0.05)
        return time.monotonic() - began

    def log(self) -> str:
        """What workers and controllers have said."""
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def complaints(self) -> str:
        """The last of it that is no news of a task."""
        lines = [line for line in self.log().splitlines() if "INFO/" not in line or "owl" in line]
        return "\n".join(lines[-LAST_LINES:])

    def _close_app(self) -> None:
        if self.arm == "owl":
            uninstall(self.app)
        self.app.close()

    def _stop_processes(self) -> None:
        for process in (*self.workers, *self.controllers):
            process.kill_group()  # Nothing that they keep is of use any more.

    def close(self) -> None:
        """End everything."""
        self._stack.close()
