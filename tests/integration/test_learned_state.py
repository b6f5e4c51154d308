"""What a real controller keeps in a real database: the readable Q table, and exact state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import text

from owl_celery.brokers.base import BlindBroker
from owl_celery.controller.controller import Controller
from owl_celery.controller.leader import Leader
from owl_celery.controller.learner import Q_VALUES_SECONDS
from owl_celery.redis_state import RedisState
from owl_celery.settings import Settings
from owl_celery.store import open_store
from owl_celery.store.sql import SqlStore
from owl_celery.wire import Heartbeat, Keys, encode_event
from tests.learning import outcome
from tests.postgres import PostgresServer

pytestmark = pytest.mark.integration

NAMESPACE = "learned"
GPUS = {"gpu.a.0": "V100", "gpu.a.1": "V100", "gpu.a.2": "K80"}


class Clock:
    """Monotonic time that only a test moves."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


class NoQueues(BlindBroker):
    """A broker in which nothing waits, unless the test says so."""

    def __init__(self) -> None:
        self.depth = 0

    def depths(self, queues: Sequence[str]) -> dict[str, int]:
        return dict.fromkeys(queues, self.depth)


class Site:
    """A fleet of three GPUs with its controller, Redis and database; time is the test's."""

    def __init__(self, redis_url: str, database_url: str, policy: str = "q_learning") -> None:
        self.settings = Settings.load(
            redis_url=redis_url,
            database_url=database_url,
            policy=policy,
            seed=1,
            namespace=NAMESPACE,
        )
        self.state = RedisState(redis_url, Keys(NAMESPACE))
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
        return open_store(self.settings, NAMESPACE)

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


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(
    request: pytest.FixtureRequest, tmp_path: Path, postgres_server: PostgresServer
) -> Iterator[str]:
    """Address of a fresh database of either kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/owl.sqlite3"
    else:
        with postgres_server.database() as url:
            yield url


@pytest.fixture
def site(redis_url: str, database_url: str) -> Iterator[Site]:
    """A site whose controller has just taken the lease."""
    site = Site(redis_url, database_url)
    site.pass_time(0.1)
    yield site
    site.controller.step_down()


def test_the_q_table_can_be_read_from_the_database(site: Site) -> None:
    for _ in range(20):
        site.run_tasks(18)
    site.pass_time(Q_VALUES_SECONDS + 1.0)
    site.pass_time(Q_VALUES_SECONDS + 1.0)
    store = site.open_store()
    entries = {(e.task_type, e.queue): e for e in store.q_values()}
    assert entries.keys() == {(f"type-{n}", queue) for n in range(3) for queue in GPUS}
    for entry in entries.values():
        assert entry.gpu_model == GPUS[entry.queue]
        assert entry.is_open
        assert entry.visits == (40 if entry.gpu_model == "K80" else 80)
        assert entry.seconds == pytest.approx(entry.idle_seconds)
    fast, slow = entries["type-0", "gpu.a.0"], entries["type-0", "gpu.a.2"]
    assert slow.idle_seconds > fast.idle_seconds > 0.0
    # The query of the documentation, as Grafana and people write it.
    with store.engine().connect() as connection:
        query = (Path(__file__).parents[2] / "docs" / "state.md").read_text()
        query = query.split("```sql\n")[1].split("```")[0]
        found = connection.execute(text(query), {"namespace": NAMESPACE}).all()
    assert [row.task_type for row in found] == ["type-0", "type-1", "type-2"]
    store.close()


def test_the_q_table_follows_the_backlog_and_says_what_is_closed(site: Site) -> None:
    for _ in range(10):
        site.run_tasks(18)
    site.pass_time(Q_VALUES_SECONDS + 1.0)
    site.broker.depth = 5
    site.state.client.sadd(site.state.keys.drained, "gpu.a.1")
    for queue in GPUS:
        site.state.client.hincrby(site.state.keys.assigned_count, queue, 5)
        site.state.client.hincrbyfloat(site.state.keys.assigned_seconds, queue, 10.0)
    site.pass_time(1.0)
    site.pass_time(Q_VALUES_SECONDS + 1.0)
    store = site.open_store()
    for entry in store.q_values():
        assert entry.seconds > entry.idle_seconds + 5.0
        assert entry.is_open is (entry.queue != "gpu.a.1")
    store.close()


def test_an_idle_site_writes_nothing(site: Site) -> None:
    site.run_tasks(18)
    for _ in range(4):
        site.pass_time(Q_VALUES_SECONDS + 1.0)
    before = site.leader.learner.counters["commits"]
    for _ in range(3):
        site.pass_time(Q_VALUES_SECONDS + 1.0)
    assert site.leader.learner.counters["commits"] == before
