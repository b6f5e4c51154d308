"""The event loop, checked against hand calculation and queueing theory."""

from __future__ import annotations

import time
from typing import ClassVar

import numpy as np
import pytest

from owl_celery.errors import NoOpenQueueError
from owl_celery.fleet import Fleet, WaitingTasks
from owl_celery.policies.base import Policy
from owl_celery.simulate.arrivals import Arrivals, poisson
from owl_celery.simulate.baselines import make_contender
from owl_celery.simulate.baselines.jsed_oracle import JsedOracle
from owl_celery.simulate.baselines.shared_fifo import SharedFifo
from owl_celery.simulate.conditions import Conditions, Run
from owl_celery.simulate.engine import Simulation
from owl_celery.simulate.faults import Action, Fault
from owl_celery.simulate.instance import Instance
from owl_celery.simulate.table import ServiceTable, gavel_table
from owl_celery.types import Decision, Outcome, TaskView, TryState


def instance(text: str = "t,a,b\nx,2,3\n", **gpus: int) -> Instance:
    table = ServiceTable.parse(text, "seconds")
    return Instance.as_measured(table, gpus or {model: 1 for model in table.models})


def tasks(
    *times: float, sizes: list[float] | None = None, models: list[str] | None = None
) -> Arrivals:
    count = len(times)
    return Arrivals(
        np.array(times, dtype=float),
        np.zeros(count, dtype=np.int64),
        np.array(sizes or [1.0] * count),
        models,
    )


class Scripted(Policy):
    """Sends the n-th decision to the n-th row of a script; writes down all it is told."""

    name: ClassVar[str] = "scripted"

    def __init__(self, rows: list[int], steals: bool = False) -> None:
        self.rows = rows
        self.steals = steals
        self.outcomes: list[Outcome] = []
        self.seen: list[list[float]] = []
        self.tried: list[frozenset[str]] = []
        self.waiting: list[WaitingTasks] = []
        self.ticks: list[float] = []

    def choose(self, task: TaskView, fleet: Fleet, now: float) -> Decision:
        self.seen.append(fleet.wait_seconds(now).tolist())
        self.tried.append(task.tried)
        row = self.rows.pop(0)
        if not fleet.is_open[row]:
            raise NoOpenQueueError
        model = fleet.gpu_model(row)
        seconds = self.predict_seconds(task, model)
        return Decision(fleet.names[row], model, self.name, service_seconds=seconds)

    def predict_seconds(self, task: TaskView, gpu_model: str) -> float | None:
        return 2.0 if gpu_model == "a" else 3.0

    def learn_one(self, outcome: Outcome, now: float) -> None:
        self.outcomes.append(outcome)

    def tick(self, fleet: Fleet, now: float) -> None:
        self.ticks.append(now)

    def steal(self, row: int, waiting: WaitingTasks, fleet: Fleet, now: float) -> int | None:
        self.waiting.append(waiting)
        return 0 if self.steals else None


def run(policy: Policy, world: Instance, arrivals: Arrivals, **conditions: object) -> Run:
    return Simulation(world, arrivals, policy, Conditions(**conditions)).run()  # type: ignore[arg-type]


def test_a_queue_serves_in_order_of_arrival_and_tells_the_policy_what_happened() -> None:
    policy = Scripted([0, 0, 1, 0])
    result = run(policy, instance(), tasks(0, 1, 1, 5, sizes=[1, 1.5, 1, 1]))
    assert result.response.tolist() == [2.0, 4.0, 3.0, 2.0]
    assert result.queues.tolist() == [0, 0, 1, 0]
    assert [round(wait, 6) for wait, _ in policy.seen] == [0.0, 1.0, 3.0, 0.9]
    second = policy.outcomes[2]
    assert (second.queue, second.gpu_model, second.state) == ("gpu.host.0", "a", TryState.SUCCESS)
    assert (second.wait_seconds, second.service_seconds) == (1.0, 3.0)
    assert (second.predicted_seconds, second.size) == (2.0, 1.0)


def test_sizes_are_told_only_when_they_are_a_feature() -> None:
    policy = Scripted([0])
    run(policy, instance(), tasks(0, sizes=[2.5]), size_feature=True)
    assert (policy.outcomes[0].size, policy.outcomes[0].service_seconds) == (2.5, 5.0)


