"""The router: what it chooses, what it leaves to Celery, and that it never raises."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextvars import copy_context
from typing import Any

import pytest
from celery import Celery
from kombu.entity import Queue

from owl_celery.keys import Keys
from owl_celery.policies.expected_completion import ExpectedCompletion
from owl_celery.redis_state import RedisState
from owl_celery.router import LearningRouter, retry_lost, stamp_published
from owl_celery.settings import Settings
from owl_celery.sync import ProducerSync
from owl_celery.types import Decision, QueueView, TaskView
from owl_celery.wire import TaskHeader, header_in
from tests.published import Publisher

NAME = "proj.tasks.train"
BUSY = QueueView("gpu.a.0", "K80", waiting_count=3, waiting_seconds=9.0, running=((3.0, 1.0),))
IDLE = QueueView("gpu.a.1", "V100")


class Clock:
    """Monotonic time that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Producer:
    """A producer whose view is published by the test, and which publishes to nowhere."""

    def __init__(self, url: str, gpu_model: str = "", queue: str = "", **settings: Any) -> None:
        self.clock = Clock()
        self.state = RedisState(url, Keys("test"))
        self.settings = Settings(policy="shortest_queue", **settings)
        self.sync = ProducerSync(self.state, self.settings, self.clock)
        self.router = LearningRouter(
            self.sync,
            self.settings,
            current_gpu_model=lambda: gpu_model,
            clock=self.clock,
            current_queue=lambda: queue,
        )
        self.publisher = Publisher(self.state)

    def see(self, *queues: QueueView, **published: Any) -> None:
        """Publish a view and read it."""
        self.publisher.publish(queues, **published)
        self.sync.flush()

    def route(self, name: str = NAME, **options: Any) -> str | None:
        """Name the queue that a task is routed to; None when Celery decides."""
        self.options = options
        route = self.router(name, (), {}, options)
        return None if route is None else route["queue"].name

    def publish(self, routing_key: str, name: str = NAME, **headers: Any) -> dict[str, Any]:
        """Let Celery's signal stamp the message; returns its headers."""
        stamp_published(sender=name, headers=headers, routing_key=routing_key)
        return headers


@pytest.fixture
def producer(redis_url: str) -> Iterator[Producer]:
    producer = Producer(redis_url)
    yield producer
    producer.sync.close()


def retry_headers(queue: str, algorithm: str = "shortest_queue", **more: Any) -> dict[str, Any]:
    """Headers of a try that is being retried."""
    header = TaskHeader("d1", queue, algorithm, NAME, published_at=1.0, **more)
    return {"owl": header.encode()}


def test_sends_to_the_idle_queue(producer: Producer) -> None:
    producer.see(BUSY, IDLE)
    assert producer.route() == "gpu.a.1"
    assert producer.router.decisions["shortest_queue"] == 1


def test_declines_until_a_view_has_arrived(producer: Producer) -> None:
    assert producer.route() is None
    assert producer.router.fallbacks["no_view"] == 1


@pytest.mark.parametrize("queue", ["mine", Queue("mine")])  # type: ignore[no-untyped-call]
def test_explicit_queue_wins(producer: Producer, queue: str | Queue) -> None:
    producer.see(BUSY, IDLE)
    assert producer.route(queue=queue) is None
    assert TaskHeader.decode(producer.publish("mine")["owl"]).algorithm == "user"  # type: ignore[union-attr]


def test_explicit_exchange_wins(producer: Producer) -> None:
    producer.see(BUSY, IDLE)
    assert producer.route(exchange="mine", routing_key="key") is None


def test_leaves_celerys_own_tasks_alone(producer: Producer) -> None:
    producer.see(BUSY, IDLE)
    assert producer.route("celery.chord_unlock") is None
    assert "owl" not in producer.publish("celery", "celery.chord_unlock")


def test_closed_queues_are_not_chosen(producer: Producer) -> None:
    producer.see(BUSY, QueueView("gpu.a.1", "V100", is_open=False))
    assert producer.route() == "gpu.a.0"


def test_declines_when_every_queue_is_closed(producer: Producer) -> None:
    producer.see(QueueView("gpu.a.1", "V100", is_open=False))
    assert producer.route() is None
    assert producer.router.fallbacks["no_open_queue"] == 1


def test_published_tasks_count_at_once(producer: Producer) -> None:
    producer.see(QueueView("gpu.a.0", "V100"), QueueView("gpu.a.1", "V100"))
    chosen = []
    for _ in range(4):
        queue = producer.route()
        assert queue is not None
        producer.publish(queue)
        chosen.append(queue)
    assert sorted(chosen) == ["gpu.a.0", "gpu.a.0", "gpu.a.1", "gpu.a.1"]


