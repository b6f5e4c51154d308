"""Results by messages, ``rpc://``, on RabbitMQ: the queue that a policy chooses changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, chain, group, signals
from celery.contrib.testing.worker import start_worker

from owl_celery import install
from owl_celery.installation import parts_of, uninstall
from owl_celery.testing import wait_until
from owl_celery.types import QueueView
from tests.integration.test_feedback import leave_logging
from tests.message_broker import MessageBroker
from tests.published import Publisher

pytestmark = pytest.mark.integration

QUEUE = "gpu.a.0"


@pytest.fixture(params=["classic", "quorum"])
def app(
    request: pytest.FixtureRequest, message_broker: MessageBroker, tmp_path: Path
) -> Iterator[Celery]:
    """A routed application with a worker in this process, which consumes the queue of a GPU."""
    app = Celery("rpc", broker=message_broker.url, backend="rpc://", set_as_current=False)
    app.conf.broker_heartbeat = 1  # A worker on RabbitMQ ends when something wakes it.
    app.conf.task_create_missing_queue_type = app.conf.task_default_queue_type = request.param
    app.conf.owl_embed_controller = False
    install(app, redis_url=message_broker.redis_url, continuous_learning_storage_path=tmp_path)

    @app.task(name="add", shared=False)
    def add(x: int, y: int) -> int:
        return x + y

    @app.task(name="fail", shared=False)
    def fail() -> None:
        raise ValueError("as asked")

    @app.task(name="where", bind=True, shared=False)
    def where(self: Any) -> str:
        if self.request.retries == 0:
            raise self.retry(countdown=0)
        return str(self.request.delivery_info["routing_key"])

    signals.setup_logging.connect(leave_logging)
    with start_worker(
        app, perform_ping_check=False, pool="threads", queues=["celery", QUEUE], concurrency=2
    ):
        yield app
    signals.setup_logging.disconnect(leave_logging)
    uninstall(app)
    app.close()


@pytest.mark.parametrize("message_broker", ["rabbitmq"], indirect=True)
def test_results_come_back_from_the_queue_that_was_chosen(app: Celery) -> None:
    parts = parts_of(app)
    publisher = Publisher(parts.state)

    def sees_it() -> bool:
        publisher.publish([QueueView(QUEUE, "V100")])
        snapshot = parts.sync.snapshot()
        return snapshot is not None and bool(snapshot.fleet.is_open.sum())

    wait_until(sees_it, "the producer to see the queue")
    add, fail, where = (app.tasks[name] for name in ("add", "fail", "where"))
    sum_of: Any = chain(add.s(1, 1), add.s(2), add.s(3)).apply_async()
    assert sum_of.get(timeout=10) == 7
    several: Any = group(add.s(number, number) for number in range(5)).apply_async()
    assert several.get(timeout=10) == [0, 2, 4, 6, 8]
    with pytest.raises(ValueError, match="as asked"):
        fail.delay().get(timeout=10)
    assert where.delay().get(timeout=10) == QUEUE
    assert add.apply_async((1, 2), countdown=0.2).get(timeout=10) == 3
