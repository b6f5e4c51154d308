"""Arrival rates, and the prices of the static plan."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from owl_celery.errors import StateError
from owl_celery.policies.arrivals import MAX_TYPES, ArrivalRates
from owl_celery.policies.plan import Planner, Prices, balance
from owl_celery.simulate import lp_capacity

ONE_EACH = np.array([[1.0, 2.0], [2.0, 1.0]])


def poisson_rates(rate: float, count: int = 500, seed: int = 1) -> ArrivalRates:
    rates, now = ArrivalRates(), 0.0
    for gap in np.random.default_rng(seed).exponential(1.0 / rate, count):
        now += gap
        rates.add("train", now)
    return rates


def test_rate_is_found() -> None:
    assert poisson_rates(8.0).rate == pytest.approx(8.0, rel=0.4)


def test_rate_follows_a_burst_within_its_memory() -> None:
    rates = poisson_rates(1.0)
    for step in range(250):
        rates.add("train", 1e4 + step * 0.1)
    assert rates.rate == pytest.approx(10.0, rel=0.35)


@pytest.mark.parametrize("group", [1, 3, 30, 300])
def test_arrivals_that_share_a_time_count_as_spread_over_the_gap(group: int) -> None:
    rates = ArrivalRates()
    for step in range(40):
        for _ in range(group):
            rates.add("train", float(step))
    assert rates.rate == pytest.approx(group, rel=0.01)


def test_no_rate_from_a_single_moment() -> None:
    rates = ArrivalRates()
    for _ in range(10):
        rates.add("train", 5.0)
    assert rates.rate == 0.0


def test_mix_is_found_and_forgotten() -> None:
    rates = ArrivalRates()
    for step in range(8_000):
        rates.add("a" if step % 4 else "b", float(step))
    names, shares = rates.mix(10)
    assert dict(zip(names, shares.round(2).tolist(), strict=True)) == {"a": 0.75, "b": 0.25}
    for step in range(20_000):
        rates.add("c", 1e5 + step)
    assert rates.mix(1)[0] == ["c"]


def test_mix_survives_a_very_long_run_and_very_many_types() -> None:
    rates = ArrivalRates()
    rates._next_weight = 1e99
    for step in range(3 * MAX_TYPES):
        rates.add(f"type {step}", float(step))
        rates.add("usual", float(step))
    names, shares = rates.mix(10**6)
    assert len(names) <= MAX_TYPES
    assert np.isfinite(shares).all()
    assert shares[names.index("usual")] == pytest.approx(0.5, abs=0.05)


def test_symmetric_models_cost_the_same() -> None:
    load, price = balance(np.array([0.3, 0.3]), ONE_EACH, np.ones(2), np.full(2, 0.5))
    assert load == pytest.approx([0.3, 0.3], abs=0.01)
    assert price[0] == pytest.approx(price[1], rel=0.02)


def test_price_rises_with_the_load() -> None:
    prices = [
        balance(np.array([rate, 0.1]), ONE_EACH, np.ones(2), np.full(2, 0.5))[1]
        for rate in (0.1, 0.5, 0.9, 1.2)
    ]
    for before, after in itertools.pairwise(prices):
        assert after[0] > before[0]


@pytest.mark.parametrize("seed", range(5))
def test_heavy_prices_are_those_of_the_linear_program(seed: int) -> None:
    random = np.random.default_rng(seed)
    seconds = random.lognormal(0.0, 0.7, (20, 3))
    shares = random.dirichlet(np.full(20, 5.0))
    gpus = np.array([4.0, 6.0, 10.0])
    planner = Planner()
    planner.rates = poisson_rates(1.0)
    prices = planner.prices(seconds, shares, ["a", "b", "c"], gpus)
    duals = lp_capacity(seconds, shares, gpus).prices
    assert np.array([*prices.heavy.values()]) == pytest.approx(duals / duals.min(), rel=0.15)


@given(
    seconds=arrays(np.float64, (5, 3), elements=st.floats(1e-6, 1e9)),
    shares=arrays(np.float64, 5, elements=st.floats(1e-6, 1.0)),
    gpus=arrays(np.float64, 3, elements=st.floats(0.01, 1e4)),
    rate=st.floats(1e-9, 1e9),
)
def test_any_table_has_finite_prices(
    seconds: np.ndarray, shares: np.ndarray, gpus: np.ndarray, rate: float
) -> None:
    planner = Planner()
    planner.rates = ArrivalRates()
    for step in range(3):
        planner.rates.add("train", step / rate)
    prices = planner.prices(seconds, shares / shares.sum(), ["a", "b", "c"], gpus)
    for values in (prices.present, prices.heavy):
        assert all(np.isfinite(price) and price >= 1.0 for price in values.values())


@pytest.mark.parametrize(
    "damaged",
    [
        {},
        {"present": {"a": 1.0}},
        {"present": {"a": -1.0}, "heavy": {"a": 1.0}},
        {"present": {"a": float("nan")}, "heavy": {"a": 1.0}},
        {"present": [1.0], "heavy": [1.0]},
    ],
)
def test_damaged_prices_are_refused(damaged: dict[str, object]) -> None:
    with pytest.raises(StateError):
        Prices.decode(damaged)
