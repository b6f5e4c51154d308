"""The controller moves tasks that wait, and keeps its account: idle workers, dead workers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from redis import Redis

from owl_celery.brokers import open_broker
from owl_celery.brokers.amqp import AmqpBroker
from owl_celery.brokers.redis import RedisBroker
from owl_celery.controller import rescue
from owl_celery.controller.controller import Controller
from owl_celery.controller.health import Health
from owl_celery.controller.leader import Leader
from owl_celery.keys import Keys
from owl_celery.redis_state import RedisState
from owl_celery.settings import Settings
from owl_celery.store.memory import MemoryStore
from owl_celery.types import Outcome, TryState
from owl_celery.wire import Heartbeat, Started, encode_event
from tests.controller_process import NAMESPACE
from tests.message_broker import MessageBroker, on_both
from tests.routed import send_routed

pytestmark = pytest.mark.integration

FAST, SLOW, OTHER = "gpu.a.0", "gpu.a.1", "gpu.a.2"
MODELS = {FAST: "V100", SLOW: "K80", OTHER: "V100"}
SECONDS = {"V100": 2.0, "K80": 6.0}
TICK = 0.05


class Fleet:
    """A controller on a real broker, whose clock and workers belong to the test."""

    def __init__(self, broker: MessageBroker, folder: Path, **settings: Any) -> None:
        redis_url = broker.redis_url
        self.broker = broker
        broker.declare(*MODELS)
        self.app = Celery("proj", broker=broker.url, set_as_current=False)
        self.redis = Redis.from_url(redis_url, decode_responses=True)
        self.state = RedisState(redis_url, Keys(NAMESPACE))
        self.seconds = 100.0
        self.dead: set[str] = set()
        self.held: dict[str, set[str]] = {queue: set() for queue in MODELS}
        settings = {
            # Its knowledge is complete with the first outcomes.
            "policy": "expected_completion",
            "redis_url": redis_url,
            "continuous_learning_storage_path": folder,
            "namespace": NAMESPACE,
            # Redis has a clock of its own, and this machine may be slow.
            "lease_seconds": 60.0,
            "seed": 1,
            **settings,
        }
        self.controller = Controller(
            self.state,
            open_broker(self.app),
            Settings.load(**settings),
            MemoryStore,
            "first",
            lambda: self.seconds,
        )

    @property
    def leader(self) -> Leader:
        assert self.controller.leader is not None
        return self.controller.leader

    def begin(self) -> None:
        """Make the workers known, and what tasks take."""
        self.tick()
        for number in range(20):
            for queue in (FAST, SLOW):
                self.tell(self.outcome(f"before-{number}-{queue}", "", queue))
        self.leader.learner.step()

    def beat(self) -> None:
        for queue, model in MODELS.items():
            if queue in self.dead:
                continue
            beat = Heartbeat(self.node(queue), queue, model, active=tuple(sorted(self.held[queue])))
            self.state.client.sadd(self.state.keys.nodes, beat.node)
            self.state.client.set(self.state.keys.heartbeat(beat.node), beat.encode(), px=5_000)

    def tell(self, event: Started | Outcome) -> None:
        self.state.client.xadd(self.state.keys.events, {"e": encode_event(event)})

    def send(self, queue: str, *numbers: int, **options: Any) -> None:
        """Publish tasks and report them, as a producer does."""
        send_routed(self.app, queue, *numbers, **options)
        keys, seconds = self.state.keys, SECONDS[MODELS[queue]]
        self.state.client.hincrby(keys.assigned_count, queue, len(numbers))
        self.state.client.hincrbyfloat(keys.assigned_seconds, queue, seconds * len(numbers))

    def start(self, task: str, queue: str, decision: str = "", **fields: Any) -> None:
        self.held[queue].add(task)
        self.tell(
            Started(task, decision, 0, "train", queue, self.node(queue), MODELS[queue], **fields)
        )

    def end(self, task: str, queue: str, decision: str = "") -> None:
        self.held[queue].remove(task)
        self.tell(self.outcome(task, decision, queue))

    def outcome(self, task: str, decision: str, queue: str) -> Outcome:
        model, node = MODELS[queue], self.node(queue)
        seconds, state = SECONDS[model], TryState.SUCCESS
        return Outcome(
            task, decision, 0, "train", 1.0, queue, node, model, state, seconds, finished_at=1.7e9
        )

    def node(self, queue: str) -> str:
        return f"gpu{queue[-1]}@a"

    def kill(self, queue: str) -> None:
        """End a worker without a word."""
        self.dead.add(queue)
        self.state.client.delete(self.state.keys.heartbeat(self.node(queue)))

    def busy(self, *queues: str) -> None:
        """Have each of these queues run a long task."""
        for queue in queues:
            self.start(f"long-{queue}", queue, service_seconds=60.0)

    def tick(self, times: int = 1, after: float = TICK) -> None:
        for _ in range(times):
            self.seconds += after
            self.beat()
            assert self.controller.tick()

    def wait(self, seconds: int) -> None:
        """Let time pass."""
        self.tick(2 * seconds, after=0.5)

    def waiting(self, queue: str) -> list[float]:
        """Count and seconds that wait in a queue."""
        load = self.leader.load
        row = load.names.index(queue)
        return [load.waiting_count[row], load.waiting_seconds[row]]

    def counter(self, name: str) -> int:
        """What health says, a while later."""
        self.tick(25)
        health = Health.decode(str(self.redis.get(self.state.keys.health)))
        return health.counters.get(name, 0) if health else 0

    def close(self) -> None:
        self.controller.step_down()
        self.app.close()
        self.redis.close()


@pytest.fixture
def fleet(message_broker: MessageBroker, tmp_path: Path) -> Iterator[Fleet]:
    """Three known workers without work."""
    fleet = Fleet(message_broker, tmp_path)
    fleet.begin()
    yield fleet
    fleet.close()


@on_both
def test_a_worker_that_falls_idle_gets_what_waits_elsewhere_within_two_ticks(fleet: Fleet) -> None:
    fleet.busy(FAST, SLOW, OTHER)
    fleet.send(FAST, 1, 2, 3)
    fleet.tick(10)
    assert fleet.broker.numbers(FAST) == [1, 2, 3]

    fleet.end(f"long-{OTHER}", OTHER)
    fleet.tick(2)

    # The last in line gains most, and what moves is the message itself. On RabbitMQ only the
    # first ones are seen.
    moved = 3 if fleet.broker.is_redis else 1
    assert fleet.broker.numbers(FAST) == [number for number in (1, 2, 3) if number != moved]
    assert fleet.broker.numbers(OTHER) == [moved]


@on_both
def test_only_what_we_routed_moves_and_the_rest_keeps_its_order(fleet: Fleet) -> None:
    fleet.busy(FAST, SLOW)
    fleet.send(FAST, 1, header={"algorithm": "user"})
    fleet.send(FAST, 2)
    fleet.send(FAST, 3, countdown=3600)
    fleet.app.send_task("proj.work", (4,), queue=FAST)
    fleet.tick(5)
    assert fleet.broker.numbers(OTHER) == [2]
    fleet.broker.take(OTHER)
    fleet.tick(50)
    assert fleet.broker.numbers(FAST) == [1, 3, 4]
    assert fleet.broker.waiting(OTHER) == 0


def test_the_load_is_right_at_once_and_when_the_task_starts(fleet: Fleet) -> None:
    fleet.busy(FAST, OTHER)
    fleet.send(FAST, 1, 2, 3)
    fleet.tick(2)
    assert fleet.broker.numbers(SLOW) == [3]
    assert fleet.waiting(FAST) == pytest.approx([2, 4.0], rel=0.05)
    assert fleet.waiting(SLOW) == pytest.approx([1, 6.0], rel=0.1)

    # The worker takes it, and its header tells only what was predicted elsewhere.
    fleet.broker.take(SLOW)
    fleet.start("three", SLOW, "d3")
    fleet.tick()
    assert fleet.waiting(SLOW) == [0, 0.0]
    row = fleet.leader.load.names.index(SLOW)
    (seconds,) = [s for at, s, _ in fleet.leader.load.running if at == row]
    assert seconds == pytest.approx(6.0, rel=0.1)

    fleet.redis.delete(FAST)
    for queue in (FAST, OTHER):
        fleet.end(f"long-{queue}", queue)
    fleet.end("three", SLOW, "d3")
    fleet.tick()
    load = fleet.leader.load
    assert (load.waiting_seconds, load.running) == ([0.0] * 3, [])
    assert fleet.counter("stolen") == 1


def test_a_queue_gets_one_task_until_it_is_seen_to_run(fleet: Fleet) -> None:
    fleet.busy(FAST, SLOW)
    fleet.send(FAST, *range(6))
    fleet.tick(2)
    assert fleet.broker.numbers(OTHER) == [5]
    fleet.broker.take(OTHER)
    fleet.tick(5)
    assert fleet.broker.waiting(OTHER) == 0
    fleet.start("five", OTHER, "d5")
    fleet.tick(5)
    assert fleet.broker.waiting(OTHER) == 0
    fleet.end("five", OTHER, "d5")
    fleet.tick(2)
    assert fleet.broker.numbers(OTHER) == [4]


def test_a_worker_that_holds_a_task_not_seen_to_run_is_not_idle(fleet: Fleet) -> None:
    fleet.busy(FAST, SLOW)
    fleet.held[OTHER].add("unseen")
    fleet.tick(3)
    fleet.send(FAST, 1, 2)
    fleet.tick(3)
    assert fleet.broker.waiting(OTHER) == 0


@on_both
def test_where_the_task_ran_out_of_memory_it_does_not_go(fleet: Fleet) -> None:
    fleet.busy(FAST, OTHER)
    fleet.send(FAST, 1, 2, header={"tried": ("K80",)})
    fleet.tick(5)
    assert fleet.broker.numbers(FAST) == [1, 2]


@pytest.mark.parametrize("message_broker", ["rabbitmq"], indirect=True)
def test_looks_that_disturb_become_rare_while_they_find_nothing(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[float] = []
    peek = AmqpBroker.peek

    def noted(*arguments: Any) -> Any:
        looked_at.append(fleet.seconds)
        return peek(*arguments)

    monkeypatch.setattr(AmqpBroker, "peek", noted)
    fleet.busy(FAST, OTHER)
    fleet.send(FAST, 1, 2, header={"tried": ("K80",)})
    fleet.tick(400)
    pauses = [late - early for early, late in itertools.pairwise(looked_at)]
    assert 5 <= len(looked_at) <= 10
    assert pauses[0] < 0.3 and 4.5 < pauses[-1] < 5.5
    # Another one that falls idle is looked after at once.
    fleet.end(f"long-{OTHER}", OTHER)
    fleet.tick(2)
    assert fleet.broker.waiting(OTHER) == 1


@on_both
def test_little_work_does_not_go_to_a_slow_gpu(fleet: Fleet) -> None:
    fleet.start("short", FAST, service_seconds=1.0)
    fleet.busy(OTHER)
    fleet.send(FAST, 1)
    fleet.tick(5)
    assert fleet.broker.numbers(FAST) == [1]


def test_a_message_that_does_not_let_itself_move_is_passed_over(fleet: Fleet) -> None:
    fleet.busy(FAST, SLOW)
    fleet.send(FAST, 1, 2)
    # The same header, but its message says to be of another queue.
    text = str(fleet.redis.lindex(FAST, 0)).replace('"routing_key": "gpu.a.0"', '"routing_key": ""')
    fleet.redis.lset(FAST, 0, text)
    fleet.tick(6)
    assert fleet.redis.lrange(FAST, 0, -1) == [text]
    assert fleet.broker.numbers(OTHER) == [1]


@pytest.mark.parametrize("mode", ["shadow", "off"])
def test_the_kill_switch_stops_it(fleet: Fleet, mode: str) -> None:
    fleet.state.client.set(fleet.state.keys.mode, mode)
    fleet.busy(FAST, SLOW)
    fleet.send(FAST, 1, 2)
    fleet.tick(5)
    assert fleet.broker.numbers(FAST) == [1, 2]


def test_the_setting_stops_it(message_broker: MessageBroker, tmp_path: Path) -> None:
    fleet = Fleet(message_broker, tmp_path, steal=False)
    fleet.begin()
    fleet.busy(FAST, SLOW)
    fleet.send(FAST, 1, 2)
    fleet.tick(5)
    assert fleet.broker.numbers(FAST) == [1, 2]
    fleet.close()


@on_both
def test_what_waits_for_a_dead_worker_goes_to_the_others(fleet: Fleet) -> None:
    fleet.send(FAST, 1, 2)
    fleet.send(FAST, 3, header={"algorithm": "user"})
    fleet.app.send_task("proj.work", (4,), queue=FAST)
    fleet.busy(OTHER, SLOW)
    fleet.tick()
    fleet.kill(FAST)
    fleet.tick(5)
    assert FAST not in fleet.leader.load.names
    # A heartbeat counts for five seconds, so that the silence is ten more.
    fleet.wait(8)
    assert len(fleet.broker.numbers(FAST)) == 4
    fleet.wait(4)
    assert fleet.broker.numbers(FAST) == [3, 4]
    assert sorted(fleet.broker.numbers(OTHER) + fleet.broker.numbers(SLOW)) == [1, 2]
    assert fleet.counter("rescued") == 2
    # What a producer with an old view sends there later follows, even much later.
    fleet.wait(120)
    fleet.send(FAST, 5)
    fleet.wait(20)
    assert fleet.broker.numbers(FAST) == [3, 4]


@on_both
def test_what_one_round_moves_is_bounded_whatever_number_of_queues_is_dead(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rescue, "LOOKED_AT", 3)
    dead = (FAST, OTHER)
    fleet.busy(*MODELS)
    for queue in dead:
        fleet.send(queue, 1, 2, 3)
    fleet.tick()
    for queue in dead:
        fleet.kill(queue)
    left = []
    for _ in range(40):
        fleet.tick(after=0.5)
        left.append(sum(len(fleet.broker.numbers(queue)) for queue in dead))
    assert sorted(set(left), reverse=True) == [6, 3, 0]


def test_a_round_that_leaves_tasks_to_give_up_is_followed_by_another(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = [True, True, False, False]
    rounds: list[bool] = []

    def restore(broker: RedisBroker, *_: object) -> int:
        broker.has_more = more[len(rounds)]
        rounds.append(broker.has_more)
        return 0

    monkeypatch.setattr(RedisBroker, "restore", restore)
    fleet.kill(FAST)
    fleet.wait(40)
    assert rounds == [True, True, False]


def test_a_claimed_queue_is_not_dead(fleet: Fleet) -> None:
    fleet.send(FAST, 1)
    fleet.busy(OTHER, SLOW)
    fleet.kill(FAST)
    fleet.state.client.set(fleet.state.keys.claim(FAST), "gpu0@a owner")
    fleet.wait(30)
    assert fleet.broker.numbers(FAST) == [1]
    fleet.state.client.delete(fleet.state.keys.claim(FAST))
    fleet.wait(5)
    assert fleet.broker.numbers(FAST) == []


def test_nobody_is_dead_because_nobody_listened(fleet: Fleet) -> None:
    fleet.send(FAST, 1)
    fleet.busy(OTHER, SLOW)
    fleet.kill(FAST)
    fleet.tick(1, after=60.0)
    fleet.wait(5)
    assert fleet.broker.numbers(FAST) == [1]
    fleet.wait(20)
    assert fleet.broker.numbers(FAST) == []


def test_a_new_controller_saves_what_it_finds(
    message_broker: MessageBroker, tmp_path: Path
) -> None:
    fleet = Fleet(message_broker, tmp_path)
    fleet.dead.add(FAST)
    fleet.send(FAST, 1)
    fleet.tick()
    fleet.wait(12)
    assert fleet.broker.numbers(FAST) == []
    fleet.close()


@pytest.mark.parametrize("mode", ["shadow", "off"])
def test_the_kill_switch_stops_the_rescue(fleet: Fleet, mode: str) -> None:
    fleet.send(FAST, 1)
    fleet.state.client.set(fleet.state.keys.mode, mode)
    fleet.kill(FAST)
    fleet.wait(30)
    assert fleet.broker.numbers(FAST) == [1]


def test_its_setting_stops_the_rescue(message_broker: MessageBroker, tmp_path: Path) -> None:
    fleet = Fleet(message_broker, tmp_path, rescue=False)
    fleet.begin()
    fleet.send(FAST, 1)
    fleet.kill(FAST)
    fleet.wait(30)
    assert fleet.broker.numbers(FAST) == [1]
    fleet.close()
