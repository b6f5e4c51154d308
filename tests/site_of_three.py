"""A small site for tests: fleet, Redis, database and a controller whose clock a test moves."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from owl_celery.brokers.base import BlindBroker
from owl_celery.controller.controller import Controller
from owl_celery.controller.leader import Leader
from owl_celery.keys import Keys
from owl_celery.redis_state import RedisState
from owl_celery.settings import Settings
from owl_celery.store import open_store
from owl_celery.store.sql import SqlStore
from owl_celery.wire import Heartbeat, encode_event
from tests.learning import outcome

NAMESPACE = "learned"
GPUS = {"gpu.a.0": "V100", "gpu.a.1": "V100", "gpu.a.2": "K80"}


class Clock:
    """Monotonic time that only a test moves, until it ``is_real``."""

    def __init__(self) -> None:
        self.seconds = 100.0
        self.is_real = False

    def __call__(self) -> float:
        return time.monotonic() if self.is_real else self.seconds


class NoQueues(BlindBroker):
    """A broker in which nothing waits, unless the test says so."""

    def __init__(self) -> None:
        self.depth = 0

    def depths(self, queues: Sequence[str]) -> dict[str, int]:
        return dict.fromkeys(queues, self.depth)


class Site:
    """A fleet of three GPUs with its controller, Redis and database; time is the test's."""

    def __init__(
        self,
        redis_url: str,
        database_url: str,
        policy: str = "q_learning",
        namespace: str = NAMESPACE,
    ) -> None:
        self.settings = Settings.load(
            redis_url=redis_url,
            database_url=database_url,
            policy=policy,
            seed=1,
            namespace=namespace,
        )
        self.state = RedisState(redis_url, Keys(namespace))
        self.clock, self.broker = Clock(), NoQueues()
        self.sent = 0
        self.controller = self.make_controller()

    def make_controller(self) -> Controller:
        return Controller(self.state, self.broker, self.settings, name="site", clock=self.clock)

    @property
    def leader(self) -> Leader:
        assert self.controller.leader is not None
        return self.controller.leader

    def open_store(self) -> SqlStore:
        return open_store(self.settings, self.settings.namespace)

    def run_tasks(self, count: int) -> None:
        """Publish and finish tasks of three types on all GPUs, then let the controller learn."""
        random = np.random.default_rng(self.sent)
        for _ in range(count):
            number, self.sent = self.sent, self.sent + 1
            queue, task_type = [*GPUS][number % 3], f"type-{number // 3 % 3}"
            factor = 4.0 if GPUS[queue] == "K80" else 1.0
            event = outcome(
                number,
                task_type=task_type,
                queue=queue,
                worker_id=f"gpu{queue[-1]}@a",
                gpu_model=GPUS[queue],
                service_seconds=factor * float(random.lognormal(0.0, 0.2)),
            )
            self.state.client.xadd(self.state.keys.events, {"e": encode_event(event)})
            self.state.client.hincrby(self.state.keys.arrivals, task_type, 1)
        self.pass_time(0.5)

    def pass_time(self, seconds: float) -> None:
        self.clock.seconds += seconds
        for queue, gpu_model in GPUS.items():
            beat = Heartbeat(node=f"gpu{queue[-1]}@a", queue=queue, gpu_model=gpu_model)
            self.state.client.sadd(self.state.keys.nodes, beat.node)
            self.state.client.set(self.state.keys.heartbeat(beat.node), beat.encode(), px=5_000)
        # The lease runs out by the clock of the test, not by that of Redis.
        while not self.controller.tick():
            self.state.client.delete(self.state.keys.lease)
        while self.leader.learner.step():
            pass
