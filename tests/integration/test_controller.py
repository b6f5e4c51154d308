"""The controller against a real Redis: lease, learning exactly once, faults, view."""

from __future__ import annotations

import json
import math
import random
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from owl_celery.aggregates import Learned
from owl_celery.brokers.base import BlindBroker
from owl_celery.controller.controller import Controller
from owl_celery.controller.health import Health
from owl_celery.controller.leader import Leader
from owl_celery.controller.lease import Lease, Write
from owl_celery.counters import Counters
from owl_celery.errors import BrokerError, StoreError
from owl_celery.fleet import Floats
from owl_celery.keys import Keys
from owl_celery.policies import make_policy
from owl_celery.records import FleetRecord, Knowledge, View, decode_record
from owl_celery.redis_state import RedisState
from owl_celery.settings import Settings
from owl_celery.store import open_store
from owl_celery.store.memory import MemoryStore
from owl_celery.sync import ProducerSync
from owl_celery.testing import wait_until
from owl_celery.tracker import TaskPerformanceTracker
from owl_celery.types import Outcome, TaskView, TryState
from owl_celery.wire import Heartbeat, Started, encode_event
from tests.controller_process import NAMESPACE, controller_settings, start_controller

pytestmark = pytest.mark.integration

QUEUE = "gpu.a.0"
NODE = "gpu0@a"


class Clock:
    """Monotonic time that only a test moves."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds

    def advance(self, seconds: float) -> None:
        self.seconds += seconds


class Depths(BlindBroker):
    """A broker that says what the test says."""

    def __init__(self) -> None:
        self.by_queue: dict[str, int] = {}
        self.error: BrokerError | None = None

    def depths(self, queues: Sequence[str]) -> dict[str, int]:
        if self.error is not None:
            raise self.error
        return {queue: self.by_queue.get(queue, 0) for queue in queues}


class BrokenAtTimes(MemoryStore):
    """A database that is down whenever the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.is_down = False

    def load(self) -> Learned:
        self._check()
        return super().load()

    def known(self, keys: Any) -> set[str]:
        self._check()
        return super().known(keys)

    def commit(self, **arguments: Any) -> None:
        self._check()
        super().commit(**arguments)

    def _check(self) -> None:
        if self.is_down:
            raise StoreError("The database is away.")


def outcome(number: int, **fields: Any) -> Outcome:
    """The outcome of a task that took 2 s."""
    values: dict[str, Any] = {
        "task_id": f"t{number}",
        "decision_id": f"d{number}",
        "attempt": 0,
        "task_type": "train",
        "size": 1.0,
        "queue": QUEUE,
        "worker_id": NODE,
        "gpu_model": "V100",
        "state": TryState.SUCCESS,
        "service_seconds": 2.0,
        "finished_at": 1.7e9,
        "predicted_seconds": 2.0,
        "algorithm": "expected_completion",
    }
    return Outcome(**{**values, **fields})


def started(number: int, **fields: Any) -> Started:
    """The start of the same task."""
    values: dict[str, Any] = {
        "task_id": f"t{number}",
        "decision_id": f"d{number}",
        "attempt": 0,
        "task_type": "train",
        "queue": QUEUE,
        "worker_id": NODE,
        "gpu_model": "V100",
        "service_seconds": 2.0,
    }
    return Started(**{**values, **fields})


