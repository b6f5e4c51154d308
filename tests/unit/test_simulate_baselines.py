"""Every baseline on a small instance, and the order they are known to come in."""

from __future__ import annotations

import sys
from functools import cache

import numpy as np
import pytest

from owl_celery.errors import InputError
from owl_celery.fleet import Fleet
from owl_celery.policies.base import Policy
from owl_celery.simulate.baselines import BASELINES, contender_names, make_contender
from owl_celery.simulate.baselines.policy_improvement_oracle import best_split
from owl_celery.simulate.baselines.priced_oracle import plan_prices
from owl_celery.simulate.conditions import Conditions, Run
from owl_celery.simulate.instance import Instance
from owl_celery.simulate.study import Scenario
from owl_celery.simulate.table import ServiceTable, gavel_table
from owl_celery.types import TaskView

FLEET = {"k80": 2, "p100": 2, "v100": 2}


@cache
def mean(policy: str, load: float, tasks: int = 6000) -> float:
    scenario = Scenario(gavel_table(), FLEET, load=load, tasks=tasks, warmup=2000)
    return scenario.run(policy, seed=0)[0].mean


@pytest.mark.parametrize("policy", contender_names())
def test_every_contender_serves_every_task_and_repeats_itself(policy: str) -> None:
    scenario = Scenario(gavel_table(), FLEET, load=0.5, tasks=1200, warmup=200)
    first, again = (scenario.run(policy, seed=1)[1] for _ in range(2))
    assert np.isfinite(first.response).all()
    assert (first.response > 0.0).all()
    assert (first.tries == 1).all()
    np.testing.assert_array_equal(first.response, again.response)


@pytest.mark.parametrize("policy", [name for name in contender_names() if name != "shared_fifo"])
def test_every_contender_gets_by_where_some_types_do_not_fit(policy: str) -> None:
    table = gavel_table()
    seconds = table.seconds.copy()
    seconds[::4, 0] = np.nan
    holed = ServiceTable(table.types, table.models, seconds)
    scenario = Scenario(holed, FLEET, load=0.5, tasks=800, warmup=100)
    run: Run = scenario.run(policy, seed=2)[1]
    assert run.lost == 0
    assert np.isfinite(run.response).all()
    if policy.endswith("_oracle"):
        assert (run.tries == 1).all()


@pytest.mark.parametrize("policy", sorted(BASELINES))
def test_no_baseline_sends_a_task_to_a_closed_queue(policy: str) -> None:
    instance = Instance.draw(gavel_table(), FLEET, seed=0)
    contender = make_contender(policy, instance, rate=1.0, seed=0)
    fleet: Fleet = instance.fleet()
    fleet.is_open[:] = False
    fleet.is_open[3] = True
    task = TaskView(instance.table.types[0])
    if isinstance(contender, Policy):
        for _ in range(20):
            assert contender.choose(task, fleet, 0.0).queue == fleet.names[3]
    else:
        contender.hold(7, task)
        assert contender.release([3], fleet, 0.0) == (7, 3)
        assert contender.release([3], fleet, 0.0) is None


def test_knowing_the_rates_takes_a_third_off_the_shared_queue() -> None:
    assert mean("jsed_oracle", 0.6) < 0.67 * mean("shared_fifo", 0.6)


def test_prices_beat_completion_time_when_work_is_scarce() -> None:
    assert mean("priced_oracle", 0.85) < 0.85 * mean("jsed_oracle", 0.85)
    assert mean("policy_improvement_oracle", 0.85) < 0.95 * mean("jsed_oracle", 0.85)
    assert mean("late_binding_oracle", 0.85) < 1.02 * mean("priced_oracle", 0.85)


def test_blind_pandas_comes_near_to_pandas_once_it_has_learned() -> None:
    assert mean("blind_pandas", 0.7, 20_000) < 1.15 * mean("pandas_oracle", 0.7, 20_000)


