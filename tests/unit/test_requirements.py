"""What is said of the hardware that a task type needs, and when it is said."""

from __future__ import annotations

import random

import pytest

from owl_celery.requirements import ENOUGH_SAMPLES, ModelRequirement, student_cdf
from owl_celery.tracker import TaskPerformanceTracker
from owl_celery.types import Outcome, TryState
from tests.learning import CountingPolicy, outcome


@pytest.fixture
def tracker() -> TaskPerformanceTracker:
    return TaskPerformanceTracker(CountingPolicy())


def tries(gpu_model: str, mean: float, count: int, spread: float = 0.1) -> list[Outcome]:
    rng = random.Random(f"{gpu_model} {mean}")
    return [
        outcome(
            0,
            task_id=f"{gpu_model}-{number}",
            gpu_model=gpu_model,
            service_seconds=mean * max(rng.gauss(1.0, spread), 0.01),
        )
        for number in range(count)
    ]


def model(tracker: TaskPerformanceTracker, name: str) -> ModelRequirement:
    (found,) = [m for m in tracker.requirements("train").models if m.gpu_model == name]
    return found


def test_a_type_never_seen_has_no_requirements(tracker: TaskPerformanceTracker) -> None:
    needs = tracker.requirements("train")
    assert (needs.models, needs.has_enough_samples, needs.failure_rate) == ((), False, None)
    assert needs.explanation.startswith("No try of train has a row of its own")


def test_few_tries_are_said_to_be_too_few(tracker: TaskPerformanceTracker) -> None:
    tracker.record(tries("V100", 1.0, 50) + tries("K80", 8.0, ENOUGH_SAMPLES - 1), now=0.0)
    needs = tracker.requirements("train")
    assert not needs.has_enough_samples
    assert needs.benefits_from == ()
    assert needs.explanation.startswith("Too few samples")
    assert [(m.speed_up, m.benefits, m.confidence) for m in needs.models] == [(None,) * 3] * 2


def test_the_faster_model_is_named_with_its_speed_up(tracker: TaskPerformanceTracker) -> None:
    tracker.record(tries("V100", 1.0, 30) + tries("K80", 8.0, 30), now=0.0)
    needs = tracker.requirements("train")
    fast, slow = needs.models
    assert (fast.gpu_model, slow.gpu_model) == ("V100", "K80")
    assert fast.speed_up == pytest.approx(8.0, rel=0.1)
    assert slow.speed_up == 1.0
    assert fast.benefits is True
    assert fast.confidence is not None
    assert fast.confidence > 0.99
    assert slow.benefits is None
    assert needs.benefits_from == ("V100",)
    assert needs.has_enough_samples
    assert "times as fast on V100 as on K80" in needs.explanation


def test_equal_models_are_said_to_be_equal(tracker: TaskPerformanceTracker) -> None:
    tracker.record(tries("V100", 1.0, 300, 0.05) + tries("K80", 1.01, 300, 0.05), now=0.0)
    needs = tracker.requirements("train")
    assert [m.benefits for m in needs.models] == [False, None]
    assert needs.benefits_from == ()
    assert "gains nothing" in needs.explanation


def test_noise_is_not_mistaken_for_a_benefit(tracker: TaskPerformanceTracker) -> None:
    tracker.record(tries("V100", 1.0, 6, 0.8) + tries("K80", 1.3, 6, 0.8), now=0.0)
    needs = tracker.requirements("train")
    assert needs.has_enough_samples
    assert [m.benefits for m in needs.models] == [None, None]
    assert "do not tell yet" in needs.explanation


def test_a_false_claim_is_as_rare_as_promised() -> None:
    rng = random.Random(5)
    wrong = 0
    for _ in range(300):
        tracker = TaskPerformanceTracker(CountingPolicy())
        for name in ("a", "b", "c", "d"):
            tracker.record(
                [
                    outcome(
                        0,
                        task_id=f"{name}{n}",
                        gpu_model=name,
                        service_seconds=rng.lognormvariate(0.0, 0.3),
                    )
                    for n in range(8)
                ],
                now=0.0,
            )
        wrong += bool(tracker.requirements("train").benefits_from)
    assert wrong / 300 < 0.05


def test_tries_of_equal_length_make_a_sure_comparison(tracker: TaskPerformanceTracker) -> None:
    tracker.record(tries("V100", 1.0, 5, 0.0) + tries("K80", 2.0, 5, 0.0), now=0.0)
    fast = model(tracker, "V100")
    assert (fast.standard_error_seconds, fast.benefits, fast.confidence) == (0.0, True, 1.0)


def test_a_task_that_takes_no_time_at_all_is_compared(tracker: TaskPerformanceTracker) -> None:
    tracker.record(tries("V100", 0.0, 5, 0.0) + tries("K80", 2.0, 5, 0.0), now=0.0)
    assert (model(tracker, "V100").speed_up, model(tracker, "V100").benefits) == (None, True)
    assert tracker.requirements("train").benefits_from == ("V100",)
    assert "in no time" in tracker.requirements("train").explanation


def test_failures_and_memory_are_said_by_model_and_in_all(
    tracker: TaskPerformanceTracker,
) -> None:
    out_of_memory = outcome(
        1, gpu_model="K80", state=TryState.RETRY, out_of_memory=True, peak_memory_bytes=12
    )
    tracker.record([outcome(0, peak_memory_bytes=15), out_of_memory], now=0.0)
    needs = tracker.requirements("train")
    small = model(tracker, "K80")
    assert (small.count, small.failures, small.failure_rate) == (0, 1, 1.0)
    assert (small.out_of_memory, small.peak_memory_bytes, small.mean_seconds) == (1, 12, None)
    assert (needs.successes, needs.failures, needs.failure_rate) == (1, 1, 0.5)
    assert (needs.out_of_memory, needs.peak_memory_bytes) == (1, 15)
    assert [m.gpu_model for m in needs.models] == ["V100", "K80"]


def test_a_model_not_tried_has_the_policys_prediction(tracker: TaskPerformanceTracker) -> None:
    tracker.record([outcome(0, gpu_model="K80"), outcome(1, task_type="infer")], now=0.0)
    unseen = model(tracker, "V100")
    assert (unseen.count, unseen.mean_seconds, unseen.predicted_seconds) == (0, None, 0.5)
    assert model(tracker, "K80").predicted_seconds is None


def test_another_thread_brings_its_own_prediction(tracker: TaskPerformanceTracker) -> None:
    tracker.record([outcome(0)], now=0.0)
    (only,) = tracker.requirements("train", predict=lambda task_type, gpu_model: 9.0).models
    assert only.predicted_seconds == 9.0


@pytest.mark.parametrize(
    ("t", "freedom", "expected"),
    [(0.0, 4, 0.5), (2.353, 3, 0.95), (2.776, 4, 0.975), (1.812, 10, 0.95), (-1.725, 20, 0.05)],
)
def test_students_distribution(t: float, freedom: float, expected: float) -> None:
    assert student_cdf(t, freedom) == pytest.approx(expected, abs=0.001)
