"""Prices, moving work and warm models: what q_learning adds to expected completion."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from owl_celery.errors import StateError
from owl_celery.fleet import Fleet, WaitingTasks
from owl_celery.policies.expected_completion import ExpectedCompletion
from owl_celery.policies.priced_q import PricedQ
from owl_celery.simulate import Action, Conditions, Fault, Scenario, gavel_table
from owl_celery.simulate.engine import Simulation
from owl_celery.types import Outcome, TaskView, TryState

SECONDS = {
    ("scarce", "K80"): 8.0,
    ("scarce", "V100"): 1.0,
    ("anywhere", "K80"): 1.1,
    ("anywhere", "V100"): 1.0,
}
FLEET = {"k80": 4, "p100": 4, "v100": 4}


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


def a_fleet() -> Fleet:
    return Fleet([f"gpu.a.{i}" for i in range(4)], ["V100", "V100", "K80", "K80"])


def taught(policy: ExpectedCompletion, rate: float = 2.5) -> ExpectedCompletion:
    """Let a policy know the service times and a rate of arrivals, up to time 100."""
    fleet = a_fleet()
    for _ in range(40):
        for (task_type, gpu_model), seconds in SECONDS.items():
            policy.learn_one(an_outcome(task_type, gpu_model, seconds), 0.0)
    policy.tick(fleet, 0.0)
    for step in range(200):
        now = 100.0 + (step - 199) / rate
        policy.arrived(TaskView("scarce" if step % 2 else "anywhere"), now)
    policy.tick(fleet, 100.0)
    return policy


def test_what_can_run_anywhere_leaves_the_scarce_model_to_what_cannot() -> None:
    fleet = a_fleet()
    plain, priced = taught(ExpectedCompletion(seed=1)), taught(PricedQ(seed=1))
    for policy, model in ((plain, "V100"), (priced, "K80")):
        policy.exploration_rate = 0.0
        assert policy.choose(TaskView("anywhere"), fleet, 100.0).gpu_model == model
        assert policy.choose(TaskView("scarce"), fleet, 100.0).gpu_model == "V100"


def test_prices_rise_with_the_load() -> None:
    quiet, busy = PricedQ(seed=1), PricedQ(seed=1)
    taught(quiet, rate=0.2)
    taught(busy, rate=2.5)
    assert quiet.prices is not None
    assert busy.prices is not None
    assert 1.0 < quiet.prices.present["V100"] < busy.prices.present["V100"]
    assert quiet.prices.heavy["V100"] == pytest.approx(busy.prices.heavy["V100"], rel=0.1)


def test_a_settled_fleet_is_priced_as_any_other_and_anew_after_some_milliseconds() -> None:
    plain, settled = a_fleet(), a_fleet()
    policies = [taught(PricedQ(seed=1, exploration_rate=0.0)) for _ in range(2)]
    for fleet in (plain, settled):
        fleet.running_seconds[:, 0], fleet.running_since[:, 0] = 2.0, 100.0
    settled.settle()
    task = TaskView("anywhere")
    for fleet, policy in zip((plain, settled), policies, strict=True):
        assert policy.choose(task, fleet, 100.0).gpu_model == "K80"
        fleet.waiting_seconds[2:] += 3.0
        assert policy.choose(task, fleet, 100.001).gpu_model == "V100"
        fleet.waiting_seconds[:2] += 60.0
        fleet.waiting_seconds[2:] += 62.0
        assert policy.choose(task, fleet, 100.1).gpu_model == "K80"


def test_a_type_that_fits_nowhere_makes_no_model_look_scarce() -> None:
    fleet, free = a_fleet(), {"V100": 16.0 * 2**30, "K80": 12.0 * 2**30}
    fleet.free_memory_bytes[:] = [free[fleet.gpu_model(row)] for row in range(len(fleet))]
    plain, policy = PricedQ(seed=1), PricedQ(seed=1)
    for each in (plain, policy):
        taught(each)
        each.tick(fleet, 100.0)
        if each is policy:
            for model, queue in (("V100", "gpu.a.0"), ("V100", "gpu.a.1"), ("K80", "gpu.a.2")):
                failed = {"state": TryState.FAILURE, "out_of_memory": True, "queue": queue}
                each.learn_one(an_outcome("huge", model, 0.1, **failed), 100.0)
        each.arrived(TaskView("huge" if each is policy else "anywhere"), 100.1)
        each.tick(fleet, 101.0)
    assert plain.prices is not None
    assert policy.prices is not None
    for model in free:
        assert policy.prices.present[model] == pytest.approx(plain.prices.present[model], rel=0.1)


def test_without_reinforcement_learning_there_are_no_prices() -> None:
    policy = PricedQ(seed=1, enable_reinforcement_learning=False)
    taught(policy)
    assert policy.prices is None
    assert policy.ready
    decision = policy.choose(TaskView("anywhere"), a_fleet(), 100.0)
    assert decision.gpu_model == "V100"
    assert not decision.explored


def test_a_choosing_object_uses_the_prices_of_its_snapshot() -> None:
    learning, choosing = PricedQ(seed=1, exploration_rate=0.0), PricedQ(exploration_rate=0.0)
    taught(learning)
    assert not choosing.ready
    choosing.apply_snapshot(json.loads(json.dumps(learning.snapshot())))
    assert choosing.ready
    assert choosing.prices == learning.prices
    assert choosing.choose(TaskView("anywhere"), a_fleet(), 100.0).gpu_model == "K80"


def test_a_snapshot_without_prices_is_not_enough() -> None:
    learning, choosing = ExpectedCompletion(seed=1), PricedQ(seed=1)
    taught(learning)
    choosing.apply_snapshot(learning.snapshot())
    assert not choosing.ready


@pytest.mark.parametrize(
    "damage",
    [
        {"service": [[1.0]]},
        {"service": "fast"},
        {"prices": {"present": {"V100": -1.0}, "heavy": {}}},
        {"speeds": {"gpu.a.0": float("nan")}},
        {"failure": [[0, 99, 0.5]]},
        {"types": None},
    ],
)
def test_a_damaged_snapshot_is_refused_and_the_one_before_kept(damage: dict[str, Any]) -> None:
    learning, choosing = PricedQ(seed=1), PricedQ(seed=1)
    taught(learning)
    choosing.apply_snapshot(learning.snapshot())
    with pytest.raises(StateError):
        choosing.apply_snapshot({**learning.snapshot(), **damage})
    assert choosing.prices == learning.prices
    assert choosing.predict_seconds(TaskView("scarce"), "K80") == pytest.approx(8.0, rel=0.1)


def test_snapshot_stays_small() -> None:
    policy, random = PricedQ(seed=1), np.random.default_rng(1)
    fleet = Fleet([f"gpu.a.{i}" for i in range(1_000)], [f"model {i % 5}" for i in range(1_000)])
    for kind in range(500):
        for gpu_model in fleet.models:
            policy.learn_one(an_outcome(f"task {kind}", gpu_model, random.lognormal()), 0.0)
        policy.arrived(TaskView(f"task {kind}"), float(kind))
    policy.tick(fleet, 500.0)
    assert len(json.dumps(policy.snapshot(), separators=(",", ":"))) < 60_000


def waiting_tasks(fleet: Fleet, *tasks: tuple[str, int, float]) -> WaitingTasks:
    """Tasks as (type, row, published at), in the order in which they wait."""
    rows = np.array([row for _, row, _ in tasks])
    views = [TaskView(task_type) for task_type, _, _ in tasks]
    seconds = np.array([SECONDS[t, fleet.gpu_model(row)] for t, row, _ in tasks])
    ahead = [float(seconds[:i][rows[:i] == rows[i]].sum()) for i in range(len(tasks))]
    behind = [int((rows[i + 1 :] == rows[i]).sum()) for i in range(len(tasks))]
    published = np.array([at for _, _, at in tasks])
    return WaitingTasks(views, rows, seconds, np.array(ahead), np.array(behind), published)


@pytest.mark.parametrize("kind", [ExpectedCompletion, PricedQ])
def test_an_idle_queue_takes_the_task_that_gains_most(kind: type[ExpectedCompletion]) -> None:
    policy, fleet = taught(kind(seed=1)), a_fleet()
    waiting = waiting_tasks(
        fleet,
        ("anywhere", 0, 90.0),
        ("anywhere", 0, 95.0),
        ("scarce", 2, 96.0),
        ("scarce", 2, 97.0),
    )
    assert policy.steal(1, waiting, fleet, 100.0) == 3


def test_an_idle_slow_queue_leaves_what_would_take_longer_there() -> None:
    policy, fleet = taught(PricedQ(seed=1)), a_fleet()
    assert policy.steal(2, waiting_tasks(fleet, ("scarce", 0, 90.0)), fleet, 100.0) is None
    nothing = waiting_tasks(fleet, ("scarce", 0, 90.0), ("scarce", 0, 91.0))
    assert policy.steal(2, nothing, fleet, 100.0) is None


def test_nothing_moves_to_a_closed_queue_or_a_tried_model() -> None:
    policy, fleet = taught(PricedQ(seed=1)), a_fleet()
    waiting = waiting_tasks(fleet, *[("anywhere", 0, 90.0)] * 3)
    assert policy.steal(2, waiting, fleet, 100.0) is not None
    fleet.is_open[2] = False
    assert policy.steal(2, waiting, fleet, 100.0) is None
    fleet.is_open[2] = True
    tried = [TaskView("anywhere", tried=frozenset({"K80"}))] * 3
    columns = (
        waiting.rows,
        waiting.service_seconds,
        waiting.ahead_seconds,
        waiting.behind_count,
        waiting.published_at,
    )
    assert policy.steal(2, WaitingTasks(tried, *columns), fleet, 100.0) is None


def test_among_identical_queues_the_oldest_task_moves() -> None:
    policy = taught(PricedQ(seed=1))
    fleet = Fleet(["gpu.a.0", "gpu.a.1", "gpu.a.2"], ["V100"] * 3)
    waiting = waiting_tasks(
        fleet, *[("anywhere", 0, 90.0 + i) for i in range(3)], *[("scarce", 1, 80.0)] * 2
    )
    taken = policy.steal(2, waiting, fleet, 100.0)
    assert taken is not None
    gaining = [i for i in range(5) if waiting.ahead_seconds[i] > 0.2]
    assert waiting.published_at[taken] == min(waiting.published_at[gaining])


def with_models(policy: ExpectedCompletion, load_seconds: float = 5.0) -> ExpectedCompletion:
    """Let a policy see two models on two queues, loaded in turn."""
    for step in range(60):
        for queue, first in (("gpu.a.0", 0), ("gpu.a.1", 1)):
            model = ("bert", "llama")[(first + step // 3) % 2]
            was_cold = step % 3 == 0
            policy.learn_one(
                an_outcome(
                    f"infer {model}",
                    "V100",
                    1.0 + load_seconds * was_cold,
                    queue=queue,
                    model=model,
                ),
                float(step),
            )
    return policy


def test_load_time_is_told_from_service_time() -> None:
    policy = with_models(ExpectedCompletion(seed=1))
    assert policy.learner.warm.load_seconds("bert") == pytest.approx(5.0, rel=0.2)
    assert policy.predict_seconds(TaskView("infer bert"), "V100") == pytest.approx(1.0, rel=0.1)


def test_a_task_goes_where_its_model_is_unless_the_wait_is_longer_than_loading() -> None:
    policy = with_models(ExpectedCompletion(exploration_rate=0.0, seed=1))
    fleet = Fleet(["gpu.a.0", "gpu.a.1"], ["V100", "V100"])
    home = policy.learner.warm.loaded()
    task = TaskView("infer bert", model="bert")
    decision = policy.choose(task, fleet, 100.0)
    assert home[decision.queue] == "bert"
    assert decision.service_seconds == pytest.approx(1.0, rel=0.1)
    row = fleet.names.index(decision.queue)
    fleet.waiting_count[row], fleet.waiting_seconds[row] = 10, 10.0
    moved = policy.choose(task, fleet, 100.0)
    assert home[moved.queue] == "llama"
    assert moved.service_seconds == pytest.approx(6.0, rel=0.2)
    fleet.waiting_seconds[row] = 0.0
    assert policy.choose(task, fleet, 100.0).service_seconds == pytest.approx(1.0, rel=0.1)


def test_a_choosing_object_knows_where_models_are() -> None:
    learning = with_models(ExpectedCompletion(exploration_rate=0.0, seed=1))
    choosing = ExpectedCompletion(exploration_rate=0.0, seed=1)
    choosing.apply_snapshot(json.loads(json.dumps(learning.snapshot())))
    fleet = Fleet(["gpu.a.0", "gpu.a.1"], ["V100", "V100"])
    for model in ("bert", "llama"):
        queue = choosing.choose(TaskView(f"infer {model}", model=model), fleet, 100.0).queue
        assert learning.learner.warm.loaded()[queue] == model


def test_prices_beat_learned_expected_completion_by_a_margin() -> None:
    scenario = Scenario(gavel_table(), FLEET, 0.9, tasks=10_000, warmup=4_000)
    priced, plain = (scenario.run(p, seed=0)[0] for p in ("q_learning", "expected_completion"))
    assert priced.mean < 0.85 * plain.mean


def test_exploration_fades_and_returns_after_drift() -> None:
    scenario = Scenario(gavel_table(), FLEET, 0.7, tasks=9_000, warmup=0)
    instance, tasks, _ = scenario.world(2)
    middle = float(tasks.times[6_000])
    faults = tuple(
        Fault(middle, Action.THROTTLE, f"gpu.host.{row}", value=0.25) for row in range(8, 10)
    )
    explored: list[bool] = []

    class Watched(PricedQ):
        def choose(self, task: TaskView, fleet: Fleet, now: float) -> Any:
            decision = super().choose(task, fleet, now)
            explored.append(decision.explored)
            return decision

    Simulation(instance, tasks, Watched(seed=0), Conditions(faults=faults)).run()
    share = [float(np.mean(part)) for part in np.array_split(explored, 9)]
    assert share[0] > 2.0 * share[5]
    assert share[6] > 1.25 * share[5]
