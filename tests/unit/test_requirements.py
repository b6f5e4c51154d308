"""What is said of the hardware that a task type needs, and when it is said."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, replace
from typing import Any

import pytest

from owl_celery.aggregates import Learned, SavedPolicy, ServiceStats
from owl_celery.confidence import at_least, student_cdf, student_width
from owl_celery.learned_policy import policy_of
from owl_celery.learned_requirements import LearnedRequirements
from owl_celery.policies import make_policy
from owl_celery.policies.expected_completion import ExpectedCompletion
from owl_celery.prior import PairPrior
from owl_celery.requirements import ENOUGH_SAMPLES, ModelRequirement, derive
from owl_celery.settings import Settings
from owl_celery.store.base import FIRST_CURSOR
from owl_celery.store.memory import MemoryStore
from owl_celery.tracker import TaskPerformanceTracker
from owl_celery.types import Outcome, TryState
from tests.learning import CountingPolicy, outcome, stream


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
    assert "smallest" not in needs.explanation
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


def failed(gpu_model: str, count: int, **values: Any) -> list[Outcome]:
    return [
        outcome(
            0,
            task_id=f"failed-{gpu_model}-{number}",
            gpu_model=gpu_model,
            state=TryState.FAILURE,
            service_seconds=0.1,
            **values,
        )
        for number in range(count)
    ]


@pytest.fixture
def learner() -> TaskPerformanceTracker:
    """A tracker whose policy learns of failures and memory."""
    return TaskPerformanceTracker(ExpectedCompletion(seed=1))


def test_the_mean_lies_in_its_interval_as_often_as_promised() -> None:
    rng = random.Random(3)
    inside = 0
    for _ in range(400):
        row = ServiceStats("train", "V100")
        for _ in range(6):
            row.add(rng.gauss(2.0, 0.5))
        (only,) = derive("train", None, [row], {}).models
        assert only.low_seconds is not None
        assert only.high_seconds is not None
        inside += only.low_seconds <= 2.0 <= only.high_seconds
    assert 0.92 < inside / 400 < 0.98


def test_one_try_has_no_interval(tracker: TaskPerformanceTracker) -> None:
    tracker.record([outcome(0)], now=0.0)
    (only,) = tracker.requirements("train").models
    assert (only.mean_seconds, only.low_seconds, only.high_seconds) == (2.0, None, None)


def test_the_smallest_gpu_that_suffices_is_the_one_with_the_least_memory(
    learner: TaskPerformanceTracker,
) -> None:
    learner.record(
        [
            *tries("A100", 1.0, 40),
            *tries("T4", 4.0, 40),
            *tries("L4", 3.0, 40),
            *tries("K80", 9.0, 6),
            *failed("K80", 60, out_of_memory=True),
        ],
        now=0.0,
    )
    memory = {"A100": 80 * 2**30, "L4": 24 * 2**30, "T4": 16 * 2**30, "K80": 12 * 2**30}
    needs = learner.requirements("train", memory_bytes=memory)
    smallest = needs.smallest_sufficient
    assert smallest is not None
    assert (smallest.gpu_model, smallest.memory_bytes) == ("T4", 16 * 2**30)
    assert smallest.confidence > 0.95
    assert "smallest that suffices is T4: the least memory (16 GiB) of 3" in needs.explanation
    assert needs.closed == ("K80",)
    (small,) = [m for m in needs.models if m.gpu_model == "K80"]
    assert small.closed_because == "it fails there with a probability of 98%."
    assert "Not on K80: it fails there" in needs.explanation


def test_without_known_memory_it_is_the_slowest_that_never_ran_out(
    learner: TaskPerformanceTracker,
) -> None:
    learner.record(
        [
            *tries("A100", 1.0, 10),
            *tries("T4", 4.0, 10),
            *tries("K80", 9.0, 40),
            *failed("K80", 1, out_of_memory=True),
        ],
        now=0.0,
    )
    smallest = learner.requirements("train").smallest_sufficient
    assert smallest is not None
    assert (smallest.gpu_model, smallest.memory_bytes) == ("T4", None)
    assert "slowest that never ran out of memory" in smallest.explanation


def test_failures_that_have_nothing_to_do_with_the_gpu_rule_none_out(
    learner: TaskPerformanceTracker,
) -> None:
    outcomes = [*tries("A100", 1.0, 30), *tries("T4", 4.0, 30)]
    learner.record([*failed("A100", 28), *failed("T4", 30), *outcomes], now=0.0)
    smallest = learner.requirements(
        "train", memory_bytes={"A100": 80, "T4": 16}
    ).smallest_sufficient
    assert smallest is not None
    assert smallest.gpu_model == "T4"


def test_with_few_tries_no_gpu_is_called_sufficient(learner: TaskPerformanceTracker) -> None:
    learner.record(tries("T4", 4.0, ENOUGH_SAMPLES - 1), now=0.0)
    assert learner.requirements("train", memory_bytes={"T4": 16}).smallest_sufficient is None
    learner.record([replace(o, task_id="more") for o in tries("T4", 4.0, 1)], now=0.0)
    smallest = learner.requirements("train", memory_bytes={"T4": 16}).smallest_sufficient
    assert smallest is not None
    assert smallest.confidence == pytest.approx(0.47, abs=0.01)


def test_a_pair_closed_by_memory_says_how_much_is_needed(learner: TaskPerformanceTracker) -> None:
    learner.record(
        [replace(o, peak_memory_bytes=20 * 2**30) for o in tries("A100", 1.0, 10)]
        + [replace(o, peak_memory_bytes=20 * 2**30) for o in tries("A30", 2.0, 10)],
        now=0.0,
    )
    needs = learner.requirements("train", memory_bytes={"A100": 80 * 2**30, "A30": 20 * 2**30})
    assert needs.needed_memory_bytes == 21 * 2**30
    assert needs.peak_memory_bytes == 20 * 2**30
    assert needs.closed == ("A30",)
    assert needs.models[1].closed_because == "it needs 21 GiB of memory, and there are 20 GiB."


@pytest.mark.parametrize(
    ("free", "because"),
    [
        ({"K80": 11e9}, "it ran out of memory with 10.2 GiB free."),
        ({"K80": 11e9 + 2.0}, ""),
        ({}, ""),
    ],
)
def test_a_shortage_closes_only_where_no_more_is_free(free: dict[str, float], because: str) -> None:
    pair = PairPrior("train", "K80", failure_probability=0.1, needed_memory_bytes=11 * 10**9 + 1)
    needs = derive("train", None, (), {}, [pair], {"K80": 12 * 10**9}, free)
    assert needs.models[0].closed_because == because
    assert needs.closed == (("K80",) if because else ())


def test_the_requirements_are_plain_values(learner: TaskPerformanceTracker) -> None:
    learner.record(tries("V100", 1.0, 30) + tries("K80", 8.0, 30), now=0.0)
    text = json.dumps(asdict(learner.requirements("train")), allow_nan=False)
    assert json.loads(text)["smallest_sufficient"]["gpu_model"] == "K80"


@pytest.mark.parametrize("policy", ["q_learning", "expected_completion", "random"])
def test_a_process_that_does_not_lead_says_the_same(policy: str) -> None:
    settings = Settings.load(policy=policy, seed=1)
    tracker, store = TaskPerformanceTracker(make_policy(settings)), MemoryStore()
    tracker.record(stream(400), now=0.0)
    pending = tracker.take()
    store.commit(
        expected_cursor=FIRST_CURSOR,
        cursor="1-0",
        outcomes=pending.outcomes,
        policy_name=policy,
        policy_state=tracker.policy.state(),
        aggregates=pending.aggregates,
    )
    elsewhere = LearnedRequirements(store.load(), settings)
    memory = {"K80": 12 * 2**30, "V100": 16 * 2**30}
    for task_type in (*(row.task_type for row in tracker.task_types), "never seen"):
        here = tracker.requirements(task_type, memory_bytes=memory)
        assert elsewhere.of(task_type, memory) == here


@pytest.mark.parametrize(
    ("rate", "successes", "failures", "expected"),
    [
        (0.9, 0, 0, 0.1),
        (0.9, 28, 0, 0.953),
        (0.5, 10, 10, 0.5),
        (0.9, 900, 1_100, 0.0),
        (0.4, 4_000, 6_000, 0.5),
        (0.0, 0, 5, 1.0),
        (1.0, 5, 0, 0.0),
    ],
)
def test_how_sure_a_success_rate_is(
    rate: float, successes: int, failures: int, expected: float
) -> None:
    assert at_least(rate, successes, failures) == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize(
    ("freedom", "expected"), [(3, 3.182), (4, 2.776), (10, 2.228), (30, 2.042)]
)
def test_the_width_of_an_interval(freedom: int, expected: float) -> None:
    assert student_width(freedom) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    ("t", "freedom", "expected"),
    [(0.0, 4, 0.5), (2.353, 3, 0.95), (2.776, 4, 0.975), (1.812, 10, 0.95), (-1.725, 20, 0.05)],
)
def test_students_distribution(t: float, freedom: float, expected: float) -> None:
    assert student_cdf(t, freedom) == pytest.approx(expected, abs=0.001)


def test_a_policy_that_cannot_be_restored_counts_as_none(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def restore(*_: object) -> None:
        raise ZeroDivisionError("A policy of somebody else.")

    monkeypatch.setattr(ExpectedCompletion, "restore", restore)
    saved = SavedPolicy("expected_completion", 1, {}, 0.0)
    learned = Learned("0-0", policies=(saved,))
    assert policy_of(learned, Settings.load()) is None
    assert "A policy of somebody else." in caplog.text
    assert LearnedRequirements(learned, Settings.load()).of("train").models == ()
