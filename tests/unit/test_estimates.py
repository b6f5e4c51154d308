"""What the learned policies come to believe, and how soon."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from owl_celery.fleet import Fleet
from owl_celery.policies.base import Policy
from owl_celery.policies.cells import MAX_MODELS, Cells
from owl_celery.policies.expected_completion import ExpectedCompletion
from owl_celery.policies.priced_q import PricedQ
from owl_celery.policies.random import Random
from owl_celery.types import Outcome, TaskView, TryState

SPEEDS = {"K80": 0.2, "P100": 0.6, "V100": 1.0}
WORK = {"resnet": 1.0, "lstm": 0.5, "transformer": 3.0}


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


def seconds_on(policy: Policy, task_type: str, gpu_model: str, size: float = 1.0) -> float:
    seconds = policy.predict_seconds(TaskView(task_type, size=size), gpu_model)
    assert seconds is not None
    return seconds


def taught(noise: float = 0.3, rounds: int = 60, **arguments: Any) -> ExpectedCompletion:
    """A policy that has seen each known type on each model ``rounds`` times."""
    policy, random = ExpectedCompletion(seed=1, **arguments), np.random.default_rng(5)
    now = 0.0
    for _ in range(rounds):
        for task_type, work in WORK.items():
            for gpu_model, speed in SPEEDS.items():
                now += 0.1
                seconds = work / speed * random.lognormal(-(noise**2) / 2, noise)
                policy.learn_one(an_outcome(task_type, gpu_model, seconds), now)
    return policy


def test_service_times_converge() -> None:
    policy = taught()
    for task_type, work in WORK.items():
        for gpu_model, speed in SPEEDS.items():
            assert seconds_on(policy, task_type, gpu_model) == pytest.approx(work / speed, rel=0.15)


def test_service_time_is_proportional_to_size() -> None:
    policy = ExpectedCompletion(seed=1)
    for size in (1.0, 10.0, 100.0):
        policy.learn_one(an_outcome("resize", "V100", 0.5 * size, size=size), 0.0)
    assert seconds_on(policy, "resize", "V100", 40.0) == pytest.approx(20.0, rel=0.1)


def test_one_run_of_a_new_type_predicts_it_on_every_model() -> None:
    policy = taught()
    policy.learn_one(an_outcome("new", "P100", 20.0), 100.0)
    assert seconds_on(policy, "new", "K80") == pytest.approx(60.0, rel=0.25)
    assert seconds_on(policy, "new", "V100") == pytest.approx(12.0, rel=0.25)


def test_an_unseen_type_is_taken_as_a_usual_one() -> None:
    policy = taught()
    usual = np.exp(np.mean(np.log(list(WORK.values()))))
    for gpu_model, speed in SPEEDS.items():
        assert seconds_on(policy, "unseen", gpu_model) == pytest.approx(usual / speed, rel=0.25)


def test_an_unseen_model_lies_between_the_known_ones() -> None:
    policy = taught()
    low, high = seconds_on(policy, "resnet", "V100"), seconds_on(policy, "resnet", "K80")
    assert low < seconds_on(policy, "resnet", "H200") < high


def test_slow_change_is_followed() -> None:
    policy = taught(noise=0.05)
    for step in range(2_000):
        policy.learn_one(an_outcome("resnet", "V100", 2.0), 100.0 + step)
    assert seconds_on(policy, "resnet", "V100") == pytest.approx(2.0, rel=0.1)


def test_failed_tries_say_nothing_about_service_time() -> None:
    policy = taught()
    before = seconds_on(policy, "resnet", "K80")
    for _ in range(50):
        policy.learn_one(an_outcome("resnet", "K80", 0.01, state=TryState.FAILURE), 100.0)
    assert seconds_on(policy, "resnet", "K80") == pytest.approx(before, rel=0.01)


@pytest.mark.parametrize("state", [TryState.REVOKED, TryState.RETRY])
def test_revoked_and_polling_tries_teach_nothing(state: TryState) -> None:
    policy = ExpectedCompletion(seed=1)
    before = policy.state()
    policy.learn_one(an_outcome("resnet", "K80", 5.0, state=state), 0.0)
    assert policy.state() == before
    assert not policy.ready
    assert policy.refused_count == 0


def test_a_retry_for_an_error_is_held_against_the_hardware() -> None:
    polling, failing = taught(), taught()
    for _ in range(20):
        retry = an_outcome("resnet", "K80", 0.1, state=TryState.RETRY)
        polling.learn_one(retry, 100.0)
        failing.learn_one(replace(retry, error="RuntimeError"), 100.0)
    fleet = Fleet(["gpu.K80", "gpu.P100"], ["K80", "P100"], [1, 1])
    fleet.waiting_seconds[:] = 0.0, 8.0
    chosen = [
        policy.choose(TaskView("resnet"), fleet, 100.0).queue for policy in (polling, failing)
    ]
    assert chosen == ["gpu.K80", "gpu.P100"]


@pytest.mark.parametrize(
    "changes",
    [
        {"service_seconds": -1.0},
        {"service_seconds": float("nan")},
        {"service_seconds": float("inf")},
        {"service_seconds": 1e12},
        {"size": 0.0},
        {"size": float("nan")},
    ],
)
def test_absurd_numbers_are_refused_and_counted(changes: dict[str, float]) -> None:
    policy = taught()
    before = policy.state()
    policy.learn_one(an_outcome("resnet", "K80", 1.0, **({"service_seconds": 1.0} | changes)), 1e3)
    assert policy.refused_count == 1
    assert seconds_on(policy, "resnet", "K80") == pytest.approx(5.0, rel=0.15)
    assert before["learner"]["cells"] == policy.state()["learner"]["cells"]


def test_types_are_bounded_and_the_one_unseen_for_longest_is_forgotten() -> None:
    policy = ExpectedCompletion(seed=1, max_types=3)
    for task_type in ("a", "b", "c", "a", "d"):
        policy.learn_one(an_outcome(task_type, "V100", {"b": 50.0}.get(task_type, 1.0)), 0.0)
    assert set(policy.learner.cells.types) == {"c", "a", "d"}
    assert seconds_on(policy, "b", "V100") < 5.0


def test_gpu_models_are_bounded() -> None:
    cells = Cells(("count",), max_types=1)
    columns = {cells.column(f"model {number}") for number in range(MAX_MODELS + 5)}
    assert columns == {*range(1, MAX_MODELS + 1), None}


class Site:
    """Four V100 and two K80 with Poisson arrivals at a load that leaves room to choose."""

    def __init__(self, policy: Policy, seed: int = 3) -> None:
        self.policy = policy
        self.random = np.random.default_rng(seed)
        names = [f"gpu.a.{i}" for i in range(6)]
        self.fleet = Fleet(names, ["V100"] * 4 + ["K80"] * 2)
        self.waiting: list[list[tuple[str, float, float]]] = [[] for _ in names]
        self.ends: list[tuple[float, int, str, float, float, bool]] = []
        self.now = 0.0
        self.slow = dict.fromkeys(range(6), 1.0)
        self.crashes: Callable[[int, str], bool] = lambda row, task_type: False
        self.responses: list[float] = []
        self.counts: Counter[tuple[str, int]] = Counter()

    def run(self, tasks: int, rate: float = 2.0) -> None:
        for step in range(tasks):
            arrival = self.now + self.random.exponential(1.0 / rate)
            while self.ends and self.ends[0][0] <= arrival:
                self._finish()
            self.now = arrival
            if step % 20 == 0:
                self.policy.tick(self.fleet, arrival)
            self._arrive(str(self.random.choice(list(WORK))))

    def _arrive(self, task_type: str) -> None:
        task, fleet = TaskView(task_type), self.fleet
        self.policy.arrived(task, self.now)
        decision = self.policy.choose(task, fleet, self.now)
        row = fleet.names.index(decision.queue)
        self.counts[task_type, row] += 1
        predicted = decision.service_seconds or 1.0
        fleet.waiting_count[row] += 1
        fleet.waiting_seconds[row] += predicted
        self.waiting[row].append((task_type, self.now, predicted))
        if not fleet.running_seconds[row, 0]:
            self._start(row)

    def _start(self, row: int) -> None:
        task_type, arrival, predicted = self.waiting[row].pop(0)
        fleet = self.fleet
        fleet.waiting_count[row] -= 1
        fleet.waiting_seconds[row] = max(0.0, fleet.waiting_seconds[row] - predicted)
        fleet.running_seconds[row, 0], fleet.running_since[row, 0] = predicted, self.now
        failed = self.crashes(row, task_type)
        seconds = WORK[task_type] / SPEEDS[fleet.gpu_model(row)] * self.slow[row]
        seconds = 0.01 if failed else seconds * self.random.lognormal(-0.045, 0.3)
        heapq.heappush(self.ends, (self.now + seconds, row, task_type, arrival, seconds, failed))

    def _finish(self) -> None:
        self.now, row, task_type, arrival, seconds, failed = heapq.heappop(self.ends)
        self.fleet.running_seconds[row, 0] = 0.0
        self.responses.append(self.now - arrival)
        state = TryState.FAILURE if failed else TryState.SUCCESS
        gpu_model, queue = self.fleet.gpu_model(row), self.fleet.names[row]
        outcome = an_outcome(task_type, gpu_model, seconds, queue=queue, state=state)
        self.policy.learn_one(outcome, self.now)
        if self.waiting[row]:
            self._start(row)

    def share(self, row: int, task_type: str | None = None) -> float:
        """Share of the tasks that went to one queue since ``counts`` was cleared."""
        of_type = {k: n for k, n in self.counts.items() if task_type in (None, k[0])}
        return sum(n for (_, r), n in of_type.items() if r == row) / sum(of_type.values())


def test_learning_beats_choosing_at_random_by_a_margin() -> None:
    means = {}
    for policy in (ExpectedCompletion(seed=1), Random(seed=1)):
        site = Site(policy)
        site.run(3_000, rate=1.0)
        means[policy.name] = float(np.mean(site.responses))
    assert means["expected_completion"] < 0.3 * means["random"]


def test_a_throttled_gpu_is_found_avoided_and_tried_again() -> None:
    policy = ExpectedCompletion(seed=1)
    site = Site(policy)
    site.run(2_000)
    assert policy.learner.speeds.factors() == {}
    site.slow[0] = 4.0
    site.run(60)
    assert policy.learner.speeds.factor("gpu.a.0") > 2.0
    site.counts.clear()
    site.run(500)
    assert 0.0 < site.share(0) < 0.12
    assert {name for name, factor in policy.learner.speeds.factors().items() if factor > 1.5} == {
        "gpu.a.0"
    }
    site.slow[0] = 1.0
    site.run(1_000)
    site.counts.clear()
    site.run(1_000)
    assert policy.learner.speeds.factor("gpu.a.0") == 1.0
    assert site.share(0) > 0.15


def test_a_factor_without_new_samples_returns_to_one() -> None:
    policy = taught()
    for step in range(20):
        policy.learn_one(an_outcome("resnet", "V100", 1.0, queue="gpu.a.1"), 60.0 + step)
        policy.learn_one(an_outcome("resnet", "V100", 4.0, queue="gpu.a.0"), 60.0 + step)
    factors = []
    for now in (80.0, 200.0, 1e6):
        policy.tick(Fleet([], []), now)
        factors.append(policy.learner.speeds.factor("gpu.a.0"))
    assert factors[0] > factors[1] > factors[2] == 1.0


def test_when_every_gpu_of_a_model_changes_the_model_is_relearned() -> None:
    policy = taught(noise=0.1)
    for step in range(3_000):
        queue = f"gpu.a.{step % 3}"
        policy.learn_one(an_outcome("resnet", "V100", 2.0, queue=queue), 100.0 + step)
    assert policy.learner.speeds.factors().keys().isdisjoint({"gpu.a.0", "gpu.a.1", "gpu.a.2"})
    assert seconds_on(policy, "resnet", "V100") == pytest.approx(2.0, rel=0.15)


@pytest.mark.parametrize("kind", [ExpectedCompletion, PricedQ])
@pytest.mark.parametrize("seed", range(2))
def test_a_gpu_that_crashes_fast_gets_almost_nothing_after_ten_failures(
    kind: type[ExpectedCompletion], seed: int
) -> None:
    policy = kind(seed=seed)
    site = Site(policy, seed)
    site.run(500)
    failures = 0

    def crashes(row: int, task_type: str) -> bool:
        nonlocal failures
        failures += row == 1
        return row == 1

    site.crashes = crashes
    while failures < 10:
        site.run(1)
    site.counts.clear()
    site.run(2_000)
    for task_type in WORK:
        assert site.share(1, task_type) < 0.02
    # The others of its model are not blamed for it.
    assert sum(site.share(row) for row in (0, 2, 3)) > 0.6


@pytest.mark.parametrize("seed", range(3))
def test_a_type_that_fails_on_one_model_leaves_it_and_others_stay(seed: int) -> None:
    policy = ExpectedCompletion(seed=seed)
    site = Site(policy, seed)
    site.crashes = lambda row, task_type: row >= 4 and task_type == "resnet"
    site.run(500, rate=2.5)
    site.counts.clear()
    site.run(3_000, rate=2.5)
    assert site.share(4, "resnet") + site.share(5, "resnet") < 0.004
    assert site.share(4) + site.share(5) > 0.005


def test_queues_with_too_little_memory_are_closed_for_a_type() -> None:
    policy = taught()
    for _ in range(5):
        policy.learn_one(an_outcome("resnet", "V100", 1.0, peak_memory_bytes=10 * 1024**3), 100.0)
    fleet = Fleet(["gpu.a.0", "gpu.a.1", "gpu.a.2"], ["V100"] * 3)
    fleet.free_memory_bytes[:] = [8 * 1024**3, 16 * 1024**3, np.nan]
    chosen = {policy.choose(TaskView("resnet"), fleet, 100.0).queue for _ in range(50)}
    assert chosen == {"gpu.a.1", "gpu.a.2"}
    assert {policy.choose(TaskView("lstm"), fleet, 100.0).queue for _ in range(50)} == {
        *fleet.names
    }


def test_running_out_of_memory_closes_smaller_gpus_at_once() -> None:
    policy = taught()
    fleet = Fleet(["gpu.a.0", "gpu.a.1"], ["V100"] * 2)
    fleet.free_memory_bytes[:] = [16 * 1024**3, 32 * 1024**3]
    policy.tick(fleet, 50.0)
    policy.learn_one(
        an_outcome(
            "resnet", "V100", 0.1, queue="gpu.a.0", state=TryState.FAILURE, out_of_memory=True
        ),
        50.0,
    )
    assert {policy.choose(TaskView("resnet"), fleet, 51.0).queue for _ in range(50)} == {"gpu.a.1"}


@pytest.mark.parametrize("policy", [ExpectedCompletion(seed=1), PricedQ(seed=1)], ids=str)
def test_running_out_of_memory_is_a_lower_bound_where_the_type_has_never_run(
    policy: ExpectedCompletion,
) -> None:
    for model in ("small", "smaller", "large"):
        policy.learn_one(an_outcome("lstm", model, 1.0), 1.0)
    fleet = Fleet(["gpu.a.0", "gpu.a.1", "gpu.a.2"], ["small", "smaller", "large"])
    fleet.free_memory_bytes[:] = [12.0, 8.0, 16.0]
    policy.tick(fleet, 50.0)
    failed = {"queue": "gpu.a.0", "state": TryState.FAILURE, "out_of_memory": True}
    policy.learn_one(an_outcome("resnet", "small", 0.1, **failed), 50.0)
    policy.tick(fleet, 51.0)

    def chosen(task_type: str = "resnet") -> set[str]:
        return {policy.choose(TaskView(task_type), fleet, 51.0).queue for _ in range(100)}

    assert chosen() == {"gpu.a.2"}
    # Foreign processes take memory of the large one: no queue is closed for other types.
    fleet.free_memory_bytes[2] = 7.0
    assert chosen() == {"gpu.a.0"}
    assert "gpu.a.2" in chosen("lstm")


def test_a_task_that_fits_nowhere_is_sent_where_there_is_most_memory() -> None:
    policy = taught()
    policy.learn_one(an_outcome("resnet", "V100", 1.0, peak_memory_bytes=10**12), 100.0)
    fleet = Fleet(["gpu.a.0", "gpu.a.1"], ["V100"] * 2)
    fleet.free_memory_bytes[:] = [10**9, 10**10]
    chosen = {policy.choose(TaskView("resnet"), fleet, 100.0).queue for _ in range(50)}
    assert chosen == {"gpu.a.1"}


def test_exploration_fades_with_samples() -> None:
    fleet = Fleet([f"gpu.a.{i}" for i in range(3)], [*SPEEDS])

    def explored(rounds: int) -> int:
        policy = taught(rounds=rounds)
        return sum(policy.choose(TaskView("lstm"), fleet, 100.0).explored for _ in range(300))

    assert explored(1) > 10 * explored(300)
    assert taught(rounds=1, exploration_rate=0.0).sigma == 0.0


def test_a_prior_is_used_at_once_and_gives_way_to_samples() -> None:
    policy = ExpectedCompletion(seed=1)
    policy.take_prior({"resnet": {"V100": 2.0, "K80": 10.0}, "lstm": {"V100": 1.0}})
    assert policy.ready
    assert seconds_on(policy, "resnet", "K80") == pytest.approx(10.0, rel=0.15)
    assert seconds_on(policy, "lstm", "K80") == pytest.approx(5.0, rel=0.4)
    for _ in range(40):
        policy.learn_one(an_outcome("resnet", "V100", 1.0), 0.0)
    assert seconds_on(policy, "resnet", "V100") == pytest.approx(1.0, rel=0.1)
    policy.take_prior({"resnet": {"V100": 50.0}})
    assert seconds_on(policy, "resnet", "V100") == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_an_absurd_prior_is_refused(seconds: float) -> None:
    policy = ExpectedCompletion(seed=1)
    with pytest.raises(ValueError, match="makes no sense"):
        policy.take_prior({"resnet": {"V100": 1.0, "K80": seconds}})
    assert not policy.ready


def test_the_noisier_service_times_are_the_longer_one_sample_is_doubted() -> None:
    predicted = {}
    for noise in (0.3, 1.0):
        policy = taught(noise, rounds=100)
        for _ in range(30):
            policy.learn_one(an_outcome("new", "V100", 1.0), 200.0)
        policy.learn_one(an_outcome("new", "K80", 100.0), 200.0)
        predicted[noise] = seconds_on(policy, "new", "K80")
    assert predicted[1.0] < 0.7 * predicted[0.3]
