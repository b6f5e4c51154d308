"""The whole chain for tests: a producer, real workers on virtual GPUs, and ``owl serve``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
from celery import Celery

from owl_celery import install
from owl_celery.demo.stack import NAMESPACE, running_stack
from owl_celery.guard import GuardedProcess
from owl_celery.installation import parts_of, uninstall
from owl_celery.redis_state import RedisState
from owl_celery.testing import wait_until
from tests.prometheus import free_port

JOB: Final = "ResNet-18 (batch size 16)"
LONGER_JOB: Final = "A3C"


@dataclass(frozen=True, slots=True)
class Chain:
    """The running parts.

    Parameters
    ----------
    app
        A routed producer in this process.
    state
        Redis of load and learning state.
    metrics_address, api_address
        ``host:port`` of the exporter, and of API and console.
    environment
        What any other process of the application needs.

    """

    app: Celery
    state: RedisState
    metrics_address: str
    api_address: str
    environment: dict[str, str]

    def send(self, count: int, task_type: str = JOB, seconds: float = 0.02) -> list[Any]:
        """Publish tasks that take about so long; their results."""
        arguments = {"task_type": task_type, "scale_seconds": seconds}
        return [self.app.send_task("workers.tasks.replay", kwargs=arguments) for _ in range(count)]

    def run(self, count: int, task_type: str = JOB) -> None:
        """Publish tasks and wait until all have succeeded."""
        for result in self.send(count, task_type):
            result.get(timeout=60.0)

    def fail(self) -> None:
        """Publish a task that fails, and wait until it has."""
        (result,) = self.send(1, "no such job")
        wait_until(result.failed, "the task to fail", 60.0)

    def set_mode(self, mode: str) -> None:
        """Turn the kill switch, and wait until the producer has noticed."""
        self.state.client.set(self.state.keys.mode, mode)
        sync = parts_of(self.app).sync
        wait_until(lambda: sync.mode == mode, f"mode {mode}")

    def metrics(self) -> str:
        """What Prometheus would read."""
        return httpx.get(f"http://{self.metrics_address}/metrics", verify=False).text


@contextmanager
def running_chain(
    broker_url: str, folder: Path, fleet: dict[str, int] | None = None, **environment: str
) -> Iterator[Chain]:
    """Start a fleet (one k80 and one v100) and ``owl serve``; stop them in the end.

    Parameters
    ----------
    broker_url
        An empty Redis.
    folder
        Takes the database.
    environment
        More variables of ``owl serve``.

    """
    fleet = fleet or {"k80": 1, "v100": 1}
    port, api_port = free_port(), free_port()
    with running_stack(broker_url, fleet, folder, lambda _: None) as stack:
        variables = {
            **stack.environment,
            "METRICS_PORT": str(port),
            "OWL_API_PORT": str(api_port),
            **environment,
        }
        serve = GuardedProcess(
            [sys.executable, "-m", "celery", "-A", "workers.app", "owl", "serve"],
            env={**os.environ, **variables},
        )
        app = Celery("workers", broker=broker_url, backend=broker_url, set_as_current=False)
        install(app, namespace=NAMESPACE)
        chain = Chain(app, stack.state, f"127.0.0.1:{port}", f"127.0.0.1:{api_port}", variables)
        try:
            sync = parts_of(app).sync
            wait_until(lambda: sync.snapshot(), "the producer's view", 30.0)
            wait_until(lambda: _answers(chain), "the exporter", 60.0)
            yield chain
        finally:
            uninstall(app)
            app.close()
            serve.stop()


def _answers(chain: Chain) -> bool:
    try:
        return "owl_controller_active 1.0" in chain.metrics()
    except httpx.TransportError:
        return False
