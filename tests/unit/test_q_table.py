"""The Q table that people read says what the policy chooses by."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from owl_celery.fleet import Fleet
from owl_celery.policies.expected_completion import ExpectedCompletion
from owl_celery.policies.priced_q import PricedQ
from owl_celery.types import Outcome, TaskView, TryState

MODELS = ("K80", "P100", "V100")
SPEED = {"K80": 4.0, "P100": 2.0, "V100": 1.0}


def an_outcome(task_type: str, gpu_model: str, seconds: float, **changes: Any) -> Outcome:
    values: dict[str, Any] = {
        "task_id": "t",
        "decision_id": "d",
        "attempt": 0,
        "task_type": task_type,
        "size": 1.0,
        "queue": f"gpu.{gpu_model}",
        "worker_id": "w@a",
        "gpu_model": gpu_model,
        "state": TryState.SUCCESS,
        "service_seconds": seconds,
        "finished_at": 0.0,
    }
    return Outcome(**(values | changes))


def a_fleet(count: int = 6) -> Fleet:
    return Fleet([f"gpu.a.{i}" for i in range(count)], [MODELS[i % 3] for i in range(count)])


def busy(fleet: Fleet, seed: int = 2, at: float = 99.0) -> Fleet:
    """The same queues with waiting and running work."""
    random, loaded = np.random.default_rng(seed), fleet.emptied()
    loaded.waiting_seconds[:] = random.uniform(1.0, 9.0, len(fleet))
    loaded.waiting_count[:] = 1
    loaded.running_seconds[:, 0] = random.uniform(0.5, 5.0, len(fleet))
    loaded.running_since[:, 0] = at
    return loaded


def taught(policy: ExpectedCompletion, types: int = 5, tries: int = 40) -> ExpectedCompletion:
    """Let a policy know service times that depend on type and GPU model, and arrivals."""
    fleet = a_fleet()
    for number in range(types):
        for gpu_model, factor in SPEED.items():
            seconds = (1.0 + number) * factor ** (1.0 - 0.2 * number)
            for _ in range(tries):
                policy.learn_one(an_outcome(f"type-{number}", gpu_model, seconds), 0.0)
    policy.tick(fleet, 0.0)
    for step in range(200):
        policy.arrived(TaskView(f"type-{step % types}"), 50.0 + step / 4.0)
    policy.tick(fleet, 100.0)
    return policy


@pytest.mark.parametrize("kind", [ExpectedCompletion, PricedQ])
def test_the_least_value_is_what_a_choice_without_noise_takes(
    kind: type[ExpectedCompletion],
) -> None:
    policy = taught(kind(exploration_rate=0.0, seed=1))
    fleet = busy(a_fleet())
    for load, name in ((fleet, "seconds"), (fleet.emptied(), "idle_seconds")):
        table = policy.q_values(fleet, 100.0, 1_000)
        assert table is not None
        for row, task_type in enumerate(table.task_types):
            values = getattr(table, name)[row]
            chosen = policy.choose(TaskView(task_type), load, 100.0).queue
            assert values[table.queues.index(chosen)] == pytest.approx(values.min())


def test_each_value_names_its_pair_and_what_it_rests_on() -> None:
    policy = taught(PricedQ(seed=1))
    table = policy.q_values(busy(a_fleet()), 100.0, 1_000)
    assert table is not None
    assert sorted(table.task_types) == [f"type-{n}" for n in range(5)]
    assert list(table.queues) == [f"gpu.a.{i}" for i in range(6)]
    assert list(table.gpu_models) == [*MODELS, *MODELS]
    assert table.seconds.shape == table.idle_seconds.shape == table.visits.shape == (5, 6)
    assert (table.visits == 40).all()
    assert table.is_open.all()
    assert (table.seconds > table.idle_seconds).all()


def test_the_value_of_a_type_is_that_of_its_mean_size() -> None:
    policy = ExpectedCompletion(exploration_rate=0.0, seed=1)
    for size in (10.0, 30.0):
        for _ in range(20):
            policy.learn_one(an_outcome("resize", "V100", 0.1 * size, size=size), 0.0)
    table = policy.q_values(Fleet(["gpu.a.0"], ["V100"]), 0.0, 10)
    assert table is not None
    assert table.idle_seconds[0, 0] == pytest.approx(2.0, rel=0.02)


def test_where_a_type_may_not_go_is_said_and_its_value_stays_finite() -> None:
    policy = taught(PricedQ(seed=1))
    for _ in range(60):
        policy.learn_one(
            an_outcome("type-0", "K80", 0.01, state=TryState.FAILURE, out_of_memory=True), 100.0
        )
    for _ in range(5):
        policy.learn_one(an_outcome("type-1", "P100", 3.0, peak_memory_bytes=8 * 2**30), 100.0)
    fleet = a_fleet()
    fleet.free_memory_bytes[1] = 4 * 2**30
    fleet.is_open[5] = False
    table = policy.q_values(fleet, 100.0, 1_000)
    assert table is not None
    closed = {
        (task_type, queue)
        for row, task_type in enumerate(table.task_types)
        for column, queue in enumerate(table.queues)
        if not table.is_open[row, column]
    }
    everything = {(f"type-{n}", "gpu.a.5") for n in range(5)}
    crashing = {("type-0", "gpu.a.0"), ("type-0", "gpu.a.3")}
    assert closed == everything | crashing | {("type-1", "gpu.a.1")}
    assert np.isfinite(table.seconds).all()


def test_the_most_frequent_types_come_first_when_not_all_fit() -> None:
    policy = taught(PricedQ(seed=1))
    for step in range(500):
        policy.arrived(TaskView("type-3"), 101.0 + step)
        policy.arrived(TaskView("never run"), 101.5 + step)
    table = policy.q_values(a_fleet(), 700.0, 12)
    assert table is not None
    assert list(table.task_types) == ["type-3"]
    assert policy.q_values(a_fleet(), 700.0, 5) is None


@pytest.mark.parametrize("kind", [ExpectedCompletion, PricedQ])
def test_nothing_is_said_before_anything_is_learned(kind: type[ExpectedCompletion]) -> None:
    assert kind(seed=1).q_values(a_fleet(), 0.0, 1_000) is None
    assert taught(kind(seed=1)).q_values(Fleet([], []), 0.0, 1_000) is not None


@pytest.mark.parametrize("kind", [ExpectedCompletion, PricedQ])
def test_reading_the_table_changes_no_decision(kind: type[ExpectedCompletion]) -> None:
    read, unread = taught(kind(seed=1), tries=2), taught(kind(seed=1), tries=2)
    fleet = busy(a_fleet())
    for step in range(50):
        now = 100.0 + step
        read.q_values(fleet, now, 1_000)
        task = TaskView(f"type-{step % 5}")
        assert read.choose(task, fleet, now) == unread.choose(task, fleet, now)
    assert json.dumps(read.state()) == json.dumps(unread.state())