def test_a_decision_that_is_not_published_does_not_count(producer: Producer) -> None:
    producer.see(IDLE)
    producer.route()
    producer.publish("elsewhere", "another.task")
    snapshot = producer.sync.snapshot()
    assert snapshot is not None
    assert snapshot.fleet.waiting_count.tolist() == [0]


def test_a_task_with_an_eta_does_not_count_as_waiting(producer: Producer) -> None:
    producer.see(IDLE)
    producer.route()
    headers = producer.publish("gpu.a.1", eta="2030-01-01T00:00:00")
    snapshot = producer.sync.snapshot()
    assert snapshot is not None
    assert snapshot.fleet.waiting_count.tolist() == [0]
    assert headers["owl"]["q"] == "gpu.a.1"


def test_assignments_stay_until_a_view_includes_them(producer: Producer) -> None:
    queues = (QueueView("gpu.a.0", "V100"), QueueView("gpu.a.1", "V100"))
    producer.see(*queues)
    first = producer.route()
    assert first is not None
    producer.publish(first)
    producer.see(*queues, ledger_time=1.0)
    second = producer.route()
    assert second != first
    producer.see(*queues)
    snapshot = producer.sync.snapshot()
    assert snapshot is not None
    assert snapshot.fleet.waiting_count.tolist() == [0, 0]


def test_tells_redis_what_was_assigned(producer: Producer) -> None:
    producer.see(IDLE)
    producer.route()
    producer.publish("gpu.a.1")
    producer.sync.flush()
    client, keys = producer.state.client, producer.state.keys
    assert client.hgetall(keys.assigned_count) == {"gpu.a.1": "1"}
    assert client.hgetall(keys.arrivals) == {NAME: "1"}


def test_header_says_how_the_task_was_routed(producer: Producer) -> None:
    producer.see(BUSY, IDLE)
    producer.route()
    value = producer.publish("gpu.a.1")["owl"]
    header = TaskHeader.decode(value)
    assert header is not None
    assert (header.queue, header.algorithm, header.task_type) == ("gpu.a.1", "shortest_queue", NAME)
    assert len(json.dumps(value)) < 300


def test_header_is_mirrored_for_libraries_that_nest_headers(producer: Producer) -> None:
    producer.see(IDLE)
    producer.route()
    headers = producer.publish("gpu.a.1", headers={"sentry-trace": "1"})
    assert headers["headers"]["owl"] == headers["owl"]
    assert header_in({"headers": {"owl": headers["owl"]}}) == header_in(headers)


def test_retry_is_routed_anew(producer: Producer) -> None:
    producer.see(BUSY, IDLE)
    assert producer.route(queue="gpu.a.0", headers=retry_headers("gpu.a.0")) == "gpu.a.1"
    assert "queue" not in producer.options


def test_retry_that_names_another_queue_keeps_it(producer: Producer) -> None:
    producer.see(BUSY, IDLE)
    assert producer.route(queue="mine", headers=retry_headers("gpu.a.0")) is None
    assert producer.options["queue"] == "mine"


def test_retry_of_a_task_that_was_moved_is_routed_anew(producer: Producer) -> None:
    producer.see(BUSY, IDLE)
    app = Celery("mover", set_as_current=False)

    @app.task(name=NAME, bind=True, shared=False)
    def train(self: Any) -> str | None:
        self.request.delivery_info = {"routing_key": "celery"}
        return producer.route(queue="celery", headers=retry_headers("gpu.a.0"))

    assert train.apply().get() == "gpu.a.1"
    app.close()


def test_task_that_was_moved_and_lost_is_routed_anew(producer: Producer) -> None:
    producer.see(BUSY, IDLE)

    def sent_again_by_the_parent() -> str | None:
        retry_lost("celery")
        return producer.route(queue="celery", headers=retry_headers("gpu.a.0"))

    assert copy_context().run(sent_again_by_the_parent) == "gpu.a.1"
    assert producer.route(queue="celery", headers=retry_headers("gpu.a.0")) is None


def test_arguments_are_never_logged(producer: Producer, caplog: pytest.LogCaptureFixture) -> None:
    class Task:
        @staticmethod
        def owl_size(args: Sequence[Any], kwargs: Mapping[str, Any]) -> float:
            return float(args[0])

    class Broken(LearningRouter):
        def declines(self, name: str, options: Mapping[str, Any]) -> bool:
            raise ValueError(f"cannot use {options['password']}")

    producer.see(IDLE)
    producer.router(NAME, ("my-secret",), {}, {}, task=Task())
    Broken(producer.sync, producer.settings)(NAME, (), {}, {"password": "my-secret"})
    assert len(caplog.records) == 2
    assert "my-secret" not in caplog.text