class Bench:
    """A controller whose clock, broker and store belong to the test."""

    def __init__(self, redis_url: str, folder: Path, **settings: Any) -> None:
        self.settings = controller_settings(redis_url, folder, **settings)
        self.state = RedisState(redis_url, Keys(NAMESPACE))
        self.clock = Clock()
        self.broker = Depths()
        self.store = BrokenAtTimes()
        self.controller = self.make_controller("first")

    def make_controller(self, name: str) -> Controller:
        return Controller(
            self.state, self.broker, self.settings, lambda: self.store, name, self.clock
        )

    @property
    def leader(self) -> Leader:
        assert self.controller.leader is not None
        return self.controller.leader

    def beat(self, **fields: Any) -> None:
        beat = Heartbeat(**{"node": NODE, "queue": QUEUE, "gpu_model": "V100", **fields})
        self.state.client.sadd(self.state.keys.nodes, beat.node)
        self.state.client.set(self.state.keys.heartbeat(beat.node), beat.encode(), px=5_000)

    def send(self, *events: Started | Outcome | str) -> None:
        for event in events:
            text = event if isinstance(event, str) else encode_event(event)
            self.state.client.xadd(self.state.keys.events, {"e": text})

    def assign(self, tasks: int, seconds: float, queue: str = QUEUE) -> None:
        self.state.client.hincrby(self.state.keys.assigned_count, queue, tasks)
        self.state.client.hincrbyfloat(self.state.keys.assigned_seconds, queue, seconds)

    def tick(self, after: float = 0.2) -> bool:
        self.clock.advance(after)
        return self.controller.tick()

    def learn(self, mode: str = "on", after: float = 0.2) -> None:
        self.clock.advance(after)
        while self.leader.learner.step(mode):
            pass

    @property
    def total(self) -> int:
        """Outcomes that the store has counted."""
        return sum(row.tries for row in self.store.load().aggregates.task_types)

    def view(self) -> View:
        view = decode_record(View, self.text(self.state.keys.view))
        assert view is not None
        return view

    def fleet(self) -> FleetRecord:
        record = decode_record(FleetRecord, self.text(self.state.keys.fleet))
        assert record is not None
        return record

    def knowledge(self) -> Knowledge:
        knowledge = decode_record(Knowledge, self.text(self.state.keys.knowledge))
        assert knowledge is not None
        return knowledge

    def text(self, key: str) -> str:
        text: Any = self.state.client.get(key)
        assert isinstance(text, str)
        return text


@pytest.fixture
def bench(redis_url: str, tmp_path: Path) -> Iterator[Bench]:
    """A controller that has just taken the lease, with one idle worker."""
    bench = Bench(redis_url, tmp_path)
    bench.beat()
    assert bench.tick()
    yield bench
    bench.controller.step_down()


def test_one_controller_leads_and_a_clean_stop_hands_over_at_once(bench: Bench) -> None:
    second = bench.make_controller("second")
    assert not second.tick()
    bench.controller.step_down()
    assert second.tick()
    assert second.leader is not None
    second.step_down()


def test_a_controller_that_slept_too_long_writes_nothing_and_steps_down(bench: Bench) -> None:
    bench.state.client.delete(bench.state.keys.lease)
    second = bench.make_controller("second")
    assert second.tick()
    before = bench.text(bench.state.keys.view)
    assert not bench.tick(after=1.0)
    assert bench.text(bench.state.keys.view) == before
    assert bench.controller.leader is None
    assert second.tick()
    second.step_down()


def test_versions_grow_from_one_controller_to_the_next(bench: Bench) -> None:
    bench.learn()
    bench.tick()
    first = bench.view()
    bench.controller.step_down()
    bench.controller = bench.make_controller("second")
    bench.tick()
    bench.learn()
    bench.tick()
    second = bench.view()
    assert second.version > first.version
    assert second.fleet_version > first.fleet_version
    assert second.knowledge_version > first.knowledge_version
    assert bench.knowledge().version == second.knowledge_version


def test_a_lease_lost_with_the_data_of_redis_is_not_mistaken_for_another(redis_url: str) -> None:
    state = RedisState(redis_url, Keys(NAMESPACE))
    first, second = Lease(state, 5.0), Lease(state, 5.0)
    assert first.acquire()
    state.client.flushall()
    assert second.acquire()
    assert first.fence == second.fence
    assert not first.publish([Write("key", "first")])
    assert second.publish([Write("key", "second", ttl_seconds=5.0)])
    assert state.client.get("key") == "second"


