"""What is shown of an application, from a real Redis and a store, with either of them gone."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from owl_celery.controller.health import Health
from owl_celery.errors import StoreError
from owl_celery.keys import Keys
from owl_celery.overview import Overview, OverviewReader, Status
from owl_celery.overview import kept as kept_module
from owl_celery.policies.expected_completion import ExpectedCompletion
from owl_celery.redis_state import RedisState
from owl_celery.settings import Settings
from owl_celery.store.base import Store
from owl_celery.store.memory import MemoryStore
from owl_celery.testing import wait_until
from owl_celery.tracker import TaskPerformanceTracker
from owl_celery.types import Outcome, QueueView
from owl_celery.wire import Heartbeat, Started, encode_event
from tests.learning import outcome
from tests.published import Publisher

pytestmark = pytest.mark.integration

QUEUES = (
    QueueView("gpu.a.0", "V100", waiting_count=2, waiting_seconds=6.0, running=((4.0, 1.0),)),
    QueueView("gpu.a.1", "K80", is_open=False),
)


class Clock:
    """Monotonic time that only a test moves."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


class Fragile(MemoryStore):
    """A database that is down, or hangs, whenever the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.is_down = False
        self.answers = threading.Event()
        self.answers.set()

    def version(self) -> int:
        self.answers.wait()
        if self.is_down:
            raise StoreError("The database is away.")
        return super().version()


@pytest.fixture
def state(redis_url: str) -> RedisState:
    return RedisState(redis_url, Keys("app"))


@pytest.fixture
def store() -> Iterator[Fragile]:
    fragile = Fragile()
    yield fragile
    fragile.answers.set()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def reader(state: RedisState, store: Store, clock: Clock) -> OverviewReader:
    return OverviewReader(state, Settings.load(), lambda: store, clock)


def learn(store: Store, outcomes: list[Outcome]) -> ExpectedCompletion:
    """Commit outcomes as a controller does."""
    tracker = TaskPerformanceTracker(ExpectedCompletion(seed=1))
    learned = store.load()
    tracker.restore(learned)
    tracker.record(outcomes, now=0.0)
    pending = tracker.take()
    store.commit(
        expected_cursor=learned.cursor,
        cursor=f"{int(learned.cursor.partition('-')[0]) + 1}-0",
        outcomes=pending.outcomes,
        policy_name=tracker.policy.name,
        policy_state=tracker.policy.state(),
        aggregates=pending.aggregates,
    )
    assert isinstance(tracker.policy, ExpectedCompletion)
    return tracker.policy


def beat(state: RedisState, heartbeat: Heartbeat) -> None:
    state.client.set(state.keys.heartbeat(heartbeat.node), heartbeat.encode(), px=60_000)
    state.client.sadd(state.keys.nodes, heartbeat.node)


def tell(state: RedisState, *events: Started | Outcome) -> None:
    for event in events:
        state.client.xadd(state.keys.events, {"e": encode_event(event)})


def set_health(state: RedisState, **values: Any) -> None:
    health = Health(controller="host:1", active_since=1.0, policy="expected_completion", **values)
    state.client.set(state.keys.health, health.encode())


def parts(overview: Overview) -> list[str]:
    return [reason.part for reason in overview.health.reasons]


def test_an_application_that_never_ran_is_down_and_says_why(reader: OverviewReader) -> None:
    overview = reader.read()
    assert (overview.health.status, parts(overview)) == (Status.DOWN, ["controller"])
    assert "Celery routes all tasks" in overview.health.reasons[0].sentence
    assert not (overview.queues or overview.workers or overview.task_types)
    assert overview.health.database.status == "ok"
    assert overview.health.view_age_seconds is None


def test_queues_show_load_readings_and_what_runs(reader: OverviewReader, state: RedisState) -> None:
    started = Started("t1", "d", 0, "train", "gpu.a.0", "gpu0@a", "V100", 4.0)
    tell(state, Started("t0", "d", 0, "old", "gpu.a.0", "gpu0@a", "V100"), outcome(task_id="t0"))
    tell(state, started)
    beat(
        state,
        Heartbeat(
            "gpu0@a",
            "gpu.a.0",
            "V100",
            active=("t1", "t0"),
            memory_total_bytes=100,
            memory_free_bytes=30,
            utilization_ratio=1.5,
        ),
    )
    beat(state, Heartbeat("celery@b"))
    Publisher(state).publish(QUEUES)
    set_health(state)
    overview = reader.read()
    assert overview.health.status is Status.OK
    assert (overview.health.queues, overview.health.open_queues) == (2, 1)
    assert (overview.health.waiting_count, overview.health.running_count) == (2, 1)
    busy, closed = overview.queues
    assert (busy.name, busy.gpu_model, busy.worker_ids) == ("gpu.a.0", "V100", ("gpu0@a",))
    assert busy.waiting_seconds == 6.0
    assert 6.0 < busy.backlog_seconds <= 9.1
    assert [(task.task_id, task.task_type) for task in busy.running] == [("t1", "train")]
    assert busy.running[0].elapsed_seconds >= 1.0
    assert (busy.gpu.memory_used_bytes, busy.gpu.utilization_ratio) == (70, 1.0)
    assert (closed.is_open, closed.running, closed.worker_ids) == (False, (), ())
    plain, gpu = overview.workers
    assert (plain.worker_id, plain.busy_ratio) == ("celery@b", None)
    assert (gpu.worker_id, gpu.busy_ratio, gpu.is_alive) == ("gpu0@a", 1.0, True)


def test_what_runs_unknown_to_us_has_no_name(reader: OverviewReader, state: RedisState) -> None:
    Publisher(state).publish(QUEUES)
    (task,) = reader.read().queues[0].running
    assert (task.task_id, task.task_type, task.predicted_seconds) == (None, None, 4.0)


def test_learned_rows_and_what_follows_from_them(
    reader: OverviewReader, state: RedisState, store: Store
) -> None:
    outcomes = [
        outcome(
            number,
            worker_id=f"gpu{number % 2}@a",
            gpu_model=("V100", "K80")[number % 2],
            service_seconds=(1.0, 3.0)[number % 2],
            wait_seconds=1.0,
            algorithm="expected_completion",
            explored=number < 10,
        )
        for number in range(100)
    ]
    policy = learn(store, outcomes)
    Publisher(state).publish(QUEUES, "expected_completion", policy.snapshot())
    set_health(state)
    overview = reader.read()
    assert overview.totals.tasks == 100
    assert overview.totals.mean_service_seconds == pytest.approx(2.0)
    assert overview.totals.mean_response_seconds == pytest.approx(3.0)
    assert overview.exploration_rate == pytest.approx(0.1)
    assert overview.p99_seconds["train"] == pytest.approx(3.0)
    assert overview.improvement.service is not None
    # Half and half takes 2 s; of a shared queue the fast GPU serves three quarters: 1.5 s.
    assert overview.improvement.service.ratio == pytest.approx(2.0 / 1.5, rel=1e-3)
    assert overview.improvement.response is None
    assert overview.knowledge.name == "expected_completion"
    assert overview.knowledge.beliefs is not None
    stats = {worker.worker_id: worker.stats for worker in overview.workers}
    assert stats["gpu0@a"] is not None and stats["gpu0@a"].successes == 50


def test_new_commits_are_seen_after_two_seconds(
    reader: OverviewReader, store: Store, clock: Clock
) -> None:
    learn(store, [outcome(0)])
    assert reader.read().totals.tasks == 1
    learn(store, [outcome(1)])
    clock.seconds += 1.0
    assert reader.read().totals.tasks == 1
    clock.seconds += 1.5

    def tasks() -> bool:
        clock.seconds += 0.3
        return reader.read().totals.tasks == 2

    wait_until(tasks, "the second outcome")


def test_a_database_that_fails_leaves_the_last_good_copy(
    reader: OverviewReader, store: Fragile, clock: Clock, state: RedisState
) -> None:
    learn(store, [outcome(0)])
    Publisher(state).publish(QUEUES)
    set_health(state)
    assert reader.read().health.database.status == "ok"
    store.is_down = True

    def is_degraded() -> bool:
        clock.seconds += 1.0
        return reader.read().health.database.status == "down"

    wait_until(is_degraded, "the failure")
    overview = reader.read()
    assert overview.health.status is Status.DEGRADED
    assert parts(overview) == ["database"]
    assert "The database is away." in overview.health.reasons[0].sentence
    assert overview.totals.tasks == 1
    store.is_down = False

    def is_well() -> bool:
        clock.seconds += 1.0
        return reader.read().health.status is Status.OK

    wait_until(is_well, "the database to be well")


def test_a_database_that_hangs_holds_up_nobody(
    reader: OverviewReader, store: Fragile, clock: Clock
) -> None:
    learn(store, [outcome(0)])
    reader.read()
    store.answers.clear()
    clock.seconds += 3.0
    assert reader.read().totals.tasks == 1
    clock.seconds += 6.0
    overview = reader.read()
    assert overview.health.database.status == "down"
    assert overview.totals.tasks == 1
    for _ in range(5):
        clock.seconds += 1.0
        reader.read()
    # One reading hangs, on a connection that is gone perhaps; others are tried meanwhile.
    assert reader.ask(lambda _: "answer") == "answer"
    store.answers.set()


def test_questions_to_a_database_that_hangs_end_in_time(
    reader: OverviewReader, store: Fragile, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_module, "ASK_SECONDS", 0.05)
    assert reader.ask(lambda kept: kept.version()) == 0
    store.answers.clear()
    for _ in range(kept_module.ASKED_AT_ONCE + 1):
        with pytest.raises(StoreError, match="does not answer"):
            reader.ask(lambda kept: kept.version())
        clock.seconds += kept_module.MOST_RETRY_SECONDS
    store.answers.set()
    assert wait_until(lambda: _answers(reader, clock), "an answer")


def test_a_question_is_answered_at_once_while_the_database_is_known_to_hang(
    reader: OverviewReader, store: Fragile
) -> None:
    assert reader.ask(lambda kept: kept.version()) == 0
    store.answers.clear()
    seconds = []
    for _ in range(3):
        began = time.monotonic()
        with pytest.raises(StoreError, match="does not answer"):
            reader.ask(lambda kept: kept.version())
        seconds.append(time.monotonic() - began)
    store.answers.set()
    assert kept_module.ASK_SECONDS <= seconds[0] < kept_module.ASK_SECONDS + 0.5
    assert max(seconds[1:]) < 0.1
    assert reader.read().own_counters["opened|serve|database"] == 1


def _answers(reader: OverviewReader, clock: Clock) -> bool:
    clock.seconds += kept_module.MOST_RETRY_SECONDS
    try:
        return reader.ask(lambda kept: kept.version()) == 0
    except StoreError:
        return False


def test_questions_fail_by_store_errors_only(reader: OverviewReader) -> None:
    with pytest.raises(StoreError, match="ZeroDivisionError"):
        reader.ask(lambda kept: 1 // kept.version())


def test_a_store_that_cannot_be_opened_is_said(state: RedisState) -> None:
    settings = Settings.load(database_url="nonsense")
    reader = OverviewReader(state, settings)
    wait_until(lambda: reader.read().health.database.status == "down", "the failure")
    assert any("DATABASE_URL" in reason.sentence for reason in reader.read().health.reasons)


def test_a_redis_that_is_away_is_down_and_what_was_learned_is_shown(store: Store) -> None:
    learn(store, [outcome(0)])
    away = RedisState("redis://127.0.0.1:1/0", Keys("app"))
    overview = OverviewReader(away, Settings.load(), lambda: store).read()
    assert (overview.health.status, parts(overview)) == (Status.DOWN, ["redis"])
    assert overview.is_redis_down
    assert overview.totals.tasks == 1


def test_senseless_redis_content_is_passed_over(
    reader: OverviewReader, state: RedisState, store: Store
) -> None:
    client, keys = state.client, state.keys
    client.set(keys.view, "[]")
    client.set(keys.fleet, "{")
    client.set(keys.knowledge, '{"version": 1, "policy": "nope", "snapshot": {}}')
    client.set(keys.health, '{"troubles": ["x"]}')
    client.set(keys.heartbeat("w"), "nonsense")
    client.sadd(keys.nodes, "w", "gone")
    client.hset(keys.counters, mapping={"decisions|x": "nan"})
    client.xadd(keys.events, {"e": "nonsense"})
    client.set(keys.mode, "offf")
    overview = reader.read()
    assert overview.health.status is Status.DOWN
    assert overview.workers == ()
    assert overview.knowledge.policy is None
    assert "mode" in parts(overview)


@pytest.mark.parametrize(
    ("values", "part", "status"),
    [
        ({"troubles": {"store": "Away."}}, "store", Status.DEGRADED),
        ({"lag_seconds": 60.0}, "stream", Status.DEGRADED),
    ],
)
def test_what_the_controller_complains_of_is_passed_on(
    reader: OverviewReader, state: RedisState, values: dict[str, Any], part: str, status: Status
) -> None:
    Publisher(state).publish(QUEUES)
    set_health(state, **values)
    overview = reader.read()
    assert (overview.health.status, parts(overview)) == (status, [part])


@pytest.mark.parametrize(
    ("age", "status"), [(0.0, Status.OK), (5.0, Status.DEGRADED), (60.0, Status.DOWN)]
)
def test_an_old_view_is_noticed(
    reader: OverviewReader, state: RedisState, age: float, status: Status
) -> None:
    set_health(state)
    now: Any = state.client.time()
    Publisher(state).publish(QUEUES, ledger_time=now[0] - age)
    assert reader.read().health.status is status


def test_a_mode_that_was_set_is_remarked_and_no_fault(
    reader: OverviewReader, state: RedisState
) -> None:
    Publisher(state).publish(QUEUES)
    set_health(state)
    state.client.set(state.keys.mode, "off")
    overview = reader.read()
    assert (overview.health.status, overview.health.mode) == (Status.OK, "off")
    assert parts(overview) == ["mode"]


def test_without_an_open_queue_it_is_degraded(reader: OverviewReader, state: RedisState) -> None:
    Publisher(state).publish(QUEUES[1:])
    set_health(state)
    overview = reader.read()
    assert (overview.health.status, parts(overview)) == (Status.DEGRADED, ["workers"])
    assert "start workers by celery -A proj owl worker" in overview.health.reasons[0].sentence


def test_drained_queues_alone_are_said_to_be_drained(
    reader: OverviewReader, state: RedisState
) -> None:
    Publisher(state).publish(QUEUES[1:])
    set_health(state)
    state.client.sadd(state.keys.drained, "gpu.a.1")
    overview = reader.read()
    assert (overview.health.status, parts(overview)) == (Status.DEGRADED, ["workers"])
    assert overview.queues[0].is_drained
    assert "All queues are drained" in overview.health.reasons[0].sentence
