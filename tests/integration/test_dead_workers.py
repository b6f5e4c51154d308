"""Real workers that are killed: nothing is lost, and only what ran runs again."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from billiard.exceptions import WorkerLostError

from owl_celery.brokers import open_broker
from owl_celery.controller import orphans, rescue, wedged
from owl_celery.controller.controller import Controller
from owl_celery.controller.leader import Leader
from owl_celery.gpus import fake_gpu
from owl_celery.lane import gpu_queue, lane_of_gpu
from owl_celery.redis_state import RedisState
from owl_celery.settings import Settings
from owl_celery.store.memory import MemoryStore
from owl_celery.testing import wait_until
from owl_celery.types import Outcome, TryState
from owl_celery.wire import TaskHeader, encode_event
from tests.integration.test_gpu_worker import HOST, KEYS, Cluster
from tests.message_broker import MessageBroker, on_both

pytestmark = pytest.mark.integration

QUEUES = (gpu_queue(0), gpu_queue(1))
LANES = tuple(
    lane_of_gpu(fake_gpu(index, "k80", HOST), is_simulated=True) for index in range(len(QUEUES))
)
HOLD = "tests.integration.gpu_app.hold"
KILL = "tests.integration.gpu_app.kill_worker"


class Watched(Cluster):
    """Workers with a controller in this process."""

    def __init__(self, broker: MessageBroker, folder: Path) -> None:
        super().__init__(broker, folder)
        settings = Settings.load(
            redis_url=broker.redis_url,
            namespace=KEYS.namespace,
            continuous_learning_storage_path=folder,
            policy="expected_completion",
        )
        state = RedisState(broker.redis_url, KEYS)
        self.controller = Controller(state, open_broker(self.app), settings, MemoryStore)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self.controller.run, args=(self._stop,))
        self._thread.start()

    @property
    def leader(self) -> Leader:
        leader = wait_until(lambda: self.controller.leader, "the controller to lead")
        assert leader is not None
        return leader

    def teach(self) -> None:
        """Make it known that a task takes a second."""
        for number in range(20):
            outcome = Outcome(
                f"t{number}", f"b{number}", 0, HOLD, 1.0, QUEUES[0], f"gpu0@{HOST}", "k80",
                TryState.SUCCESS, 1.0, 1.7e9,
            )  # fmt: skip
            self.redis.xadd(KEYS.events, {"e": encode_event(outcome)})
        wait_until(lambda: self.leader.learner.counters["outcomes"] >= 20, "what was taught")

    def route(self, name: str, queue: str, until: str = "", algorithm: str = "q_learning") -> Any:
        """Send a task as the router does."""
        header = TaskHeader(f"d-{name}", queue, algorithm, HOLD, 1.7e9, service_seconds=1.0)
        self.redis.hincrby(KEYS.assigned_count, queue, 1)
        self.redis.hincrbyfloat(KEYS.assigned_seconds, queue, 1.0)
        headers = {"owl": header.encode()}
        return self.app.send_task(HOLD, (name, until), queue=queue, headers=headers)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        super().close()


@pytest.fixture
def watched(message_broker: MessageBroker, tmp_path: Path) -> Iterator[Watched]:
    watched = Watched(message_broker, tmp_path)
    yield watched
    watched.close()


@on_both
def test_tasks_are_moved_to_an_idle_worker_and_rescued_from_a_dead_one(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rescue, "SILENT_SECONDS", 7.0)
    nodes = [watched.start(f"gpu{index}", LANES[index]) for index in range(2)]
    for node in nodes:
        watched.ready(node)
    watched.teach()

    # The second worker is idle: it gets what waits behind the long task of the first.
    watched.route("long", QUEUES[0], until="never")
    watched.running("long")
    moved = [watched.route(f"moved{number}", QUEUES[0]) for number in range(3)]
    assert [result.get(timeout=20) for result in moved] == ["moved0", "moved1", "moved2"]
    # RabbitMQ delivers what is moved before it says that it has written it.
    wait_until(lambda: watched.leader.counters["stolen"] == 3, "the account of it")

    # Now it has no time, until the first is dead and its tasks are rescued.
    watched.route("block", QUEUES[1], until="block")
    watched.running("block")
    waiting = [watched.route(f"waiting{number}", QUEUES[0]) for number in range(2)]
    watched.route("named", QUEUES[0], algorithm="user")
    watched.end(nodes[0], signal.SIGKILL)
    wait_until(lambda: QUEUES[0] not in watched.leader.load.names, "the worker to be missed", 6.0)
    wait_until(lambda: watched.leader.counters["rescued"] == 3, "the rescue", 15.0)
    # RabbitMQ hands back by itself what a lost connection held.
    assert watched.leader.counters["handed_back"] == (watched.broker.is_redis)
    watched.redis.set("block", 1)
    watched.redis.set("never", 1)

    for number, result in enumerate(waiting):
        assert result.get(timeout=20) == f"waiting{number}"
    wait_until(lambda: watched.ran().count("long") == 2, "what it ran to run again")
    wait_until(lambda: watched.broker.held() == 0, "all acknowledgements")
    ran = watched.ran()
    assert sorted(ran) == sorted(
        ["long", "long", "block", *(f"moved{n}" for n in range(3)), "waiting0", "waiting1"]
    )
    # Whoever names a queue waits for its worker.
    assert watched.broker.waiting(QUEUES[0]) == 1


@on_both
def test_what_a_killed_worker_ran_runs_again_when_it_is_back(cluster: Cluster) -> None:
    node = cluster.start("gpu0", LANES[0])
    cluster.ready(node)
    result = cluster.hold("again", QUEUES[0], until="go")
    cluster.hold("next", QUEUES[0])
    cluster.running("again")
    cluster.end(node, signal.SIGKILL)
    if cluster.broker.is_redis:
        assert cluster.broker.held() == 1

    cluster.start("gpu0", LANES[0])

    wait_until(lambda: cluster.ran() == ["again", "again"], "the task to run again", 30.0)
    cluster.redis.set("go", 1)
    assert result.get(timeout=10) == "again"
    wait_until(lambda: cluster.ran() == ["again", "again", "next"], "the next one")
    wait_until(lambda: cluster.broker.held() == 0, "all acknowledgements")
    if cluster.broker.is_redis:
        assert "they run again" in cluster.log(node)


def test_what_dead_workers_held_of_the_default_queue_is_told_by_their_heartbeats(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orphans, "SILENT_SECONDS", 6.0)
    twice = {"OWL_MAX_WORKER_LOSSES": "2"}
    nodes = [watched.start(f"gpu{index}", {**LANES[index], **twice}) for index in range(2)]
    for node in nodes:
        watched.ready(node)

    # One kills the worker that takes it, and then the other.
    task = watched.app.send_task(KILL, queue="celery")
    for node in nodes:
        watched.processes[node].wait(30.0)
    watched.start("gpu0", {**LANES[0], **twice})

    with pytest.raises(WorkerLostError, match="died 2 times"):
        task.get(timeout=60)
    assert watched.ran() == ["kill", "kill"]
    wait_until(lambda: watched.broker.held() == 0, "all acknowledgements")
    assert watched.hold("next", "celery").get(timeout=10) == "next"


@pytest.mark.parametrize("message_broker", ["rabbitmq"], indirect=True)
def test_a_task_that_kills_one_worker_after_the_other_is_given_up(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each rescue moves a copy, which itself was never delivered before.
    monkeypatch.setattr(rescue, "SILENT_SECONDS", 6.0)
    twice = {"OWL_MAX_WORKER_LOSSES": "2"}
    nodes = [watched.start(f"gpu{index}", {**LANES[index], **twice}) for index in range(2)]
    for node in nodes:
        watched.ready(node)
    header = TaskHeader("d-kill", QUEUES[0], "q_learning", HOLD, 1.7e9).encode()

    task = watched.app.send_task(KILL, queue=QUEUES[0], headers={"owl": header})
    for node in nodes:
        watched.processes[node].wait(60.0)
    watched.start("gpu0", {**LANES[0], **twice})

    with pytest.raises(WorkerLostError, match="died 2 times"):
        task.get(timeout=60)
    assert watched.ran() == ["kill", "kill"]


@on_both
def test_a_worker_that_lives_and_takes_nothing_loses_what_waits_until_it_is_well(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wedged, "WEDGED_SECONDS", 3.0)
    monkeypatch.setattr(wedged, "RECONNECT_SECONDS", 2.0)
    nodes = [watched.start(f"gpu{index}", LANES[index]) for index in range(2)]
    for node in nodes:
        watched.ready(node)
    watched.teach()
    control = watched.app.control

    def is_open(queue: str) -> bool:
        load = watched.leader.load
        return queue in load.names and load.names.index(queue) not in load.closed

    # Both are busy, so that nobody steals; then the first stops consuming.
    for number, queue in enumerate(QUEUES):
        watched.route(f"block{number}", queue, until=f"block{number}")
        watched.running(f"block{number}")
    waiting = [watched.route(f"first{number}", QUEUES[0]) for number in range(2)]
    control.cancel_consumer(QUEUES[0], destination=[nodes[0]])
    wait_until(lambda: not is_open(QUEUES[0]), "its queue to be closed", 2.0)
    wait_until(lambda: watched.leader.counters["rescued"] == 2, "what waits to be moved", 5.0)
    assert "takes no tasks" in watched.leader.health().troubles["workers"]
    for number in range(2):
        watched.redis.set(f"block{number}", 1)
    assert [result.get(timeout=20) for result in waiting] == ["first0", "first1"]
    control.add_consumer(QUEUES[0], destination=[nodes[0]])
    wait_until(lambda: is_open(QUEUES[0]), "its queue to be open again", 5.0)
    assert watched.hold("again", QUEUES[0]).get(timeout=10) == "again"

    # Now its event loop stands still, while the second is busy.
    watched.route("block2", QUEUES[1], until="block2")
    watched.running("block2")
    control.broadcast("stand_still", {"until": "go on"}, destination=[nodes[0]])
    wait_until(lambda: not is_open(QUEUES[0]), "its queue to be closed", 8.0)
    waiting = [watched.route(f"second{number}", QUEUES[0]) for number in range(2)]
    # RabbitMQ has given it the first already, which waits in its socket.
    moved = 4 if watched.broker.is_redis else 3
    wait_until(lambda: watched.leader.counters["rescued"] == moved, "what waits to be moved", 5.0)
    watched.redis.set("block2", 1)
    assert waiting[1].get(timeout=20) == "second1"
    watched.redis.set("go on", 1)
    assert waiting[0].get(timeout=20) == "second0"
    wait_until(lambda: is_open(QUEUES[0]), "its queue to be open again", 5.0)
    assert watched.hold("on", QUEUES[0]).get(timeout=10) == "on"


@pytest.fixture
def cluster(message_broker: MessageBroker, tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(message_broker, tmp_path)
    yield cluster
    cluster.close()
