"""Checks that every policy passes; a new policy adds a line to ``POLICIES``."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from owl_celery.errors import NoOpenQueueError, SettingsError, StateError
from owl_celery.fleet import Fleet
from owl_celery.policies import make_policy, policy_class, policy_names
from owl_celery.policies.base import Policy
from owl_celery.policies.expected_completion import ExpectedCompletion
from owl_celery.policies.priced_q import PricedQ
from owl_celery.policies.random import Random
from owl_celery.policies.round_robin import RoundRobin
from owl_celery.policies.shortest_queue import ShortestQueue
from owl_celery.settings import Settings
from owl_celery.types import Outcome, TaskView, TryState

POLICIES: dict[str, Callable[[int], Policy]] = {
    "random": lambda seed: Random(seed=seed),
    "round_robin": lambda seed: RoundRobin(seed=seed),
    "shortest_queue": lambda seed: ShortestQueue(seed=seed),
    "expected_completion": lambda seed: ExpectedCompletion(seed=seed),
    "q_learning": lambda seed: PricedQ(seed=seed),
    "q_learning without prices": lambda seed: PricedQ(
        seed=seed, enable_reinforcement_learning=False
    ),
    "expected_completion without noise": lambda seed: ExpectedCompletion(
        seed=seed, enable_reinforcement_learning=False
    ),
}
loads = st.floats(min_value=0.0, max_value=1e300)
sizes = st.floats(allow_nan=True, allow_infinity=True)
MODELS = ("K80", "P100", "V100")
TYPES = ("train", "infer", "resize")


@pytest.fixture(params=POLICIES)
def make(request: pytest.FixtureRequest) -> Callable[[int], Policy]:
    """Each policy in turn, as a function of the seed."""
    return POLICIES[request.param]


def a_fleet(count: int = 6) -> Fleet:
    return Fleet([f"gpu.a.{i}" for i in range(count)], [MODELS[i % 3] for i in range(count)])


def an_outcome(number: int, fleet: Fleet, random: np.random.Generator, **changes: Any) -> Outcome:
    row = int(random.integers(len(fleet)))
    values: dict[str, Any] = {
        "task_id": str(number),
        "decision_id": str(number),
        "attempt": 0,
        "task_type": TYPES[number % len(TYPES)],
        "size": 1.0,
        "queue": fleet.names[row],
        "worker_id": "w@a",
        "gpu_model": fleet.gpu_model(row),
        "state": TryState.SUCCESS,
        "service_seconds": float(random.lognormal(0.0, 0.5)),
        "finished_at": 0.0,
    }
    return Outcome(**(values | changes))


def live_a_little(policy: Policy, steps: int = 300, seed: int = 7, since: float = 0.0) -> list[str]:
    """Let a policy choose and learn on a fleet that changes; the queues it chose."""
    random = np.random.default_rng(seed)
    fleet = a_fleet()
    chosen = []
    for step in range(steps):
        now = since + step * 0.3
        task = TaskView(TYPES[int(random.integers(3))], size=float(random.lognormal(0.0, 0.3)))
        policy.arrived(task, now)
        fleet.waiting_count[:] = random.integers(0, 4, len(fleet))
        fleet.waiting_seconds[:] = fleet.waiting_count * random.random(len(fleet))
        fleet.running_seconds[:, 0] = random.random(len(fleet)) * (fleet.waiting_count > 0)
        fleet.running_since[:, 0] = now - random.random(len(fleet))
        chosen.append(policy.choose(task, fleet, now).queue)
        state = TryState.FAILURE if random.random() < 0.1 else TryState.SUCCESS
        policy.learn_one(an_outcome(step, fleet, random, state=state), now)
        if step % 10 == 0:
            policy.tick(fleet, now)
    return chosen


def test_same_seed_same_choices(make: Callable[[int], Policy]) -> None:
    assert live_a_little(make(3)) == live_a_little(make(3))


def test_state_continues_exactly_where_it_was(make: Callable[[int], Policy]) -> None:
    for steps in (0, 1, 40, 300):
        policy, restored = make(3), make(99)
        live_a_little(policy, steps)
        restored.restore(json.loads(json.dumps(policy.state())))
        assert restored.state() == policy.state()
        later = live_a_little(policy, 100, seed=8, since=1e4)
        assert live_a_little(restored, 100, seed=8, since=1e4) == later


def test_snapshot_makes_a_choosing_object_predict_the_same(make: Callable[[int], Policy]) -> None:
    learning, choosing = make(3), make(3)
    live_a_little(learning)
    snapshot = json.loads(json.dumps(learning.snapshot()))
    choosing.apply_snapshot(snapshot | {"of a newer release": [1, 2]})
    fleet = a_fleet()
    for task_type in (*TYPES, "unseen"):
        for gpu_model in (*MODELS, "unseen"):
            task = TaskView(task_type, size=2.0)
            expected = learning.predict_seconds(task, gpu_model)
            assert choosing.predict_seconds(task, gpu_model) == (
                None if expected is None else pytest.approx(expected, rel=1e-3)
            )
    assert choosing.choose(TaskView("train"), fleet, 1e3).queue in fleet.names
    assert choosing.ready == learning.ready


def test_never_a_closed_queue_nor_a_tried_model(make: Callable[[int], Policy]) -> None:
    policy = make(1)
    live_a_little(policy)
    fleet = a_fleet()
    fleet.is_open[:] = [True, False, True, True, True, False]
    task = TaskView("train", tried=frozenset({"K80"}))
    queues = {policy.choose(task, fleet, 1e3).queue for _ in range(100)}
    assert queues <= {"gpu.a.2", "gpu.a.4"}


@given(data=st.data(), is_settled=st.booleans())
@settings(max_examples=30)
@pytest.mark.parametrize("name", POLICIES)
def test_whatever_the_load_an_open_queue_is_chosen(
    name: str, data: st.DataObject, is_settled: bool
) -> None:
    policy, fleet = POLICIES[name](1), a_fleet()
    live_a_little(policy, 20)
    closed = data.draw(st.sets(st.integers(0, len(fleet) - 1), max_size=len(fleet) - 1))
    fleet.is_open[list(closed)] = False
    column = st.lists(loads, min_size=len(fleet), max_size=len(fleet))
    fleet.waiting_seconds[:] = data.draw(column)
    fleet.running_seconds[:, 0] = data.draw(column)
    if is_settled:
        fleet.settle()
    for step in range(5):
        row = fleet.names.index(policy.choose(TaskView("train"), fleet, 1e3 + step).queue)
        assert row not in closed


@given(steps=st.integers(0, 120))
@settings(max_examples=15)
@pytest.mark.parametrize("name", ["expected_completion", "q_learning"])
def test_restoring_at_any_point_changes_no_decision(name: str, steps: int) -> None:
    policy, restored = POLICIES[name](3), POLICIES[name](99)
    live_a_little(policy, steps)
    restored.restore(json.loads(json.dumps(policy.state())))
    later = live_a_little(policy, 40, seed=8, since=1e4)
    assert live_a_little(restored, 40, seed=8, since=1e4) == later


def test_nowhere_to_go_is_an_error(make: Callable[[int], Policy]) -> None:
    policy, fleet = make(1), a_fleet()
    fleet.is_open[:] = False
    with pytest.raises(NoOpenQueueError):
        policy.choose(TaskView("train", tried=frozenset(MODELS)), fleet, 0.0)
    with pytest.raises(NoOpenQueueError):
        policy.choose(TaskView("train"), fleet, 0.0)
    with pytest.raises(NoOpenQueueError):
        policy.choose(TaskView("train"), Fleet([], []), 0.0)


def test_the_next_try_goes_where_more_memory_is_free(make: Callable[[int], Policy]) -> None:
    policy, fleet = make(1), Fleet([f"gpu.a.{i}" for i in range(5)], [*"AABBC"])
    live_a_little(policy)
    fleet.free_memory_bytes[:] = [8.0, 20.0, 12.0, 30.0, np.nan]

    def chosen(exceeded: float, *tried: str) -> set[str]:
        task = TaskView("train", tried=frozenset(tried), exceeded_bytes=exceeded)
        return {policy.choose(task, fleet, 1e3).queue for _ in range(200)}

    # Another model, large enough or of unknown memory; though its model has failed, a larger one.
    assert chosen(12.0, "A") <= {"gpu.a.3", "gpu.a.4"}
    assert chosen(12.0, "A", "B", "C") <= {"gpu.a.1", "gpu.a.3"}
    # Nothing is large enough: where there is most.
    assert chosen(30.0, "A", "B", "C") == {"gpu.a.3"}
    assert chosen(0.0, "A", "B", "C") == {"gpu.a.3"}
    fleet.free_memory_bytes[:] = np.nan
    assert chosen(0.0, "A", "B", "C") <= set(fleet.names)


def test_ties_are_broken_at_random(make: Callable[[int], Policy]) -> None:
    policy = make(1)
    fleet = Fleet([f"gpu.a.{i}" for i in range(4)], ["V100"] * 4)
    counts = Counter(policy.choose(TaskView("train"), fleet, 0.0).queue for _ in range(400))
    assert min(counts[name] for name in fleet.names) > 60


def test_a_longer_backlog_never_attracts(make: Callable[[int], Policy]) -> None:
    if isinstance(make(1), Random | RoundRobin):
        return  # These two do not look at the load.
    for shift in range(3):
        shares = []
        for backlog in (0.0, 1.0, 4.0):
            policy = make(1)
            live_a_little(policy)
            fleet = a_fleet()
            fleet.waiting_count[:] = 1
            fleet.waiting_seconds[:] = 1.0
            fleet.waiting_count[shift] = 1 + round(backlog)
            fleet.waiting_seconds[shift] = 1.0 + backlog
            chosen = [policy.choose(TaskView("train"), fleet, 1e3).queue for _ in range(300)]
            shares.append(chosen.count(fleet.names[shift]))
        assert shares[0] >= shares[1] >= shares[2]


@given(data=st.data(), size=sizes, now=st.floats(min_value=0.0, max_value=1e12))
@pytest.mark.parametrize("name", POLICIES)
def test_any_load_and_size_give_a_finite_decision(
    name: str, data: st.DataObject, size: float, now: float
) -> None:
    policy = POLICIES[name](1)
    live_a_little(policy, 20)
    fleet = a_fleet()
    column = st.lists(loads, min_size=len(fleet), max_size=len(fleet))
    fleet.waiting_seconds[:] = data.draw(column)
    fleet.waiting_count[:] = fleet.waiting_seconds > 0.0
    fleet.running_seconds[:, 0] = data.draw(column)
    fleet.free_memory_bytes[:] = data.draw(column)
    decision = policy.choose(TaskView("train", size=size), fleet, now)
    assert decision.queue in fleet.names
    for value in (decision.wait_seconds, decision.service_seconds, decision.propensity):
        assert value is None or (np.isfinite(value) and value >= 0.0)


@given(
    seconds=st.floats(allow_nan=True, allow_infinity=True),
    size=sizes,
    now=st.floats(min_value=0.0, max_value=1e12),
    peak=st.none() | st.integers(-(10**18), 10**18),
)
@pytest.mark.parametrize("name", POLICIES)
def test_any_outcome_leaves_predictions_finite(
    name: str, seconds: float, size: float, now: float, peak: int | None
) -> None:
    policy, fleet = POLICIES[name](1), a_fleet()
    random = np.random.default_rng(1)
    live_a_little(policy, 30)
    odd = an_outcome(0, fleet, random, service_seconds=seconds, size=size, peak_memory_bytes=peak)
    policy.learn_one(odd, now)
    policy.tick(fleet, now)
    decision = policy.choose(TaskView("train"), fleet, now)
    assert decision.service_seconds is None or np.isfinite(decision.service_seconds)
    json.dumps(policy.snapshot(), allow_nan=False)
    json.dumps(policy.state(), allow_nan=False)


@pytest.mark.parametrize(
    "damaged",
    [
        {},
        {"format": "one"},
        {"format": 1_000_000},
        {"format": 1, "policy": "another"},
        {"format": 1, "random": {"bit_generator": "Dice"}},
    ],
)
def test_a_state_that_cannot_be_read_is_an_error(
    make: Callable[[int], Policy], damaged: dict[str, Any]
) -> None:
    policy = make(1)
    with pytest.raises(StateError):
        policy.restore({"policy": policy.name} | damaged)


def test_registry_finds_every_policy_and_names_the_known_ones_otherwise() -> None:
    for name in policy_names():
        assert policy_class(name).name == name
    fallbacks = {policy_class(name).fallback for name in policy_names()} - {None}
    assert fallbacks <= set(policy_names())
    with pytest.raises(SettingsError, match=r"POLICY.*'best'.*round_robin"):
        policy_class("best")


def test_settings_reach_the_policy() -> None:
    chosen = Settings(
        policy="expected_completion",
        exploration_rate=0.5,
        enable_reinforcement_learning=False,
        seed=4,
    )
    policy = make_policy(chosen)
    assert isinstance(policy, ExpectedCompletion)
    assert (policy.exploration_rate, policy.sigma, policy.seed) == (0.5, 0.0, 4)
