"""Many producers with views that are old: none of them follows the others to one queue."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np
import pytest

from owl_celery.fleet import Fleet, Floats
from owl_celery.others import Others
from owl_celery.policies import make_policy
from owl_celery.policies.base import Policy
from owl_celery.policies.unseen import levelled
from owl_celery.settings import Settings
from owl_celery.snapshot import Snapshot
from owl_celery.types import Outcome, TaskView, TryState

QUEUES = 12
TASKS = 1_000
TICK_SECONDS, SYNC_SECONDS = 0.15, 0.2
SERVICE_SECONDS = {"train": 2.0, "tune": 3.0, "embed": 1.0}


def fleet_of(*models: str) -> Fleet:
    return Fleet([f"gpu.a.{row:02}" for row in range(len(models))], list(models))


def taught() -> Policy:
    """A policy that knows the service times of all types."""
    policy = make_policy(Settings(seed=1, policy="expected_completion"))
    for number in range(300):
        kind = list(SERVICE_SECONDS)[number % len(SERVICE_SECONDS)]
        outcome = Outcome(
            task_id=str(number),
            decision_id="",
            attempt=0,
            task_type=kind,
            size=1.0,
            queue="gpu.a.00",
            worker_id="gpu0@a",
            gpu_model="V100",
            state=TryState.SUCCESS,
            service_seconds=SERVICE_SECONDS[kind],
            finished_at=0.0,
        )
        policy.learn_one(outcome, float(number))
    return policy


@dataclass
class Producer:
    """What one of them knows and has not reported."""

    snapshot: Snapshot
    others: Others = field(default_factory=Others)
    unreported: float = 0.0
    reported: list[tuple[float, float]] = field(default_factory=list)


def burst(producers: int, seed: int, knows_others: bool) -> Floats:
    """Send all tasks within a second, in virtual time; the seconds in each queue."""
    draw, policy = random.Random(seed), taught()
    queues = fleet_of(*["V100"] * QUEUES)
    rows = {name: row for row, name in enumerate(queues.names)}
    everybody = [Producer(Snapshot(queues.emptied(), rows, [], 0, 0.0)) for _ in range(producers)]
    events: list[tuple[float, str, int]] = [
        (draw.random(), "send", number % producers) for number in range(TASKS)
    ]
    events += [(index * TICK_SECONDS, "count", 0) for index in range(-10, 8)]
    for number in range(producers):
        phase = draw.random() * SYNC_SECONDS
        events += [(phase + index * SYNC_SECONDS, "sync", number) for index in range(-9, 5)]
    truth, total = queues.emptied(), 0.0
    counted_at, view, view_total = -9.0, queues.emptied(), 0.0
    for at, what, number in sorted(events):
        one = everybody[number]
        fleet = one.snapshot.fleet
        if what == "count":
            counted_at, view_total, view = at, total, copy_of(truth)
        elif what == "sync":
            total += one.unreported
            one.reported.append((at, one.unreported))
            one.unreported = 0.0
            ours = sum(seconds for told_at, seconds in one.reported if told_at <= counted_at)
            one.reported = [pair for pair in one.reported if pair[0] > counted_at]
            one.others.counted(np.array([view_total]), counted_at, np.array([ours]))
            fleet = copy_of(view)
            one.snapshot = Snapshot(fleet, rows, [], 0, at, one.others.pace)
        else:
            if knows_others:
                fleet.unseen_seconds = one.snapshot.unseen_seconds(at)
            kind = draw.choice(list(SERVICE_SECONDS))
            decision = policy.choose(TaskView(kind), fleet, at)
            assert decision.service_seconds is not None
            row = rows[decision.queue]
            one.snapshot.sent(row, decision.service_seconds)
            truth.waiting_count[row] += 1
            truth.waiting_seconds[row] += decision.service_seconds
            one.unreported += decision.service_seconds
    return truth.waiting_seconds


def copy_of(fleet: Fleet) -> Fleet:
    copy = fleet.emptied()
    copy.waiting_count[:] = fleet.waiting_count
    copy.waiting_seconds[:] = fleet.waiting_seconds
    copy.settle()
    return copy


def deviation(seconds: Floats) -> float:
    """Of the queue that is furthest from an equal share."""
    return float(np.abs(seconds / seconds.mean() - 1.0).max())


def test_a_burst_of_32_producers_spreads_although_their_views_are_old() -> None:
    with_others = [deviation(burst(32, seed, knows_others=True)) for seed in range(4)]
    alone = [deviation(burst(32, seed, knows_others=False)) for seed in range(4)]
    assert np.median(with_others) < 0.25
    assert np.median(with_others) < 0.5 * np.median(alone)


def test_a_producer_that_is_alone_chooses_as_if_it_did_not_look_for_others() -> None:
    assert (burst(1, 1, knows_others=True) == burst(1, 1, knows_others=False)).all()


def test_more_than_it_takes_levels_all_queues_of_a_model_and_no_other() -> None:
    fleet = fleet_of("V100", "V100", "K80")
    fleet.unseen_seconds = np.array([0.0, 1_000.0])
    first, second, other = levelled(np.array([1.0, 5.0, 2.0]), fleet, np.random.default_rng(1))
    assert first == second > 5.0
    assert other == 2.0


def test_a_closed_queue_takes_nothing_in() -> None:
    fleet = fleet_of("V100", "V100")
    fleet.is_open[0] = False
    fleet.unseen_seconds = np.array([4.0])
    closed, open_ = levelled(np.array([0.0, 3.0]), fleet, np.random.default_rng(1))
    assert closed == 0.0
    assert open_ > 3.0


def test_a_wide_queue_takes_more_to_rise() -> None:
    fleet = Fleet(["a", "b"], ["cpu", "cpu"], [1, 3])
    fleet.unseen_seconds = np.array([4.0])
    low, wide = levelled(np.zeros(2), fleet, np.random.default_rng(1))
    assert low == wide == pytest.approx(2.0 * np.random.default_rng(1).random() * 4.0 / 4)


def test_what_was_sent_to_other_queues_says_nothing_of_these() -> None:
    others = Others()
    others.counted(np.array([5.0]), 1.0, np.array([0.0]))
    others.counted(np.array([9.0]), 2.0, np.array([0.0]))
    assert others.pace is not None
    others.counted(np.array([9.0, 70.0]), 3.0, np.array([0.0, 0.0]))
    assert others.pace is None
    others.forget()
    others.counted(np.array([500.0, 70.0]), 4.0, np.array([0.0, 0.0]))
    assert others.pace is None


def test_where_the_others_send_is_judged_by_what_we_send_ourselves() -> None:
    fleet = fleet_of("K80", "V100")
    snapshot = Snapshot(fleet, {}, [], 0, 10.0, np.array([8.0, 2.0]))
    before = snapshot.unseen_seconds(11.0)
    assert before is not None
    assert before.tolist() == [8.0, 2.0]
    for _ in range(4):
        snapshot.sent(1, 0.5)
    after = snapshot.unseen_seconds(11.0)
    assert after is not None
    assert after.tolist() == [4.0, 6.0]  # half as was heard, half as we do; all in all the same
    assert fleet.waiting_seconds.tolist() == [0.0, 2.0]


def test_the_pace_of_others_fades_when_they_stop() -> None:
    others = Others()
    others.counted(np.array([0.0]), 0.0, np.array([0.0]))
    others.counted(np.array([30.0]), 0.1, np.array([10.0]))
    assert others.pace is not None
    assert 100.0 < others.pace.item() < 200.0
    others.counted(np.array([40.0]), 0.1, np.array([0.0]))  # The same count once more.
    assert 100.0 < others.pace.item() < 200.0
    others.counted(np.array([30.0]), 2.1, np.array([0.0]))
    assert others.pace is None
