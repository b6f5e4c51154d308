"""The load ledger: what waits and runs, whatever is lost, doubled or late."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from owl_celery.controller.ledger import Beat, LoadLedger
from owl_celery.controller.load import Load, Move
from owl_celery.types import Outcome, TryState
from owl_celery.wire import Discarded, Heartbeat, Started

TTL = 5.0
QUEUE = "gpu.a.0"
NODE = "gpu0@a"


def beat(at: float, node: str = NODE, queue: str = QUEUE, **fields: object) -> Beat:
    """A heartbeat sent at ``at``."""
    heartbeat = replace(Heartbeat(node, queue, "V100"), **fields)  # type: ignore[arg-type]
    return Beat(heartbeat, at + TTL)


def started(task: str, seconds: float | None = 2.0, node: str = NODE, attempt: int = 0) -> Started:
    """A start on the queue of ``node``."""
    queue = node.replace("gpu", "gpu.a.").replace("@a", "")
    return Started(task, "d", attempt, "train", queue, node, "V100", seconds)


def discarded(task: str, seconds: float | None = 2.0) -> Discarded:
    """A task that expired, as the worker of the queue found out."""
    return Discarded(task, "d", 0, "train", QUEUE, NODE, "V100", seconds)


def ended(event: Started, seconds: float = 2.0, state: TryState = TryState.SUCCESS) -> Outcome:
    """The outcome of a start."""
    return Outcome(
        task_id=event.task_id,
        decision_id=event.decision_id,
        attempt=event.attempt,
        task_type=event.task_type,
        size=1.0,
        queue=event.queue,
        worker_id=event.worker_id,
        gpu_model=event.gpu_model,
        state=state,
        service_seconds=seconds,
        finished_at=0.0,
        predicted_seconds=event.service_seconds,
    )


class World:
    """A ledger, and what producers and the broker would say."""

    def __init__(self, **arguments: object) -> None:
        self.ledger = LoadLedger(TTL, **arguments)  # type: ignore[arg-type]
        self.count: dict[str, int] = {}
        self.seconds: dict[str, float] = {}
        self.now = 1_000.0

    def hear(self, *beats: Beat) -> None:
        self.ledger.hear(beats, self.now)

    def assign(self, tasks: int, seconds: float, queue: str = QUEUE) -> None:
        self.count[queue] = self.count.get(queue, 0) + tasks
        self.seconds[queue] = self.seconds.get(queue, 0.0) + seconds

    def look(self, depths: Mapping[str, int], after: float = 0.03) -> Load:
        self.now += after
        self.ledger.expire(self.now)
        self.ledger.count(self.count, self.seconds, depths, self.now)
        return self.ledger.load(self.now)


@pytest.fixture
def world() -> World:
    """One idle worker, seen once."""
    world = World()
    world.hear(beat(world.now))
    world.look({QUEUE: 0})
    return world


def test_only_queues_of_live_workers_are_there(world: World) -> None:
    world.assign(3, 3.0, queue="gpu.gone.0")
    world.hear(beat(world.now), beat(world.now, "plain@b", queue=""))
    assert world.look({QUEUE: 0}).names == [QUEUE]


def test_rows_are_sorted_and_several_workers_of_a_queue_add_up(world: World) -> None:
    world.hear(
        beat(world.now, "cpu1@a", "cpu.a", gpu_model="cpu", concurrency=2),
        beat(world.now, "cpu0@a", "cpu.a", gpu_model="cpu", concurrency=3),
        beat(world.now),
    )
    load = world.look({})
    assert (load.names, load.gpu_models, load.concurrency) == (
        ["cpu.a", QUEUE],
        ["cpu", "V100"],
        [5, 1],
    )


def test_waiting_is_the_true_depth_times_the_mean_of_what_was_assigned(world: World) -> None:
    world.assign(4, 12.0)
    load = world.look({QUEUE: 4})
    assert (load.waiting_count, load.waiting_seconds) == ([4], [12.0])
    load = world.look({QUEUE: 2})
    assert load.waiting_count == [2]
    assert load.waiting_seconds == pytest.approx([6.0], rel=0.05)


def test_a_queue_that_comes_back_full_is_reckoned_by_the_mean_whatever_leaves_it() -> None:
    world = World()
    world.assign(100, 200.0)  # By others, to a worker that was away.
    world.hear(beat(world.now))
    for depth in range(99, 40, -1):
        # Long and short ones, so that the sum of what has left is never near its mean.
        seconds = 3.9 if depth % 10 < 5 else 0.1
        task = started(f"t{depth}", seconds)
        world.ledger.start(task, world.now)
        world.ledger.end(ended(task), world.now)
        load = world.look({QUEUE: depth})
        assert load.waiting_seconds == pytest.approx([2.0 * depth], rel=0.25)


def test_a_task_that_expires_takes_its_own_seconds_along(world: World) -> None:
    world.assign(1, 10.0)
    world.assign(1, 1.0)
    world.look({QUEUE: 2})
    world.ledger.discard(discarded("long", 10.0), world.now)
    world.ledger.discard(discarded("long", 10.0), world.now)  # told twice
    load = world.look({QUEUE: 1})
    assert load.waiting_seconds == pytest.approx([1.0])
    assert load.running == []


def test_a_discarded_task_that_its_worker_still_lists_does_not_run(world: World) -> None:
    world.ledger.discard(discarded("t"), world.now)
    world.hear(beat(world.now + 0.1, active=("t",)))
    assert world.ledger.held_count(QUEUE) == 0


def test_a_long_task_that_leaves_takes_its_own_seconds_along(world: World) -> None:
    world.assign(1, 10.0)
    world.assign(1, 1.0)
    world.look({QUEUE: 2})
    world.ledger.start(started("long", 10.0), world.now)
    assert world.look({QUEUE: 1}).waiting_seconds == pytest.approx([1.0])


def test_a_task_published_before_its_producer_reports_it_counts_once(world: World) -> None:
    world.assign(1, 1.0)
    world.look({QUEUE: 1})
    world.look({QUEUE: 2})
    world.assign(1, 10.0)
    load = world.look({QUEUE: 2})
    assert load.waiting_count == [2]
    assert load.waiting_seconds == pytest.approx([11.0], rel=0.02)


def test_a_task_started_before_its_producer_reports_it_leaves_nothing_behind(world: World) -> None:
    event = started("quick")
    world.ledger.start(event, world.now)
    world.ledger.end(ended(event), world.now)
    world.look({QUEUE: 0})
    world.assign(1, 2.0)
    assert world.look({QUEUE: 0}).waiting_seconds == [0.0]


def test_a_moved_task_counts_as_predicted_where_it_is(world: World) -> None:
    world.hear(beat(world.now), beat(world.now, "gpu1@a", "gpu.a.1"))
    world.assign(3, 6.0)
    world.look({QUEUE: 3})
    world.ledger.move(Move("d", QUEUE, "gpu.a.1", 2.0, 5.0), world.now)
    load = world.look({QUEUE: 2, "gpu.a.1": 1})
    assert load.waiting_seconds == pytest.approx([4.0, 5.0], rel=0.1)
    assert world.ledger.counted_seconds("d", 2.0) == 5.0

    event = started("moved", None, node="gpu1@a")
    world.ledger.start(event, world.now)
    load = world.look({QUEUE: 2, "gpu.a.1": 0})
    assert [(row, seconds) for row, seconds, _ in load.running] == [(1, 5.0)]
    world.ledger.end(ended(event), world.now)
    assert world.look({QUEUE: 0, "gpu.a.1": 0}).waiting_seconds == [0.0, 0.0]


def test_a_queue_is_free_while_nothing_waits_or_is_held(world: World) -> None:
    load = world.look({QUEUE: 0})
    assert world.ledger.free_rows(load) == [0]
    assert world.ledger.free_rows(world.look({QUEUE: 1})) == []
    world.ledger.start(started("a"), world.now)
    assert world.ledger.free_rows(world.look({QUEUE: 0})) == []
    world.ledger.end(ended(started("a")), world.now)
    world.ledger.drained = frozenset([QUEUE])
    assert world.ledger.free_rows(world.look({QUEUE: 0})) == []


def test_a_queue_whose_task_is_between_queue_and_start_is_not_free(world: World) -> None:
    world.assign(1, 2.0)
    world.look({QUEUE: 1})
    assert world.ledger.free_rows(world.look({QUEUE: 0})) == []
    event = started("slow to start")
    world.ledger.start(event, world.now)
    world.ledger.end(ended(event), world.now)
    assert world.ledger.free_rows(world.look({QUEUE: 0})) == [0]
    # One that vanished is not waited for.
    world.assign(1, 2.0)
    world.look({QUEUE: 1})
    for _ in range(10):
        load = world.look({QUEUE: 0})
    assert world.ledger.free_rows(load) == [0]


def test_what_only_a_heartbeat_lists_is_held_until_it_is_seen_to_end(world: World) -> None:
    world.now += 1.0
    world.hear(beat(world.now, active=("a",)))
    assert world.ledger.held_count(QUEUE) == 1
    world.now += 0.1
    world.ledger.start(started("a"), world.now)
    assert world.ledger.held_count(QUEUE) == 1
    world.ledger.end(ended(started("a")), world.now)
    # Although there was no other heartbeat since.
    assert world.ledger.held_count(QUEUE) == 0


def test_tasks_that_vanish_unseen_are_forgotten_with_the_depth(world: World) -> None:
    world.assign(100, 500.0)
    world.look({QUEUE: 100})
    load = world.look({QUEUE: 0})
    assert (load.waiting_count, load.waiting_seconds) == ([0], [0.0])
    for _ in range(60):
        world.look({QUEUE: 0})
    world.assign(1, 3.0)
    assert world.look({QUEUE: 1}).waiting_seconds == pytest.approx([3.0], rel=0.1)


def test_after_a_restart_the_mean_of_all_assignments_stands_in() -> None:
    world = World()
    world.assign(50, 100.0)
    world.hear(beat(world.now))
    assert world.look({QUEUE: 5}).waiting_seconds == pytest.approx([10.0])


def test_counters_that_start_over_do_no_harm(world: World) -> None:
    world.assign(50, 100.0)
    world.look({QUEUE: 50})
    world.count, world.seconds = {QUEUE: 1}, {QUEUE: 2.0}
    assert world.look({QUEUE: 3}).waiting_seconds == pytest.approx([6.0], rel=0.05)


def test_without_predictions_the_mean_service_time_stands_in(world: World) -> None:
    world.ledger.end(ended(started("a", None), seconds=7.0), world.now)
    world.assign(2, 0.0)
    assert world.look({QUEUE: 2}).waiting_seconds == pytest.approx([14.0])


def test_tasks_sent_before_anything_was_known_weigh_what_they_turn_out_to_take(
    world: World,
) -> None:
    events = [started(f"t{index}", None) for index in range(10)]
    world.assign(10, 0.0)
    world.look({QUEUE: 10})
    for index, event in enumerate(events[:5]):
        world.ledger.start(event, world.now)
        world.ledger.end(ended(event, seconds=0.3), world.now)
        world.assign(1, 0.4)
        assert world.look({QUEUE: 10}).waiting_seconds == pytest.approx(
            [(9 - index) * 0.3 + (1 + index) * 0.4], rel=0.02
        )


def test_unknown_depth_counts_assigned_minus_started(world: World) -> None:
    world.assign(3, 6.0)
    assert world.look({}).waiting_count == [3]
    event = started("a", 2.0)
    world.ledger.start(event, world.now)
    load = world.look({})
    assert (load.waiting_count, load.waiting_seconds) == ([2], [4.0])


def test_unknown_depth_is_zero_once_the_worker_has_been_idle(world: World) -> None:
    world.assign(3, 6.0)
    world.look({})
    world.now += 6.0
    world.hear(beat(world.now))
    assert world.look({}).waiting_seconds == [0.0]


def test_a_start_runs_until_its_outcome(world: World) -> None:
    event = started("a", 4.0)
    world.ledger.start(event, at=999.5)
    assert world.look({QUEUE: 0}).running == [(0, 4.0, 999.5)]
    world.ledger.end(ended(event), world.now)
    assert world.look({QUEUE: 0}).running == []


def test_an_outcome_before_its_start_and_doubles_leave_nothing(world: World) -> None:
    event = started("a")
    for _ in range(2):
        world.ledger.end(ended(event), world.now)
        world.ledger.start(event, world.now)
    assert world.look({QUEUE: 0}).running == []


def test_a_late_outcome_of_an_earlier_try_does_not_end_the_present_one(world: World) -> None:
    first, second = started("a"), started("a", attempt=1)
    world.ledger.start(first, world.now)
    world.ledger.start(second, world.now)
    world.ledger.end(ended(first, state=TryState.RETRY), world.now)
    assert len(world.look({QUEUE: 0}).running) == 1


def test_prediction_of_a_start_comes_from_event_then_policy_then_mean() -> None:
    known = {("train", "V100"): 3.0}
    world = World(predict=lambda task_type, model: known.get((task_type, model)))
    world.assign(1, 5.0)
    world.hear(beat(world.now, concurrency=3))
    world.look({})
    world.ledger.start(started("told", 2.0), world.now)
    world.ledger.start(started("predicted", None), world.now + 0.1)
    world.ledger.start(replace(started("unknown", None), task_type="other"), world.now + 0.2)
    assert [seconds for _, seconds, _ in world.look({QUEUE: 0}).running] == [2.0, 3.0, 5.0]


def test_a_task_missing_from_two_newer_heartbeats_is_dropped(world: World) -> None:
    world.ledger.start(started("lost"), world.now)
    counts = []
    for _ in range(2):
        world.now += 1.0
        world.hear(beat(world.now))
        world.hear(beat(world.now))  # Reading the same heartbeat again tells nothing new.
        counts.append(len(world.look({QUEUE: 0}).running))
    assert counts == [1, 0]


def test_a_heartbeat_sent_before_the_start_does_not_count_against_it(world: World) -> None:
    sent_at = world.now + 1.0
    world.now = sent_at + 0.5
    world.ledger.start(started("young"), world.now)
    world.hear(beat(sent_at))
    world.hear(beat(sent_at + 0.4, tick_age_seconds=0.1))
    assert len(world.look({QUEUE: 0}).running) == 1


def test_an_active_task_that_no_event_told_of_is_added(world: World) -> None:
    for _ in range(2):
        world.now += 1.0
        world.hear(beat(world.now, active=("unseen",)))
    assert len(world.look({QUEUE: 0}).running) == 1
    world.ledger.end(ended(started("unseen")), world.now)
    assert world.look({QUEUE: 0}).running == []


def test_a_heartbeat_that_still_lists_an_ended_task_does_not_revive_it(world: World) -> None:
    event = started("a")
    world.ledger.start(event, world.now)
    world.ledger.end(ended(event), world.now + 1.0)
    world.now += 1.1
    world.hear(beat(world.now, active=("a",)))
    assert world.look({QUEUE: 0}).running == []


def test_what_a_worker_holds_beyond_its_slots_waits(world: World) -> None:
    world.ledger.start(started("a", 2.0), world.now)
    world.ledger.start(started("b", 3.0), world.now + 0.1)
    load = world.look({QUEUE: 1})
    assert len(load.running) == 1
    assert load.waiting_count == [2]
    assert load.waiting_seconds[0] >= 3.0


def test_work_taken_from_another_queue_occupies_the_worker(world: World) -> None:
    event = replace(started("default"), queue="celery")
    world.ledger.start(event, world.now)
    assert len(world.look({QUEUE: 0}).running) == 1


def test_a_draining_queue_is_closed_and_stays_a_row(world: World) -> None:
    world.hear(beat(world.now, draining=True))
    load = world.look({QUEUE: 0})
    assert (load.names, load.closed) == ([QUEUE], [0])


def test_one_draining_worker_of_two_leaves_the_queue_open(world: World) -> None:
    world.hear(beat(world.now), beat(world.now, "gpu1@a", QUEUE, draining=True))
    load = world.look({QUEUE: 0})
    assert (load.closed, load.concurrency) == ([], [1])


def stay(world: World, seconds: float, depth: int, **fields: object) -> Load:
    """Let time pass, second by second."""
    for _ in range(round(seconds)):
        world.hear(beat(world.now, **fields))  # type: ignore[arg-type]
        load = world.look({QUEUE: depth}, after=1.0)
    return load


def test_a_worker_whose_event_loop_stands_still_is_wedged_until_it_runs(world: World) -> None:
    assert stay(world, 1, 2, tick_age_seconds=16.0, active=("one",)).closed == [0]
    assert world.ledger.wedged == {QUEUE: "its event loop stands still"}
    assert stay(world, 1, 2, active=("one",)).closed == []
    assert world.ledger.wedged == {}


def test_a_worker_that_does_not_consume_is_closed_at_once_and_wedged_after_a_while(
    world: World,
) -> None:
    assert stay(world, 9, 2, consuming=False).closed == [0]
    assert world.ledger.wedged == {}
    stay(world, 3, 2, consuming=False)
    assert world.ledger.wedged == {QUEUE: "it does not consume"}
    assert stay(world, 1, 2).closed == []
    # One that is asked to stop leaves its queue, too.
    stay(world, 20, 2, consuming=False, draining=True)
    assert world.ledger.wedged == {}


def test_an_idle_worker_that_takes_nothing_is_wedged_for_a_minute_then_for_two(
    world: World,
) -> None:
    assert stay(world, 15, 2).closed == []
    assert stay(world, 3, 2).closed == [0]
    assert world.ledger.wedged == {QUEUE: "it takes nothing"}
    stay(world, 60, 0)
    assert world.ledger.wedged == {}
    stay(world, 18, 1)
    assert stay(world, 100, 0).closed == [0]
    # It takes one: all is well again at once.
    assert stay(world, 1, 0, active=("one",)).closed == []
    assert stay(world, 14, 1).closed == []


def test_a_worker_that_is_busy_or_takes_now_and_then_is_not_wedged(world: World) -> None:
    stay(world, 60, 3, active=("long",))
    for depth in (30, 20, 10):
        stay(world, 12, depth)
    assert world.ledger.wedged == {}
    # While the controller itself stood still, nobody looked.
    world.look({QUEUE: 5}, after=1.0)
    world.hear(beat(world.now + 100.0))
    world.look({QUEUE: 5}, after=100.0)
    assert world.ledger.wedged == {}


def test_a_silent_worker_is_closed_within_five_seconds_and_then_gone(world: World) -> None:
    world.ledger.start(started("a"), world.now)
    assert world.look({QUEUE: 0}, after=3.0).closed == []
    assert world.look({QUEUE: 0}, after=1.5).closed == [0]
    load = world.look({QUEUE: 0}, after=0.5)
    assert (load.names, load.running) == ([], [])


def test_a_worker_that_took_its_heartbeat_back_is_gone_at_once(world: World) -> None:
    world.hear()
    assert world.look({QUEUE: 0}).names == []


def test_free_memory_is_that_of_the_idle_gpu(world: World) -> None:
    world.hear(beat(world.now, memory_free_bytes=100))
    world.hear(beat(world.now, memory_free_bytes=20, active=("a",)))
    assert world.look({QUEUE: 0}).free_memory_bytes == [100]


def test_what_our_own_processes_hold_is_free_to_the_next_task(world: World) -> None:
    def free() -> int | None:
        return world.look({QUEUE: 0}).free_memory_bytes[0]

    read: dict[str, Any] = {"memory_total_bytes": 100, "memory_free_bytes": 20}
    world.hear(beat(world.now, memory_own_bytes=50, active=("a",), **read))
    assert free() == 70
    # Unknown, as in a container: what the last task had is kept for the next.
    world.ledger.end(replace(ended(started("a")), peak_memory_bytes=60), world.now)
    world.hear(beat(world.now, **read))
    assert free() == 80
    world.hear(beat(world.now, memory_total_bytes=100, memory_free_bytes=90))
    assert free() == 100


def test_the_columns_say_the_same_as_the_rows(world: World) -> None:
    world.hear(
        beat(world.now, concurrency=2),
        beat(world.now, "gpu1@a", "gpu.a.1", gpu_model="K80", draining=True),
    )
    world.assign(3, 10.0)
    world.ledger.start(started("a", 4.0), world.now)
    fleet = world.look({QUEUE: 2, "gpu.a.1": 0}).fleet()
    assert fleet.names == (QUEUE, "gpu.a.1")
    assert fleet.waiting_seconds.tolist() == pytest.approx([6.0, 0.0], rel=0.05)
    assert fleet.is_open.tolist() == [True, False]
    assert fleet.residual_seconds(world.now).tolist() == pytest.approx([4.0, 0.0], abs=0.05)


# A task is published, reported, started, ended; any of the last three may be lost, and what is
# said of it may come in any order and more than once.
fates = st.lists(
    st.tuples(
        st.integers(0, 2),  # queue
        st.floats(0.001, 100.0),  # predicted seconds
        st.sets(st.sampled_from(["reported", "started", "ended"])),
        st.booleans(),  # told twice
    ),
    max_size=30,
)


@settings(max_examples=200, deadline=None)
@given(fates, st.randoms(use_true_random=False), st.booleans())
def test_any_order_of_events_is_never_negative_and_zero_when_idle(
    tasks: list[tuple[int, float, set[str], bool]], order: random.Random, sees_depth: bool
) -> None:
    world = World()
    nodes = {f"gpu{index}@a": f"gpu.a.{index}" for index in range(3)}
    world.hear(*(beat(world.now, node, queue) for node, queue in nodes.items()))
    world.look(dict.fromkeys(nodes.values(), 0))
    steps: list[tuple[str, int]] = []
    for index, (_, _, told, twice) in enumerate(tasks):
        steps += [(verb, index) for verb in sorted(told) for _ in range(1 + twice)]
    order.shuffle(steps)
    reported: set[int] = set()
    for verb, index in steps:
        queue, seconds, _, _ = tasks[index]
        event = started(f"t{index}", seconds, node=f"gpu{queue}@a")
        if verb == "started":
            world.ledger.start(event, world.now)
        elif verb == "ended":
            world.ledger.end(ended(event), world.now)
        elif index not in reported:
            reported.add(index)
            world.assign(1, seconds, queue=event.queue)
        depths = {name: order.randrange(4) for name in nodes.values()} if sees_depth else {}
        load = world.look(depths)
        assert all(count >= 0 for count in load.waiting_count)
        assert all(0.0 <= waiting < 1e4 for waiting in load.waiting_seconds)
        assert all(seconds > 0.0 for _, seconds, _ in load.running)
        assert len(load.running) <= 3
    for _ in range(6):
        world.now += 1.0
        world.hear(*(beat(world.now, node, queue) for node, queue in nodes.items()))
        load = world.look(dict.fromkeys(nodes.values(), 0) if sees_depth else {})
    assert load.running == []
    assert load.waiting_count == [0, 0, 0]
    assert load.waiting_seconds == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(("vanishing", "largest_error"), [(0.0, 0.05), (0.01, 0.05), (0.05, 0.1)])
def test_the_backlog_is_near_the_truth_while_busy(vanishing: float, largest_error: float) -> None:
    # A FIFO queue of tasks with widely different sizes; some vanish without a word.
    rng = random.Random(5)
    world = World()
    world.hear(beat(world.now))
    world.look({QUEUE: 0})
    queue: list[tuple[str, float]] = []
    unreported: list[float] = []
    running: tuple[Started, float] | None = None
    errors = []
    for step in range(20_000):
        if rng.random() < 0.1:
            seconds = rng.lognormvariate(-1.7, 1.0)
            queue.append((f"t{step}", seconds))
            unreported.append(seconds)
        if step % 2 == 0:  # Producers report a tick later.
            for seconds in unreported:
                world.assign(1, seconds)
            unreported = []
        if running is not None and world.now >= running[1]:
            world.ledger.end(ended(running[0]), world.now)
            running = None
        while queue and running is None:
            task, seconds = queue.pop(0)
            if rng.random() < vanishing:
                continue
            event = started(task, seconds)
            world.ledger.start(event, world.now)
            running = event, world.now + seconds
        world.hear(beat(world.now, active=(running[0].task_id,) if running else ()))
        load = world.look({QUEUE: len(queue)})
        truth = sum(seconds for _, seconds in queue)
        assert (load.waiting_seconds == [0.0]) == (not queue)
        if truth > 2.0:
            errors.append(abs(load.waiting_seconds[0] - truth) / truth)
    assert len(errors) > 1_000
    assert sum(errors) / len(errors) < largest_error


def test_totals_that_went_back_count_from_nothing(world: World) -> None:
    world.assign(500, 900.0)
    world.look({QUEUE: 0})
    world.look({QUEUE: 0}, after=3.0)
    world.count[QUEUE], world.seconds[QUEUE] = 0, 0.0
    world.assign(2, 6.0)
    load = world.look({})  # What the broker cannot tell goes by the sums.
    assert load.waiting_count == [2]
    assert load.waiting_seconds == pytest.approx([6.0])
    world.assign(1, 3.0)
    assert world.look({}).waiting_seconds == pytest.approx([9.0])
