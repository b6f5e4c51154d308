"""Feedback from a real worker: one start and one outcome for each try."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery, Task, signals
from celery.contrib.testing.worker import start_worker
from celery.exceptions import Reject
from celery.result import AsyncResult
from celery.worker.state import revoked as revoked_tasks

from owl_celery.feedback import Feedback
from owl_celery.gpus import CurrentGpu
from owl_celery.keys import Keys
from owl_celery.outbox import Outbox
from owl_celery.redis_state import RedisState
from owl_celery.settings import Settings
from owl_celery.testing import wait_until
from owl_celery.types import Outcome, TryState
from owl_celery.wire import Discarded, Event, Started, TaskHeader, decode_event
from tests.message_broker import MessageBroker, on_both

pytestmark = [pytest.mark.integration, on_both]


class OneGpu(CurrentGpu):
    """The GPU of the worker under test."""

    queue = "gpu.a.0"
    model = "V100"


class Worker:
    """An application with a running worker, and what its feedback wrote to the stream."""

    def __init__(self, broker: MessageBroker) -> None:
        self.app = Celery("feedback", broker=broker.url, backend=broker.redis_url)
        self.app.conf.broker_connection_retry_on_startup = True
        # A worker on RabbitMQ notices that it is to end when something wakes it.
        self.app.conf.broker_heartbeat = 1
        self.state = RedisState(broker.redis_url, Keys("test"))
        self.outbox = Outbox(self.state, Settings())
        self.feedback = Feedback(self.app, self.outbox, OneGpu())

    def all_events(self) -> list[Event | None]:
        """Whatever is on the stream."""
        entries: Any = self.state.client.xrange(self.state.keys.events)
        return [decode_event(fields["e"]) for _, fields in entries]

    def events(self, outcomes: int) -> tuple[list[Started], list[Outcome]]:
        """Wait for so many outcomes; then starts and outcomes in order."""
        deadline = time.monotonic() + 10.0
        while True:
            events = self.all_events()
            ended = [event for event in events if isinstance(event, Outcome)]
            if len(ended) >= outcomes:
                return [event for event in events if isinstance(event, Started)], ended
            assert time.monotonic() < deadline, f"{len(ended)} of {outcomes} outcomes came"
            time.sleep(0.01)


def leave_logging(**_: Any) -> None:
    """Configure nothing."""


@pytest.fixture
def worker(message_broker: MessageBroker) -> Iterator[Worker]:
    worker = Worker(message_broker)
    worker.feedback.connect()

    @worker.app.task(shared=False, name="work")
    def work(seconds: float = 0.0) -> str:
        time.sleep(seconds)
        return "done"

    @worker.app.task(shared=False, name="fail")
    def fail() -> None:
        raise ValueError("no")

    @worker.app.task(shared=False, name="run_out")
    def run_out() -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    @worker.app.task(shared=False, name="try_twice", bind=True)
    def try_twice(self: Any) -> str:
        if self.request.retries == 0:
            raise self.retry(exc=ConnectionError("away"), countdown=0)
        return "done"

    @worker.app.task(shared=False, name="try_twice_in_except", bind=True)
    def try_twice_in_except(self: Any) -> str:
        try:
            if self.request.retries == 0:
                raise OSError("away")
        except OSError:
            raise self.retry(countdown=0) from None
        return "done"

    @worker.app.task(shared=False, name="poll", bind=True)
    def poll(self: Any) -> str:
        if self.request.retries == 0:
            raise self.retry(countdown=0)
        return "done"

    @worker.app.task(shared=False, name="reject", acks_late=True)
    def reject() -> None:
        raise Reject("not mine", requeue=False)

    @worker.app.task(
        shared=False,
        name="sized",
        owl_type="sized.by_author",
        owl_size=lambda args, _: args[0],
    )
    def sized(size: float) -> None:
        pass

    # A receiver of this signal keeps Celery from changing how this process logs.
    signals.setup_logging.connect(leave_logging)
    with start_worker(worker.app, perform_ping_check=False, pool="solo", shutdown_timeout=20.0):
        yield worker
    signals.setup_logging.disconnect(leave_logging)
    worker.feedback.disconnect()
    worker.outbox.close()
    worker.app.close()


def send(worker: Worker, name: str, *args: Any, **options: Any) -> AsyncResult:
    task: Task = worker.app.tasks[name]
    return task.apply_async(args, **options)


def test_success_is_reported_with_times_and_place(worker: Worker) -> None:
    header = TaskHeader(
        "d1", "gpu.a.0", "expected_completion", "work", time.time(), service_seconds=0.5
    )
    result = send(worker, "work", 0.05, headers={"owl": header.encode()})
    (started,), (outcome,) = worker.events(1)
    assert started.task_id == outcome.task_id == result.id
    assert (outcome.decision_id, outcome.algorithm) == ("d1", "expected_completion")
    assert outcome.state is TryState.SUCCESS
    assert 0.05 <= outcome.service_seconds < 5.0
    assert outcome.wait_seconds is not None and 0.0 <= outcome.wait_seconds < 5.0
    assert outcome.predicted_seconds == 0.5
    assert (outcome.queue, outcome.gpu_model) == ("gpu.a.0", "V100")
    assert outcome.worker_id


def test_a_task_without_our_header_teaches_too(worker: Worker) -> None:
    send(worker, "sized", 3.0)
    (started,), (outcome,) = worker.events(1)
    assert started.task_type == outcome.task_type == "sized.by_author"
    assert (outcome.size, outcome.algorithm) == (3.0, "user")


def test_failure_names_the_error_and_keeps_its_message_private(worker: Worker) -> None:
    send(worker, "fail")
    _, (outcome,) = worker.events(1)
    assert (outcome.state, outcome.error) == (TryState.FAILURE, "ValueError")
    assert not outcome.out_of_memory


def test_out_of_memory_is_recognised(worker: Worker) -> None:
    send(worker, "run_out")
    _, (outcome,) = worker.events(1)
    assert outcome.out_of_memory


def test_a_rejected_task_says_nothing_of_the_hardware(worker: Worker) -> None:
    send(worker, "reject")
    send(worker, "work")
    starts, outcomes = worker.events(1)
    assert [event.task_type for event in starts] == ["reject", "work"]
    assert [event.task_type for event in outcomes] == ["work"]


def test_a_producer_without_the_code_need_not_know_the_refinements(worker: Worker) -> None:
    header = TaskHeader("d1", "gpu.a.0", "shortest_queue", "sized", time.time())
    send(worker, "sized", 3.0, headers={"owl": header.encode()})
    _, (outcome,) = worker.events(1)
    assert (outcome.task_type, outcome.size) == ("sized.by_author", 3.0)


def test_time_until_the_eta_is_no_wait(worker: Worker) -> None:
    header = TaskHeader("d1", "gpu.a.0", "shortest_queue", "work", time.time())
    send(worker, "work", countdown=1.0, headers={"owl": header.encode()})
    _, (outcome,) = worker.events(1)
    assert outcome.wait_seconds is not None
    assert outcome.wait_seconds < 0.9


def test_each_try_of_a_retried_task_is_an_outcome(worker: Worker) -> None:
    send(worker, "try_twice")
    _, (first, second) = worker.events(2)
    assert (first.state, first.attempt, first.error) == (TryState.RETRY, 0, "ConnectionError")
    assert (second.state, second.attempt) == (TryState.SUCCESS, 1)
    assert first.task_id == second.task_id


def test_a_retry_in_an_except_block_names_its_error(worker: Worker) -> None:
    send(worker, "try_twice_in_except")
    _, (first, _) = worker.events(2)
    assert (first.state, first.error) == (TryState.RETRY, "OSError")


def test_a_task_that_polls_by_retrying_has_no_error(worker: Worker) -> None:
    send(worker, "poll")
    _, (first, _) = worker.events(2)
    assert (first.state, first.error) == (TryState.RETRY, None)


def test_celerys_own_tasks_are_not_reported(worker: Worker) -> None:
    worker.app.tasks["celery.accumulate"].apply_async()
    send(worker, "work")
    starts, outcomes = worker.events(1)
    assert [event.task_type for event in starts] == ["work"]
    assert [event.task_type for event in outcomes] == ["work"]


def test_tasks_called_or_run_eagerly_are_not_reported(worker: Worker) -> None:
    worker.app.tasks["work"]()
    worker.app.tasks["work"].apply()
    send(worker, "work")
    starts, _ = worker.events(1)
    assert len(starts) == 1


def test_an_error_in_a_handler_is_counted_and_never_raised(worker: Worker) -> None:
    worker.feedback.disconnect()
    broken = Feedback(worker.app, None, OneGpu())  # type: ignore[arg-type]
    broken.connect()
    try:
        assert send(worker, "work").get(timeout=10.0) == "done"
        assert broken.errors["prerun"] == 1
    finally:
        broken.disconnect()


@pytest.mark.parametrize("reason", ["expired", "revoked"])
def test_a_task_that_never_ran_is_reported_as_discarded(worker: Worker, reason: str) -> None:
    header = TaskHeader(
        "d1", "gpu.a.0", "q_learning", "work", time.time(), service_seconds=0.5
    ).encode()
    if reason == "expired":
        result = send(worker, "work", expires=1e-6, headers={"owl": header})
    else:
        # The worker takes the order while it waits for tasks, before the one that it is about.
        result = worker.app.tasks["work"].signature(task_id="to-revoke").freeze()
        worker.app.control.revoke(result.id)
        wait_until(lambda: result.id in revoked_tasks, "the order to revoke")
        send(worker, "work", task_id=result.id, headers={"owl": header})
    (event,) = wait_until(worker.all_events, "an event")
    assert isinstance(event, Discarded)
    assert (event.task_id, event.decision_id) == (result.id, "d1")
    assert (event.queue, event.gpu_model) == ("gpu.a.0", "V100")
    assert (event.task_type, event.service_seconds) == ("work", 0.5)
    assert not worker.feedback.errors