def test_a_failing_policy_gives_way_to_a_simpler_one(
    producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(ExpectedCompletion, "ready", True)
    monkeypatch.setattr(ExpectedCompletion, "choose", fail)
    producer.see(BUSY, IDLE, policy="expected_completion")
    assert producer.route() == "gpu.a.1"
    assert producer.router.fallbacks["policy_error"] == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"queue": "gpu.nowhere.0"},
        {"queue": "gpu.a.2"},
        {"queue": ["gpu.a.0"]},
        {"service_seconds": float("nan")},
        {"service_seconds": -1.0},
        {"service_seconds": float("inf")},
        {"propensity": float("nan")},
        None,
    ],
)
def test_a_decision_that_makes_no_sense_is_a_failure_of_the_policy(
    producer: Producer, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any] | None
) -> None:
    def decide(*_: Any) -> Decision | None:
        sound = Decision("gpu.a.0", "k80", "expected_completion", 1.0, 1.0)
        return None if wrong is None else sound._replace(**wrong)

    monkeypatch.setattr(ExpectedCompletion, "ready", True)
    monkeypatch.setattr(ExpectedCompletion, "choose", decide)
    closed = QueueView("gpu.a.2", gpu_model="K80", is_open=False)
    producer.see(BUSY, IDLE, closed, policy="expected_completion")
    assert producer.route() == "gpu.a.1"
    assert producer.router.fallbacks["policy_error"] == 1
    producer.publish("gpu.a.1")
    producer.sync.flush()
    assert producer.sync.failures == 0


@pytest.mark.parametrize(
    "told",
    [
        *({"size": size} for size in (float("nan"), -1.0, float("inf"), "large")),
        *({"model": object()}, {"tried": {object()}}, {"exceeded_bytes": "many"}),
    ],
)
def test_a_description_that_makes_no_sense_is_counted_and_the_task_routed(
    producer: Producer, told: Any
) -> None:
    class Senseless(LearningRouter):
        def task_view(self, name: str, *_: Any) -> TaskView:
            return TaskView(name, **told)

    router = Senseless(producer.sync, producer.settings, clock=producer.clock)
    producer.see(BUSY, IDLE)
    route = router(NAME, (), {}, {})
    assert route is not None and route["queue"].name == "gpu.a.1"
    assert router.fallbacks["bad_refinement"] == 1


def test_a_header_passed_on_by_a_task_is_dropped_when_we_are_not_asked(producer: Producer) -> None:
    app = Celery("passer", set_as_current=False)

    @app.task(name=NAME, shared=False)
    def pass_on() -> bool:
        return "owl" in producer.publish("mine", "another.task", **retry_headers("gpu.a.0"))

    assert pass_on.apply().get() is False
    assert "owl" in producer.publish("mine", "another.task", **retry_headers("gpu.a.0"))
    app.close()


def test_retry_of_a_task_with_an_explicit_queue_stays_there(producer: Producer) -> None:
    producer.see(BUSY, IDLE)
    assert producer.route(queue="mine", headers=retry_headers("mine", "user")) is None


def test_retry_after_running_out_of_memory_avoids_that_gpu_model(redis_url: str) -> None:
    producer = Producer(redis_url, gpu_model="V100")
    producer.see(BUSY, IDLE)
    try:
        raise MemoryError
    except MemoryError:
        queue = producer.route(queue="gpu.a.1", headers=retry_headers("gpu.a.1"))
    assert queue == "gpu.a.0"
    assert producer.publish("gpu.a.0")["owl"]["tried"] == ["V100"]
    producer.sync.close()


def test_retry_after_running_out_of_memory_waits_for_the_first_view(redis_url: str) -> None:
    producer = Producer(redis_url, gpu_model="V100")
    producer.publisher.publish((BUSY, IDLE))
    try:
        raise MemoryError
    except MemoryError:
        # By the default queue it could come back to the GPU that failed it.
        assert producer.route(queue="gpu.a.1", headers=retry_headers("gpu.a.1")) == "gpu.a.0"
    producer.sync.close()


@pytest.mark.parametrize("names", [(), ("ValueError",)])
def test_retry_after_running_out_of_memory_goes_where_more_is_free(
    redis_url: str, names: tuple[str, ...]
) -> None:
    producer = Producer(redis_url, "K80", "gpu.a.0", out_of_memory_errors=names)
    small, other, large = (
        QueueView(f"gpu.a.{row}", model, free_memory_bytes=free * 2**30)
        for row, (model, free) in enumerate((("K80", 12), ("T4", 10), ("V100", 16)))
    )
    producer.see(small, other, large)
    try:
        raise ValueError if names else MemoryError
    except (MemoryError, ValueError):
        assert producer.route(queue="gpu.a.0", headers=retry_headers("gpu.a.0")) == "gpu.a.2"
    header = header_in(producer.publish("gpu.a.2"))
    assert header is not None
    assert (header.tried, header.exceeded_bytes) == (("K80",), 12 * 2**30)
    # What was learned goes along: the next retry, for another reason, does not go back.
    assert producer.route(queue="gpu.a.2", headers={"owl": header.encode()}) == "gpu.a.2"
    # Foreign processes hold so much that none is large enough: where there is most.
    taken = QueueView("gpu.a.2", "V100", free_memory_bytes=2**30)
    producer.see(small, other, taken)
    assert producer.route(queue="gpu.a.2", headers={"owl": header.encode()}) == "gpu.a.0"
    producer.sync.close()