def test_another_takes_over_after_a_kill(redis_url: str, tmp_path: Path) -> None:
    state = RedisState(redis_url, Keys(NAMESPACE))
    process = start_controller(redis_url, tmp_path)
    try:
        wait_until(lambda: state.client.exists(state.keys.view), "the first view", 30.0)
    finally:
        process.kill()
        process.wait()
    killed_at = time.monotonic()
    settings = Settings.load(redis_url=redis_url, continuous_learning_storage_path=tmp_path)
    successor = Controller(state, Depths(), settings, MemoryStore)
    wait_until(successor.tick, "the lease")
    assert time.monotonic() - killed_at < 10.0
    successor.step_down()


def test_the_view_says_what_waits_and_runs(bench: Bench) -> None:
    bench.assign(3, 6.0)
    bench.broker.by_queue[QUEUE] = 2
    bench.send(started(1))
    bench.tick()
    view, fleet = bench.view(), bench.fleet()
    assert (fleet.names, fleet.gpu_models, fleet.concurrency) == ([QUEUE], ["V100"], [1])
    assert view.fleet_version == fleet.version
    assert list(view.waiting_count) == [2]
    assert list(view.waiting_seconds) == pytest.approx([4.0])
    assert [(row, seconds) for row, seconds, _ in view.running] == [(0, 2.0)]
    bench.broker.by_queue[QUEUE] = 0
    bench.send(outcome(1))
    bench.tick()
    view = bench.view()
    columns = (view.waiting_count, view.waiting_seconds, view.running)
    assert [list(column) for column in columns] == [[0], [0.0], []]


def test_an_unchanged_view_is_published_twice_a_second_and_rows_keep_their_version(
    bench: Bench,
) -> None:
    bench.tick()
    first = bench.view()
    bench.tick(after=0.1)
    assert bench.view().version == first.version
    bench.tick(after=0.5)
    assert bench.view().version > first.version
    assert bench.view().fleet_version == first.fleet_version
    bench.beat(node="gpu1@a", queue="gpu.a.1")
    bench.tick()
    assert bench.view().fleet_version > first.fleet_version


def test_ledger_time_covers_what_was_reported_before(bench: Bench) -> None:
    bench.assign(1, 2.0)
    reply: Any = bench.state.client.time()
    bench.broker.by_queue[QUEUE] = 1
    bench.tick()
    assert bench.view().ledger_time >= reply[0] + reply[1] / 1e6
    assert list(bench.view().waiting_count) == [1]


def test_a_producer_sees_the_load_and_drops_its_own_assignments(bench: Bench) -> None:
    sync = ProducerSync(bench.state, bench.settings)
    bench.tick()
    sync.flush()
    snapshot = sync._snapshot
    assert snapshot is not None
    assert snapshot.fleet.names == (QUEUE,)
    sync.published("train", QUEUE, 2.0)
    bench.broker.by_queue[QUEUE] = 1
    sync.flush()
    bench.tick()
    sync.flush()
    assert sync._snapshot is not None
    assert sync._snapshot.fleet.waiting_count.tolist() == [1]
    assert sync._snapshot.policies[0].name == bench.settings.policy


def test_a_producer_knows_the_pace_of_the_others_and_of_none_when_alone(bench: Bench) -> None:
    ours, theirs = (ProducerSync(bench.state, bench.settings, bench.clock) for _ in range(2))

    def unseen() -> Floats | None:
        """What one of them reckons with, a second after its view came."""
        ours.flush()
        snapshot = ours.snapshot()
        assert snapshot is not None
        return snapshot.unseen_seconds(bench.clock() + 1.0)

    for _ in range(3):  # Alone.
        ours.published("train", QUEUE, 4.0)
        ours.flush()
        assert bench.tick(after=0.6)
        assert unseen() is None
    theirs.published("train", QUEUE, 30.0)
    theirs.flush()
    assert bench.tick(after=0.6)
    sent = unseen()
    ours.close()
    assert sent is not None
    assert sent.item() > 0.0


