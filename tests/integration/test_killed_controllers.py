"""Controllers that are killed while they give idle workers of RabbitMQ what waits elsewhere."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from owl_celery.testing import wait_until
from owl_celery.types import Outcome, TryState
from owl_celery.wire import TaskHeader, encode_event
from tests.controller_process import start_controller
from tests.integration.test_dead_workers import HOLD, LANES, QUEUES
from tests.integration.test_gpu_worker import HOST, KEYS, Cluster
from tests.message_broker import MessageBroker

pytestmark = [pytest.mark.integration, pytest.mark.slow]

KILLS: Final = 3
EACH: Final = 6


@pytest.fixture
def cluster(message_broker: MessageBroker, tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(message_broker, tmp_path)
    yield cluster
    cluster.close()


def teach(cluster: Cluster) -> None:
    """Make it known that a task takes a second."""
    for number in range(20):
        outcome = Outcome(
            f"t{number}", f"b{number}", 0, HOLD, 1.0, QUEUES[0], f"gpu0@{HOST}", "k80",
            TryState.SUCCESS, 1.0, 1.7e9,
        )  # fmt: skip
        cluster.redis.xadd(KEYS.events, {"e": encode_event(outcome)})


def send(cluster: Cluster, *numbers: int) -> None:
    """Send tasks to the queue of the busy worker, as the router does."""
    for number in numbers:
        header = TaskHeader(
            f"d{number}", QUEUES[0], "expected_completion", HOLD, 1.7e9, service_seconds=1.0
        )
        headers = {"owl": header.encode()}
        cluster.app.send_task(HOLD, (str(number),), queue=QUEUES[0], headers=headers)
    cluster.redis.hincrby(KEYS.assigned_count, QUEUES[0], len(numbers))
    cluster.redis.hincrbyfloat(KEYS.assigned_seconds, QUEUES[0], float(len(numbers)))


@pytest.mark.parametrize("message_broker", ["rabbitmq"], indirect=True)
def test_no_task_is_lost_or_runs_twice(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What it knows is complete with the first outcomes.
    monkeypatch.setenv("OWL_POLICY", "expected_completion")
    for node in [cluster.start(f"gpu{index}", LANES[index]) for index in range(2)]:
        cluster.ready(node)
    teach(cluster)
    cluster.hold("long", QUEUES[0], until="end")
    cluster.running("long")
    draw = random.Random(1)
    sent = 0
    for _ in range(KILLS):
        send(cluster, *range(sent, sent + EACH))
        sent += EACH
        # All of these run because a controller moves them to the other worker, one by one.
        enough = len(cluster.ran()) + draw.randint(1, EACH - 2)
        controller = start_controller(
            cluster.broker.redis_url, tmp_path / "learned", cluster.broker.url, KEYS.namespace
        )
        try:
            wait_until(lambda: len(cluster.ran()) > enough, "tasks to be moved", 30.0)  # noqa: B023
        finally:
            controller.kill()
            controller.wait()
    cluster.redis.set("end", 1)

    wait_until(lambda: len(cluster.redis.lrange("ended", 0, -1)) > sent, "all tasks", 30.0)
    wait_until(lambda: cluster.broker.held() == 0, "all acknowledgements")
    assert [cluster.broker.waiting(queue) for queue in QUEUES] == [0, 0]
    assert Counter(cluster.ran()) == Counter(["long", *map(str, range(sent))])
