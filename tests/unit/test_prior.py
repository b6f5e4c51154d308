"""What one site has learned, taken to another."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from owl_celery.fleet import Fleet
from owl_celery.policies.expected_completion import ExpectedCompletion
from owl_celery.policies.priced_q import PricedQ
from owl_celery.policies.shortest_queue import ShortestQueue
from owl_celery.prior import PRIOR_SAMPLES, LoadPrior, PairPrior, Prior
from owl_celery.simulate import gavel_table
from owl_celery.types import Outcome, TaskView, TryState

KINDS = [ExpectedCompletion, PricedQ]


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


def trained(policy: ExpectedCompletion, tries: int = 100) -> ExpectedCompletion:
    """A policy that has seen every pair of the Gavel table often, with noise."""
    random, table = np.random.default_rng(3), gavel_table()
    for row, task_type in enumerate(table.types):
        for column, gpu_model in enumerate(table.models):
            seconds = table.seconds[row, column]
            for _ in range(tries if np.isfinite(seconds) else 0):
                noisy = float(seconds * random.lognormal(0.0, 0.2))
                policy.learn_one(an_outcome(task_type, gpu_model, noisy), 0.0)
    return policy


def seconds_on(policy: ExpectedCompletion, task_type: str, gpu_model: str) -> float:
    return policy.learner.beliefs.predict_seconds(TaskView(task_type), gpu_model)


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_site_predicts_what_the_trained_one_does(kind: type[ExpectedCompletion]) -> None:
    old, new = trained(kind(seed=1)), kind(seed=2)
    prior = old.export_prior()
    taken = new.import_prior(prior)
    assert taken.service_times == taken.failure_rates == len(prior.pairs)
    assert taken.left == 0
    for pair in prior.pairs:
        there = seconds_on(old, pair.task_type, pair.gpu_model)
        assert seconds_on(new, pair.task_type, pair.gpu_model) == pytest.approx(there, rel=0.1)


def test_no_number_from_elsewhere_weighs_more_than_a_few_own_samples() -> None:
    policy = ExpectedCompletion(seed=1)
    policy.import_prior(Prior((PairPrior("train", "V100", seconds=1.0, successes=500, tries=200),)))
    for _ in range(30):
        policy.learn_one(an_outcome("train", "V100", 5.0), 0.0)
    assert seconds_on(policy, "train", "V100") == pytest.approx(4.0, rel=0.05)
    assert policy.learner.cells["count"][1, 1] == PRIOR_SAMPLES + 30


def test_own_samples_are_kept_and_a_second_import_changes_nothing() -> None:
    policy = ExpectedCompletion(seed=1)
    for _ in range(3):
        policy.learn_one(an_outcome("train", "V100", 5.0, peak_memory_bytes=100), 0.0)
    prior = Prior(
        (
            PairPrior("train", "V100", 1.0, 50, tries=50, needed_memory_bytes=7),
            PairPrior("train", "K80", 8.0, 50, tries=50, needed_memory_bytes=7),
        ),
        (LoadPrior("llama", 12.0, 4),),
    )
    taken = policy.import_prior(prior)
    assert (taken.service_times, taken.failure_rates, taken.memory_needs) == (1, 1, 1)
    assert (taken.load_times, taken.left) == (1, 3)
    assert seconds_on(policy, "train", "V100") == pytest.approx(5.0, rel=0.15)
    before = json.dumps(policy.state())
    again = policy.import_prior(prior)
    assert (again.service_times, again.load_times, again.left) == (0, 0, 7)
    assert json.loads(before)["learner"]["cells"] == policy.state()["learner"]["cells"]


def test_closed_pairs_and_memory_needs_are_taken_along() -> None:
    old = ExpectedCompletion(seed=1, exploration_rate=0.0)
    for _ in range(50):
        old.learn_one(an_outcome("train", "V100", 1.0, peak_memory_bytes=20 * 2**30), 0.0)
        old.learn_one(an_outcome("render", "V100", 1.0), 0.0)
        old.learn_one(
            an_outcome("render", "K80", 0.1, state=TryState.FAILURE, out_of_memory=True), 0.0
        )
    new = ExpectedCompletion(seed=2, exploration_rate=0.0)
    new.import_prior(old.export_prior())
    fleet = Fleet(["gpu.b.0", "gpu.b.1", "gpu.b.2"], ["V100", "V100", "K80"])
    fleet.free_memory_bytes[0] = 16 * 2**30
    fleet.waiting_seconds[1], fleet.waiting_count[1] = 100.0, 1
    assert new.choose(TaskView("render"), fleet, 0.0).queue == "gpu.b.0"
    assert new.choose(TaskView("train"), fleet, 0.0).queue != "gpu.b.0"
    fleet.is_open[0] = False
    assert new.choose(TaskView("render"), fleet, 0.0).queue == "gpu.b.1"


def test_the_size_of_tasks_is_taken_along() -> None:
    old, new = ExpectedCompletion(seed=1), ExpectedCompletion(seed=2)
    for _ in range(20):
        old.learn_one(an_outcome("resize", "V100", 2.0, size=4e6), 0.0)
    new.import_prior(old.export_prior())
    table = new.q_values(Fleet(["gpu.b.0"], ["V100"]), 0.0, 10)
    assert table is not None
    assert table.idle_seconds[0, 0] == pytest.approx(2.0, rel=0.05)


def test_load_times_of_models_are_taken_along() -> None:
    old, new = ExpectedCompletion(seed=1), ExpectedCompletion(seed=2)
    for number in range(60):
        model = "llama" if number % 3 == 0 else "bert"
        seconds = 21.0 if number % 3 != 2 else 1.0
        old.learn_one(an_outcome("answer", "V100", seconds, model=model), 0.0)
    (known,) = {load.seconds for load in old.export_prior().loads if load.model == "llama"}
    assert known == pytest.approx(20.0, rel=0.1)
    new.import_prior(old.export_prior())
    assert new.learner.warm.load_seconds("llama") == pytest.approx(20.0, rel=0.15)
    assert new.learner.warm.loaded() == {}


def test_a_policy_that_learns_no_service_times_takes_and_gives_nothing() -> None:
    policy = ShortestQueue(seed=1)
    assert policy.export_prior() is None
    assert policy.import_prior(Prior()) is None