def test_a_new_controller_sees_what_runs_already(bench: Bench) -> None:
    bench.send(started(1))
    bench.tick()
    bench.controller.step_down()
    bench.controller = bench.make_controller("second")
    bench.tick()
    assert len(bench.view().running) == 1


def test_outcomes_teach_and_are_stored_once(bench: Bench) -> None:
    bench.send(*(outcome(number) for number in range(20)), outcome(3), outcome(4))
    bench.learn()
    bench.learn()
    assert bench.total == 20
    learner = bench.leader.learner
    assert learner.counters["duplicates"] == 2
    assert learner.host.predict("train", "V100") == pytest.approx(2.0, rel=0.2)
    bench.tick()
    assert bench.knowledge().version == bench.view().knowledge_version
    producer = make_policy(bench.settings)
    producer.apply_snapshot(bench.knowledge().snapshot)
    assert producer.predict_seconds(TaskView("train"), "V100") == pytest.approx(2.0, rel=0.2)


def test_tasks_of_the_user_and_of_plain_celery_teach_as_well(bench: Bench) -> None:
    bench.send(outcome(1, algorithm="user", decision_id=""), outcome(2, algorithm="celery"))
    bench.learn()
    assert {row.algorithm for row in bench.store.load().aggregates.algorithms} == {
        "user",
        "celery",
    }


def test_what_makes_no_sense_is_counted_and_passed_over(bench: Bench) -> None:
    absurd = json.loads(encode_event(outcome(1)))
    bench.send(
        "{",
        "[]",
        '{"e":"end"}',
        json.dumps({**absurd, "service_seconds": -1.0}),
        json.dumps({**absurd, "size": "large"}),
        json.dumps({**json.loads(encode_event(started(1))), "queue": 7}),
        outcome(2),
    )
    bench.learn()
    bench.tick()
    assert bench.leader.learner.counters["undecodable"] == 6
    assert bench.total == 1


def test_mode_off_learns_nothing_and_moves_on(bench: Bench) -> None:
    bench.send(outcome(1))
    bench.learn(mode="off")
    bench.send(outcome(2))
    bench.learn(mode="shadow")
    assert bench.total == 1
    assert bench.leader.learner.counters["passed_over"] == 1


def test_the_mode_is_read_with_every_tick(bench: Bench) -> None:
    bench.state.client.set(bench.state.keys.mode, "off")
    bench.tick()
    assert bench.leader.health().mode == "off"


def test_a_store_that_is_down_costs_nothing_but_time(bench: Bench) -> None:
    bench.send(*(outcome(number) for number in range(10)))
    bench.learn()
    bench.tick()
    published = bench.knowledge()
    bench.store.is_down = True
    bench.send(*(outcome(number) for number in range(10, 30)))
    bench.learn()
    bench.tick()
    assert bench.knowledge() == published
    assert bench.leader.health().troubles == {"store": "The database is away."}
    bench.store.is_down = False
    bench.learn(after=2.0)
    bench.learn()
    assert bench.total == 30
    bench.tick()
    assert bench.leader.health().troubles == {}
    assert bench.knowledge().version > published.version