def test_retry_after_another_error_may_return(redis_url: str) -> None:
    producer = Producer(redis_url, gpu_model="V100")
    producer.see(BUSY, IDLE)
    try:
        raise ValueError
    except ValueError:
        queue = producer.route(queue="gpu.a.1", headers=retry_headers("gpu.a.1"))
    assert queue == "gpu.a.1"
    producer.sync.close()


def test_falls_back_one_step_when_the_view_is_stale(producer: Producer) -> None:
    producer.see(BUSY, IDLE, policy="expected_completion")
    producer.clock.now += 3.0
    assert producer.route() == "gpu.a.1"
    assert producer.router.fallbacks["stale_view"] == 1
    assert producer.router.decisions["shortest_queue"] == 1


def test_declines_when_the_view_is_dead(producer: Producer) -> None:
    producer.see(BUSY, IDLE)
    producer.clock.now += 11.0
    assert producer.route() is None
    assert producer.router.fallbacks["dead_view"] == 1


def test_republishing_the_same_version_does_not_refresh(producer: Producer) -> None:
    producer.see(BUSY, IDLE)
    producer.clock.now += 11.0
    producer.sync.flush()
    assert producer.route() is None


def test_falls_back_to_the_shortest_queue_without_knowledge(producer: Producer) -> None:
    producer.see(BUSY, IDLE, policy="expected_completion")
    assert producer.route() == "gpu.a.1"
    assert producer.router.fallbacks["no_knowledge"] == 1


def test_policy_of_a_newer_release_falls_back(producer: Producer) -> None:
    producer.see(BUSY, IDLE, policy="from_the_future")
    assert producer.route() == "gpu.a.1"


def test_a_redis_that_lost_its_data_is_read_anew(producer: Producer) -> None:
    for _ in range(3):
        producer.see(BUSY, IDLE)
    producer.state.client.flushall()
    producer.publisher = Publisher(producer.state)
    producer.see(QueueView("gpu.b.0", "A100"), QueueView("gpu.b.1", "A100"))
    assert producer.route() in ("gpu.b.0", "gpu.b.1")


@pytest.mark.parametrize("mode", ["off", "shadow"])
def test_kill_switch_leaves_routing_to_celery(producer: Producer, mode: str) -> None:
    producer.state.client.set(producer.state.keys.mode, mode)
    producer.see(BUSY, IDLE)
    assert producer.route() is None
    assert producer.publish("celery")["owl"]["a"] == "celery"


def test_error_inside_the_router_leaves_routing_to_celery(
    producer: Producer, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(LearningRouter):
        def declines(self, name: str, options: Mapping[str, Any]) -> bool:
            raise ZeroDivisionError

    router = Broken(producer.sync, producer.settings)
    for _ in range(3):
        assert router(NAME, (), {}, {}) is None
    assert router.fallbacks["error"] == 3
    assert len(caplog.records) == 1


def test_refinement_that_raises_is_counted_and_the_task_routed(producer: Producer) -> None:
    class Task:
        @staticmethod
        def owl_size(args: Sequence[Any], kwargs: Mapping[str, Any]) -> float:
            return float(args[0])

    producer.see(BUSY, IDLE)
    route = producer.router(NAME, (), {}, {}, task=Task())
    assert route is not None
    assert producer.router.fallbacks["bad_refinement"] == 1


def test_a_router_of_ones_own_describes_tasks(producer: Producer) -> None:
    class ByFirstArgument(LearningRouter):
        def task_view(
            self,
            name: str,
            args: Sequence[Any] | None,
            kwargs: Mapping[str, Any] | None,
            task: object | None,
            tried: frozenset[str],
        ) -> TaskView:
            return TaskView(f"{name}.{(args or ('none',))[0]}", tried=tried)

    producer.see(IDLE)
    router = ByFirstArgument(producer.sync, producer.settings)
    router(NAME, ("resnet",), {}, {})
    assert producer.publish("gpu.a.1")["owl"]["k"] == f"{NAME}.resnet"


def test_redis_away_is_counted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    producer = Producer("redis://127.0.0.1:1/0")
    for _ in range(3):
        producer.sync.flush()
    assert producer.sync.failures == 3
    assert len(caplog.records) == 1
    assert producer.route() is None
    producer.sync.close()