def test_naive_q_learning_is_no_rival() -> None:
    assert mean("naive_q", 0.5) > 5.0 * mean("blind_pandas", 0.5)


def test_a_contextual_bandit_learns_but_does_not_see_what_a_choice_costs_others() -> None:
    assert mean("priced_oracle", 0.85) < 0.8 * mean("vowpal", 0.85)
    assert mean("vowpal", 0.7) < mean("shared_fifo", 0.7)


def test_without_its_package_vowpal_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vowpalwabbit", None)
    instance = Instance.draw(gavel_table(), FLEET, seed=0)
    with pytest.raises(InputError, match=r"owl-celery\[vowpal\]"):
        make_contender("vowpal", instance, 1.0, 0)


def test_counting_tasks_is_better_than_not_looking() -> None:
    assert mean("shortest_queue", 0.5) < mean("power_of_two", 0.5) < mean("random", 0.5)
    assert mean("lp_split", 0.7) < mean("shortest_queue", 0.7)


def test_late_binding_lets_a_task_wait_for_the_gpu_that_suits_it() -> None:
    table = ServiceTable.parse("t,slow,fast\nx,10,1\n", "seconds")
    instance = Instance.as_measured(table, {"slow": 1, "fast": 1})
    contender = make_contender("late_binding_oracle", instance, rate=0.1, seed=0)
    assert not isinstance(contender, Policy)
    fleet = instance.fleet()
    row = fleet.models.index("fast")
    fleet.running_seconds[row, 0] = 1.0
    contender.hold(0, TaskView("x"))
    assert contender.release([1 - row], fleet, 0.5) is None
    fleet.running_seconds[row, 0] = 0.0
    assert contender.release([1 - row, row], fleet, 1.0) == (0, row)


def test_prices_of_equal_gpu_models_are_equal_and_of_scarce_ones_higher() -> None:
    equal = ServiceTable.parse("t,a,b\nx,1,1\ny,2,2\n", "seconds")
    prices = plan_prices(Instance.as_measured(equal, {"a": 3, "b": 3}), rate=2.0)
    np.testing.assert_allclose(prices, 1.0, atol=0.02)
    scarce = ServiceTable.parse("t,a,b\nx,1,3\ny,1,4\n", "seconds")
    prices = plan_prices(Instance.as_measured(scarce, {"a": 3, "b": 3}), rate=3.0)
    assert prices[0] > 2.0 * prices[1]


def test_the_best_split_keeps_every_gpu_below_its_limit_and_leaves_the_slow_ones_slack() -> None:
    instance = Instance.draw(gavel_table(), {"k80": 4, "p100": 4, "v100": 4}, seed=0)
    rate = 0.85 * instance.capacity.rate
    split = best_split(instance, rate)
    np.testing.assert_allclose(split.sum(axis=1), 1.0)
    load = (rate * instance.mix[:, None] * instance.table.seconds * split).sum(axis=0) / 4
    assert load.max() < 0.95
    assert load[0] == load.min()


def test_an_unknown_policy_and_a_bad_setting_are_input_errors() -> None:
    instance = Instance.draw(gavel_table(), FLEET, seed=0)
    with pytest.raises(InputError, match=r"No policy 'magic'; known are: .*shared_fifo"):
        make_contender("magic", instance, 1.0, 0)
    with pytest.raises(InputError, match="EXPLORATION_RATE"):
        make_contender("expected_completion", instance, 1.0, 0, exploration_rate="much")


def test_the_shared_queue_gives_up_a_task_that_no_worker_can_run() -> None:
    table = ServiceTable.parse("t,a,b\nx,1,\n", "seconds")
    scenario = Scenario(
        table, {"b": 3, "a": 1}, load=0.1, tasks=300, warmup=0, conditions=Conditions(max_tries=2)
    )
    assert scenario.run("shared_fifo", 0)[1].lost > 0