def test_a_store_that_cannot_be_written_is_one_trouble_and_not_many(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(**_: object) -> None:
        raise StoreError("The database is read-only.")

    bench.learn()
    with monkeypatch.context() as patched:
        patched.setattr(bench.store, "commit", refuse)
        for number in range(10):
            bench.send(outcome(number))
            bench.learn(after=5.0)
    assert [record.message for record in caplog.records] == [
        "owl controller: store: The database is read-only."
    ]
    bench.learn(after=20.0)
    assert bench.total == 10
    assert bench.leader.health().troubles == {}


def test_a_store_that_is_down_at_the_start_leaves_the_knowledge_of_the_last_controller(
    bench: Bench,
) -> None:
    bench.send(outcome(1))
    bench.learn()
    bench.tick()
    published = bench.knowledge()
    bench.controller.step_down()
    bench.store.is_down = True
    bench.controller = bench.make_controller("second")
    bench.tick()
    bench.learn()
    bench.tick()
    assert bench.knowledge() == published
    assert bench.view().knowledge_version == published.version


def test_two_controllers_at_work_count_each_outcome_once(bench: Bench) -> None:
    bench.send(*(outcome(number) for number in range(10)))
    bench.learn()
    late = bench.leader.learner
    bench.state.client.delete(bench.state.keys.lease)
    bench.controller = bench.make_controller("second")
    bench.tick()
    bench.send(*(outcome(number) for number in range(10, 20)))
    # Both read the same outcomes; one commits first, the other has to start over.
    for _ in range(3):
        bench.learn()
        late.step()
    assert bench.total == 20
    assert late.counters["stale_cursors"] + bench.leader.learner.counters["stale_cursors"] > 0


def test_a_stream_that_begins_anew_is_read_from_its_begin(bench: Bench) -> None:
    bench.state.client.xadd(bench.state.keys.events, {"e": encode_event(outcome(1))}, id="9" * 15)
    bench.learn()
    bench.state.client.delete(bench.state.keys.events)
    bench.send(outcome(2))
    bench.learn(after=11.0)
    bench.learn()
    assert bench.total == 2


def test_the_stream_is_trimmed_behind_the_cursor(bench: Bench) -> None:
    for number in range(300):
        text = encode_event(outcome(number))
        bench.state.client.xadd(bench.state.keys.events, {"e": text}, id=f"{1000 + number}-0")
    bench.send(outcome(300))
    bench.learn()
    bench.learn(after=11.0)
    assert bench.state.client.xlen(bench.state.keys.events) < 300
    assert bench.total == 301


def test_arrivals_reach_the_policy(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    learner = bench.leader.learner
    monkeypatch.setattr(
        learner.host.policy, "arrived", lambda task, now: seen.append(task.task_type)
    )
    bench.state.client.hset(bench.state.keys.arrivals, "train", 5)
    bench.learn()
    bench.state.client.hincrby(bench.state.keys.arrivals, "train", 2)
    bench.state.client.hincrby(bench.state.keys.arrivals, "infer", 1)
    bench.learn()
    assert sorted(seen) == ["infer", "train", "train"]


def test_a_policy_that_fails_is_counted_and_the_rest_goes_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Any:
        raise RuntimeError("no such luck")

    learner = bench.leader.learner
    for verb in ("arrived", "tick", "snapshot", "learn_one"):
        monkeypatch.setattr(learner.host.policy, verb, fail)
    bench.state.client.hset(bench.state.keys.arrivals, "train", 5)
    bench.learn()
    bench.state.client.hset(bench.state.keys.arrivals, "train", 6)
    bench.send(outcome(1))
    bench.tick()
    bench.learn(after=3.0)
    assert bench.total == 1
    assert learner.counters["policy_errors"] >= 3


@pytest.mark.parametrize("is_sql", [False, True], ids=["memory", "sqlite"])
@pytest.mark.parametrize(
    "state", [{"mean": math.nan}, {"mean": object()}, None], ids=["nan", "object", "raises"]
)
def test_a_policy_state_that_cannot_be_saved_holds_nothing_up(
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    state: dict[str, object] | None,
    is_sql: bool,
) -> None:
    def broken() -> dict[str, object]:
        if state is None:
            raise ZeroDivisionError
        return state

    store = open_store(bench.settings, NAMESPACE) if is_sql else bench.store
    monkeypatch.setattr(bench, "store", store)
    bench.send(outcome(1))
    bench.learn()
    saved = store.load().policy_state
    assert saved is not None
    learner = bench.leader.learner
    with monkeypatch.context() as patched:
        patched.setattr(learner.host.policy, "state", broken)
        for number in range(2, 5):
            bench.send(outcome(number))
            bench.learn()
    assert bench.total == 4
    assert learner.host.predict("train", "V100") == pytest.approx(2.0, rel=0.2)
    assert store.load().policy_state == saved
    assert learner.counters["policy_errors"] == 3
    assert learner.counters["store_errors"] == 0
    assert [record.message.partition(" failed")[2] for record in caplog.records] == [" at state"]
    bench.send(outcome(5))
    bench.learn()
    assert store.load().policy_state != saved


def test_a_broker_that_is_down_leaves_the_ledger_to_its_sums(bench: Bench) -> None:
    bench.broker.error = BrokerError("The broker is away.")
    bench.assign(3, 6.0)
    bench.tick()
    assert list(bench.view().waiting_count) == [3]
    assert bench.leader.health().troubles == {"broker": "The broker is away."}
    bench.broker.error = None
    bench.tick(after=3.0)
    assert list(bench.view().waiting_count) == [0]
    assert bench.leader.health().troubles == {}
    bench.tick(after=1.0)
    told: Any = bench.state.client.hgetall(bench.state.keys.counters)
    assert Counters.read(told).opened == {("controller", "broker"): 1}


def test_what_else_does_not_work_is_a_trouble_until_it_does(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.tick()
    bench.broker.trouble = "The result backend hangs."
    bench.leader.learner.counters["policy_errors"] += 1
    for _ in range(3):
        bench.tick(after=1.0)
    troubles = bench.leader.health().troubles
    assert troubles.keys() == {"results", "policy"}
    assert troubles["results"] == "The result backend hangs."
    bench.broker.trouble = ""
    bench.tick(after=1.0)
    assert bench.leader.health().troubles.keys() == {"policy"}
    bench.tick(after=61.0)
    assert bench.leader.health().troubles == {}
    said = [record.getMessage().partition(", after")[0] for record in caplog.records]
    assert said.count("owl controller: results: The result backend hangs.") == 1
    assert said.count("owl controller: results: works again") == 1
    assert said.count("owl controller: policy: works again") == 1


def test_health_is_published(bench: Bench) -> None:
    bench.tick(after=1.0)
    health = Health.decode(bench.text(bench.state.keys.health))
    assert health is not None
    assert (health.controller, health.queues, health.open_queues) == ("first", 1, 1)
    assert Health.decode("[]") is None


def test_nodes_that_are_long_gone_are_forgotten(bench: Bench) -> None:
    bench.state.client.sadd(bench.state.keys.nodes, "gone@a")
    bench.tick()
    bench.beat()
    bench.tick(after=3_700.0)
    assert bench.state.client.smembers(bench.state.keys.nodes) == {NODE}


def test_queues_that_are_long_gone_are_forgotten_and_may_come_back(bench: Bench) -> None:
    keys, client = bench.state.keys, bench.state.client
    bench.assign(7, 14.0)
    bench.assign(500, 900.0, "gpu.pod-1.0")
    bench.beat()
    bench.tick(after=20.0)
    bench.beat()
    bench.tick(after=3_500.0)
    assert client.hkeys(keys.assigned_count) == [QUEUE, "gpu.pod-1.0"]
    bench.beat()
    bench.tick(after=200.0)
    assert client.hgetall(keys.assigned_count) == {QUEUE: "7"}
    assert client.hgetall(keys.assigned_seconds) == {QUEUE: "14"}
    bench.beat()
    bench.beat(node="gpu0@pod-1", queue="gpu.pod-1.0")
    bench.tick()
    bench.assign(2, 6.0, "gpu.pod-1.0")
    bench.broker.by_queue["gpu.pod-1.0"] = 2
    bench.tick()
    assert bench.fleet().names == [QUEUE, "gpu.pod-1.0"]
    assert list(bench.view().waiting_count) == [0, 2]
    assert list(bench.view().waiting_seconds) == pytest.approx([0.0, 6.0])


def test_an_unforeseen_error_loses_no_outcome(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.send(outcome(1))
    learner = bench.leader.learner
    with monkeypatch.context() as patched:
        patched.setattr(learner.tracker, "take", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            bench.learn()
    assert bench.total == 0
    bench.learn()
    assert bench.total == 1


@pytest.fixture
def running(bench: Bench) -> Iterator[Controller]:
    """A controller that leads in a thread, by the real clock."""
    bench.controller.step_down()
    controller = Controller(bench.state, bench.broker, bench.settings, MemoryStore)
    stop = threading.Event()
    thread = threading.Thread(target=controller.run, args=(stop,), name="owl-test")
    thread.start()
    try:
        wait_until(lambda: controller.leader is not None, "the lease")
        yield controller
    finally:
        stop.set()
        thread.join()
    assert not bench.state.client.exists(bench.state.keys.lease)


def counted(controller: Controller, name: str) -> int:
    """A counter of the learner that works at present."""
    leader = controller.leader
    return leader.learner.counters[name] if leader is not None else 0


def test_run_publishes_within_a_second_and_keeps_the_view_fresh(
    bench: Bench, running: Controller
) -> None:
    bench.send(started(1))
    wait_until(lambda: len(bench.view().running) == 1, "the start", 1.0)
    bench.send(outcome(1))
    wait_until(lambda: len(bench.view().running) == 0, "the end", 1.0)
    wait_until(lambda: counted(running, "outcomes") == 1, "the lesson", 2.0)
    version = bench.view().version
    wait_until(lambda: bench.view().version > version, "a fresh view", 1.5)


def test_run_survives_the_loss_of_all_data(bench: Bench, running: Controller) -> None:
    bench.state.client.flushall()
    wait_until(lambda: bench.state.client.exists(bench.state.keys.view), "a new view")
    bench.send(outcome(1))
    wait_until(lambda: counted(running, "outcomes") == 1, "an outcome")


def test_run_survives_a_redis_that_does_not_answer(bench: Bench, running: Controller) -> None:
    bench.state.client.client_pause(2_500)
    wait_until(lambda: "redis" in running.troubles.now(), "the trouble")
    wait_until(lambda: not running.troubles.now(), "its end")
    bench.send(outcome(1))
    wait_until(lambda: counted(running, "outcomes") == 1, "an outcome")


@pytest.mark.slow
def test_each_outcome_counts_once_over_kills(redis_url: str, tmp_path: Path) -> None:
    rng = random.Random(11)
    state = RedisState(redis_url, Keys(NAMESPACE))
    settings = controller_settings(redis_url, tmp_path)
    store = open_store(settings)
    sent: list[str] = []
    enough = threading.Event()

    def publish() -> None:
        while not enough.wait(0.03):
            for _ in range(10):
                event = outcome(len(sent), service_seconds=1.0 + len(sent) % 7)
                # A report that is sent twice is of one try all the same.
                for _ in range(1 + (rng.random() < 0.05)):
                    state.client.xadd(state.keys.events, {"e": encode_event(event)})
                sent.append(event.key)

    def wait_for_commit() -> None:
        before = store.load().cursor
        wait_until(lambda: store.load().cursor != before, "a commit", 30.0)

    publisher = threading.Thread(target=publish, name="owl-publisher")
    process = start_controller(redis_url, tmp_path)
    try:
        publisher.start()
        for _ in range(3):
            wait_for_commit()
            enough.wait(rng.uniform(0.0, 0.3))
            process.kill()
            process.wait()
            process = start_controller(redis_url, tmp_path)
        wait_for_commit()
        enough.set()
        publisher.join()
        last: Any = state.client.xinfo_stream(state.keys.events)
        wait_until(lambda: store.load().cursor == last["last-generated-id"], "the rest", 30.0)
        process.terminate()
        assert process.wait(20.0) == 0
    finally:
        enough.set()
        process.kill()
        process.wait()
        publisher.join()
    learned = store.load()
    outcomes = store.recent(2 * len(sent))
    store.close()
    assert sum(row.tries for row in learned.aggregates.task_types) == len(sent)
    assert sorted(row.key for row in outcomes) == sorted(sent)
    again = TaskPerformanceTracker(make_policy(settings))
    again.restore(learned)
    assert again.policy.predict_seconds(TaskView("train"), "V100") == pytest.approx(4.0, rel=0.1)