def test_a_type_that_does_not_fit_wastes_time_and_never_returns_to_the_model() -> None:
    policy = Scripted([0, 1])
    world = instance("t,a,b\nx,,3\n")
    result = run(policy, world, tasks(0), failure_seconds=0.5)
    assert result.response.tolist() == [3.5]
    assert result.tries.tolist() == [2]
    assert policy.tried == [frozenset(), frozenset({"a"})]
    first, last = policy.outcomes
    assert (first.state, first.out_of_memory, first.attempt) == (TryState.RETRY, True, 0)
    assert (last.state, last.out_of_memory, last.attempt) == (TryState.SUCCESS, False, 1)
    assert first.key != last.key


def test_a_task_is_given_up_after_its_tries() -> None:
    policy = Scripted([0, 0, 0])
    result = run(policy, instance("t,a,b\nx,,3\n"), tasks(0), max_tries=3, failure_seconds=1.0)
    assert (result.lost, result.response.tolist()) == (1, [3.0])


def test_failures_begin_and_end_by_the_event_file() -> None:
    faults = (Fault(1.0, Action.FAIL, "a", "x", 1.0), Fault(5.0, Action.FAIL, "a", "", 0.0))
    policy = Scripted([0, 0, 1, 0])
    result = run(policy, instance(), tasks(0, 3, 6), faults=faults)
    assert result.tries.tolist() == [1, 2, 1]
    assert policy.tried[2] == frozenset()
    assert [o.out_of_memory for o in policy.outcomes] == [False] * 4


def test_one_gpu_may_fail_while_the_others_of_its_model_do_not() -> None:
    faults = (Fault(0.0, Action.FAIL, "gpu.host.0", value=1.0),)
    policy = Scripted([0, 1])
    result = run(policy, instance(a=2), tasks(1), faults=faults, failure_seconds=0.5)
    assert result.response.tolist() == [2.5]
    assert [outcome.error for outcome in policy.outcomes] == ["RuntimeError", None]
    assert [outcome.wait_seconds for outcome in policy.outcomes] == [0.0, 0.0]


def test_a_throttled_gpu_works_slower_from_that_moment() -> None:
    faults = (
        Fault(1.0, Action.THROTTLE, "gpu.host.0", value=0.25),
        Fault(3.0, Action.THROTTLE, "gpu.host.0", value=1.0),
    )
    result = run(Scripted([0, 0]), instance(), tasks(0, 2), faults=faults)
    # One second of work is left at 1 s; 2 s at a quarter do 0.5 s of it, then 0.5 s remain.
    assert result.response.tolist() == [3.5, 3.5]


def test_a_stopped_gpu_gives_back_what_it_holds_and_gets_nothing_until_it_returns() -> None:
    faults = (Fault(1.0, Action.STOP, "gpu.host.0"), Fault(9.0, Action.RETURN, "gpu.host.0"))
    policy = Scripted([0, 0, 1, 1, 0, 0])
    result = run(policy, instance(), tasks(0, 0.5, 2), faults=faults)
    # The running one starts anew at 1 s, the waiting one follows, the third is parked till 9 s.
    assert result.response.tolist() == [4.0, 6.5, 9.0]
    assert policy.outcomes[0].state is TryState.LOST
    assert result.tries.tolist() == [2, 1, 1]


def test_tasks_that_never_can_run_end_the_run() -> None:
    faults = (Fault(0.0, Action.STOP, "gpu.host.0"),)
    result = run(Scripted([0]), instance(), tasks(1), faults=faults)
    assert np.isnan(result.response).all()


def test_loading_another_model_takes_time() -> None:
    arrivals = tasks(0, 10, 20, models=["p", "q", "q"])
    result = run(Scripted([0, 0, 0]), instance(), arrivals, switch_seconds=4.0)
    assert result.response.tolist() == [6.0, 6.0, 2.0]


def test_an_idle_queue_takes_the_task_that_the_policy_names() -> None:
    policy = Scripted([0, 0, 0], steals=True)
    result = run(policy, instance(), tasks(0, 0, 0.2), steal_seconds=0.5)
    # The second is taken at 0.5 s; the third runs where it is, from 2 s on.
    assert result.response.tolist() == pytest.approx([2.0, 3.5, 3.8])
    assert (result.stolen, result.queues.tolist()) == (1, [0, 1, 0])
    offered = policy.waiting[0]
    assert offered.rows.tolist() == [0, 0]
    assert offered.ahead_seconds.tolist() == [1.5, 3.5]
    assert offered.behind_count.tolist() == [1, 0]
    assert offered.published_at.tolist() == [0.0, 0.2]
    assert offered.service_seconds.tolist() == [2.0, 2.0]


