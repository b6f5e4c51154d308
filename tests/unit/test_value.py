"""The value function: it finds a known slope, stays near the plan, and is held where it is sure."""

from __future__ import annotations

import json

import numpy as np
import pytest

from owl_celery.errors import StateError
from owl_celery.policies.value import MAX_MODELS, TRUST, Slope, ValueFunction, trusted

PLAN = (np.array([0.0]), np.array([0.0]))


def walk(value: ValueFunction, steps: int, seed: int = 1, since: float = 0.0) -> Slope | None:
    """A backlog that halves its distance to noise around 2 s; a task costs 1 + backlog."""
    random, backlog, slope = np.random.default_rng(seed), 2.0, None
    for step in range(steps):
        backlog = max(0.0, 0.5 * backlog + 1.0 + random.normal(0.0, 0.5))
        slope = value.observe(
            ["V100"], np.array([backlog]), 1, 1.0 + backlog, 1.0, PLAN, since + step
        )
    return slope


def test_slope_of_a_known_process_is_found() -> None:
    # A second more now is 0.5 s more after one step, 0.25 s after two: 2 task seconds in all.
    slope = walk(ValueFunction(learning_rate=0.5), 20_000)
    assert slope is not None
    assert float(slope.at(np.array([2.0]))[0]) == pytest.approx(2.0, rel=0.15)


def test_few_samples_leave_it_near_the_plan() -> None:
    value, plan = ValueFunction(learning_rate=1.0), (np.array([0.7]), np.array([0.0]))
    random, slope = np.random.default_rng(1), None
    for step in range(120):
        backlog = np.array([random.exponential()])
        slope = value.observe(["V100"], backlog, 1, 1.0, 1.0, plan, float(step))
    assert slope is not None
    assert float(slope.at(np.array([1.0]))[0]) == pytest.approx(0.7, abs=0.3)


def test_nothing_is_known_at_first_nor_with_too_many_models() -> None:
    assert walk(ValueFunction(0.1), 50) is None
    models = [f"model {number}" for number in range(MAX_MODELS + 1)]
    many = np.ones(len(models))
    value = ValueFunction(0.1)
    for step in range(300):
        assert value.observe(models, many, 7, 1.0, 1.0, (many, many), float(step)) is None


def test_another_fleet_begins_anew() -> None:
    value = ValueFunction(0.1)
    assert walk(value, 500) is not None
    two = np.ones(2)
    assert value.observe(["K80", "V100"], two, 2, 1.0, 1.0, (two, two), 1e4) is None


def test_state_continues_exactly() -> None:
    value, restored = ValueFunction(0.1), ValueFunction(0.1)
    walk(value, 333)
    restored.restore(json.loads(json.dumps(value.state())))
    first, second = (walk(v, 100, seed=2, since=1e3) for v in (value, restored))
    assert first is not None
    assert second is not None
    assert first.encode() == second.encode() == Slope.decode(second.encode()).encode()


def test_damaged_weights_are_refused() -> None:
    for damaged in ({}, {"models": ["a"], "linear": [1.0, 2.0], "quadratic": [[1.0]]}):
        with pytest.raises(StateError):
            Slope.decode(damaged)
    with pytest.raises(StateError):
        ValueFunction(0.1).restore({"models": ["a"]})
    value = ValueFunction(0.1)
    walk(value, 200)
    with pytest.raises(StateError):
        value.restore({**value.state(), "mean": [float("nan"), 0.0]})


def test_price_stays_in_the_trust_region() -> None:
    base = np.array([0.0, 1.0, 3.0])
    for learned in (np.full(3, -50.0), np.full(3, 50.0), base):
        price = 1.0 + trusted(base, learned)
        assert (price <= (1.0 + base) * TRUST + 1e-12).all()
        assert (price >= (1.0 + base) / TRUST - 1e-12).all()
    assert trusted(base, base).tolist() == base.tolist()