def test_a_policy_that_declines_moves_nothing() -> None:
    result = run(Scripted([0, 0, 0]), instance(), tasks(0, 0, 0), steal_seconds=0.5)
    assert (result.stolen, result.queues.tolist()) == (0, [0, 0, 0])


def test_an_old_view_lacks_what_other_routers_did_but_not_what_this_one_did() -> None:
    policy = Scripted([0, 0, 0, 0, 0])
    run(policy, instance(), tasks(0, 0.1, 0.2, 0.3, 5.15), routers=2, view_age=1.0)
    waits = [round(seen[0], 6) for seen in policy.seen]
    # Routers take turns: 0.2 s sees the task of 0 s only, 0.3 s the one of 0.1 s only.
    assert waits[:4] == [0.0, 0.0, 1.8, 1.8]
    # At 5.15 s the view of 4.1 s shows what runs since 4 s, and one task that waits.
    assert waits[4] == pytest.approx(2.85)


def test_a_router_with_an_old_view_finds_another_queue_for_a_dead_one() -> None:
    faults = (Fault(1.0, Action.STOP, "gpu.host.0"),)
    result = run(Scripted([0, 1]), instance(), tasks(1.1), view_age=0.5, faults=faults)
    assert result.queues.tolist() == [1]
    assert result.response.tolist() == pytest.approx([3.5])


def test_the_policy_is_ticked_regularly() -> None:
    policy = Scripted([0, 0])
    run(policy, instance(), tasks(0, 2.5), policy_tick_seconds=1.0)
    assert policy.ticks == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_progress_adds_up_to_the_number_of_tasks() -> None:
    world = instance()
    arrivals = poisson(0.3, np.ones(1), 2500, 0.3, seed=1)
    told: list[int] = []
    Simulation(world, arrivals, JsedOracle(world, 0.3)).run(told.append)
    assert sum(told) == 2500
    assert len(told) == 3


@pytest.mark.parametrize("size_cv", [0.0, 0.3, 1.0])
def test_one_gpu_waits_as_long_as_pollaczek_and_khinchine_say(size_cv: float) -> None:
    world = instance("t,a\nx,1\n")
    arrivals = poisson(0.7, np.ones(1), 200_000, size_cv, seed=5)
    result = Simulation(world, arrivals, SharedFifo(world, 0.7)).run()
    expected = 1.0 + 0.7 * (1.0 + size_cv**2) / (2.0 * 0.3)
    assert result.response.mean() == pytest.approx(expected, rel=0.04)


def test_a_shared_queue_of_exponential_sizes_waits_as_long_as_erlang_says() -> None:
    world = instance("t,a\nx,1\n", a=4)
    rng = np.random.default_rng(3)
    count = 200_000
    arrivals = Arrivals(
        np.cumsum(rng.exponential(1.0 / 3.2, count)),
        np.zeros(count, dtype=np.int64),
        rng.exponential(1.0, count),
    )
    result = Simulation(world, arrivals, SharedFifo(world, 3.2)).run()
    # Erlang C of 4 servers at load 0.8 is 0.5964; the wait is that over 4 - 3.2.
    assert result.response.mean() == pytest.approx(1.0 + 0.5964 / 0.8, rel=0.04)


def test_the_same_seed_gives_the_same_run() -> None:
    world = instance("t,a,b\nx,2,3\ny,3,1\n", a=2, b=2)
    arrivals = poisson(1.0, world.mix, 2000, 0.3, seed=1)
    runs = [Simulation(world, arrivals, JsedOracle(world, 1.0, 7)).run() for _ in range(2)]
    np.testing.assert_array_equal(runs[0].response, runs[1].response)


def test_twenty_thousand_tasks_a_second_are_simulated_for_a_cheap_policy() -> None:
    world = Instance.draw(gavel_table(), {"k80": 4, "p100": 4, "v100": 4}, seed=0)
    rate = 0.7 * world.capacity.rate
    arrivals = poisson(rate, world.mix, 5000, 0.3, seed=0)
    speeds = []
    for _ in range(3):
        policy = make_contender("shortest_queue", world, rate, seed=0)
        simulation = Simulation(world, arrivals, policy)
        began = time.thread_time()
        simulation.run()
        speeds.append(5000 / (time.thread_time() - began))
    # Half of what an idle machine must do: this one may be busy with other tests.
    assert max(speeds) > 10_000
