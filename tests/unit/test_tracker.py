"""What the tracker learns, keeps and refuses."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from typing import Any, ClassVar

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from owl_celery.aggregates import OTHER, Aggregates, Learned, SavedPolicy
from owl_celery.book import CURVE_BUCKETS, MAX_GPU_MODELS
from owl_celery.policies import BUILT_IN
from owl_celery.task_view import view_of_task
from owl_celery.tracker import TaskPerformanceTracker
from owl_celery.types import MAX_SIZE, MIN_SIZE, Outcome, TryState
from owl_celery.wire import MAX_SECONDS, TaskHeader, decode_event, encode_event
from tests.learning import STARTED_AT, CountingPolicy, outcome, stream


@pytest.fixture
def policy() -> CountingPolicy:
    return CountingPolicy()


@pytest.fixture
def tracker(policy: CountingPolicy) -> TaskPerformanceTracker:
    return TaskPerformanceTracker(policy)


def test_the_policy_learns_from_each_outcome_at_the_time_given(
    tracker: TaskPerformanceTracker, policy: CountingPolicy
) -> None:
    batch = tracker.record([outcome(0), outcome(1)], now=7.5)
    assert [o.task_id for o in batch.accepted] == ["task-0", "task-1"]
    assert policy.counts == {"train": 2}
    assert policy.last_now == 7.5


def test_averages_are_over_successes_only(tracker: TaskPerformanceTracker) -> None:
    tracker.record(
        [
            outcome(0, service_seconds=2.0),
            outcome(1, service_seconds=4.0),
            outcome(2, service_seconds=0.01, state=TryState.FAILURE),
        ],
        now=0.0,
    )
    (kind,) = tracker.task_types
    assert (kind.tries, kind.successes, kind.failures) == (3, 2, 1)
    assert kind.mean_service_seconds == 3.0
    assert kind.success_rate == pytest.approx(2 / 3)
    assert kind.last_finished_at == STARTED_AT + 2
    assert tracker.mean_service_seconds == 3.0
    assert tracker.success_rate == pytest.approx(2 / 3)
    assert tracker.total_tasks_processed == 3


@pytest.mark.parametrize(
    "values",
    [
        {"state": TryState.FAILURE},
        {"state": TryState.LOST},
        {"state": TryState.RETRY, "error": "ConnectionError"},
        {"state": TryState.RETRY, "out_of_memory": True},
    ],
    ids=str,
)
def test_a_failed_try_counts_as_a_failure(
    tracker: TaskPerformanceTracker, values: dict[str, Any]
) -> None:
    tracker.record([outcome(**values)], now=0.0)
    assert [(w.successes, w.failures) for w in tracker.workers] == [(0, 1)]
    assert [(s.count, s.failures) for s in tracker.services] == [(0, 1)]


@pytest.mark.parametrize("state", [TryState.REVOKED, TryState.RETRY])
def test_a_revoked_or_polling_try_is_neither_success_nor_failure(
    tracker: TaskPerformanceTracker, state: TryState
) -> None:
    tracker.record([outcome(state=state)], now=0.0)
    (kind,) = tracker.task_types
    assert (kind.tries, kind.revoked, kind.success_rate) == (0, 1, None)
    assert [(s.count, s.failures) for s in tracker.services] == [(0, 0)]
    assert tracker.total_tasks_processed == 0


def test_the_first_report_of_a_try_counts(tracker: TaskPerformanceTracker) -> None:
    first = outcome(0, service_seconds=1.0)
    again = outcome(0, state=TryState.FAILURE)
    batch = tracker.record([first, again], now=0.0)
    later = tracker.record([again], now=1.0)
    assert (batch.accepted, batch.duplicates, later.duplicates) == ((first,), 1, 1)
    assert tracker.success_rate == 1.0
    assert tracker.duplicates_count == 2


def test_another_attempt_is_another_try(tracker: TaskPerformanceTracker) -> None:
    failed = outcome(0, state=TryState.RETRY, error="ConnectionError")
    tracker.record([failed, outcome(0, attempt=1)], now=0.0)
    assert tracker.total_tasks_processed == 2


def test_a_try_that_the_store_knows_is_a_duplicate(tracker: TaskPerformanceTracker) -> None:
    batch = tracker.record([outcome(0)], now=0.0, known={outcome(0).key})
    assert (batch.accepted, batch.duplicates) == ((), 1)


@pytest.mark.parametrize(
    "values",
    [
        {"service_seconds": -1.0},
        {"service_seconds": math.nan},
        {"service_seconds": math.inf},
        {"service_seconds": 1e10},
        {"service_seconds": "2"},
        {"service_seconds": None},
        {"service_seconds": True},
        {"service_seconds": 10**400},
        {"wait_seconds": -0.5},
        {"predicted_seconds": math.nan},
        {"size": 0.0},
        {"size": 1e-300},
        {"finished_at": -1.0},
        {"finished_at": 1e300},
        {"attempt": -1},
        {"attempt": 1.5},
        {"peak_memory_bytes": 2**70},
        {"peak_memory_bytes": 1.0},
        {"task_type": 7},
        {"task_type": "a\0b"},
        {"queue": "\ud800"},
        {"gpu_model": None},
        {"error": 3},
        {"state": "success!"},
        {"explored": "yes"},
        {"out_of_memory": None},
    ],
    ids=repr,
)
def test_an_absurd_outcome_is_refused_and_counted(
    tracker: TaskPerformanceTracker, policy: CountingPolicy, values: dict[str, Any]
) -> None:
    batch = tracker.record([dataclasses.replace(outcome(0), **values), outcome(1)], now=0.0)
    assert (len(batch.accepted), batch.refused) == (1, 1)
    assert tracker.refused_count == 1
    assert policy.counts == {"train": 1}


@given(st.floats(MIN_SIZE, MAX_SIZE) | st.integers(1, int(MAX_SIZE)))
@example(MIN_SIZE)
@example(MAX_SIZE)
def test_every_size_that_an_author_may_give_arrives_as_it_is(size: float) -> None:
    class Sized:
        owl_size = size

    view = view_of_task("train", (), {}, Sized())
    header = TaskHeader("d", "gpu.a.0", "celery", view.task_type, 0.0, size=view.size)
    read = TaskHeader.decode(json.loads(json.dumps(header.encode())))
    assert read is not None
    sent = outcome(size=read.size, service_seconds=MAX_SECONDS)
    event = decode_event(encode_event(sent))
    assert event == sent
    tracker = TaskPerformanceTracker(CountingPolicy())
    (accepted,) = tracker.record([sent], now=0.0).accepted
    assert accepted.size == size
    (service,) = tracker.services
    assert math.isfinite(service.mean_seconds)


@pytest.mark.parametrize(
    "size", [math.nextafter(MIN_SIZE, 0.0), math.nextafter(MAX_SIZE, math.inf), math.nan]
)
def test_a_size_that_no_author_may_give_is_refused(
    tracker: TaskPerformanceTracker, size: float
) -> None:
    assert tracker.record([outcome(size=size)], now=0.0).refused == 1


def test_a_long_name_is_cut(tracker: TaskPerformanceTracker) -> None:
    tracker.record([outcome(task_type="x" * 10_000, error="E" * 999)], now=0.0)
    (kept,) = tracker.take().outcomes
    assert (kept.task_type, kept.error) == ("x" * 255, "E" * 255)
    assert [row.task_type for row in tracker.task_types] == ["x" * 255]


def test_names_may_be_in_any_script(tracker: TaskPerformanceTracker) -> None:
    tracker.record([outcome(task_type="обучение.🦉'; DROP TABLE x --")], now=0.0)
    assert [row.task_type for row in tracker.task_types] == ["обучение.🦉'; DROP TABLE x --"]


def test_a_worker_without_a_gpu_model_teaches_the_policy_nothing(
    tracker: TaskPerformanceTracker, policy: CountingPolicy
) -> None:
    tracker.record([outcome(gpu_model="", algorithm="celery")], now=0.0)
    assert policy.counts == {}
    assert tracker.services == ()
    assert [row.algorithm for row in tracker.algorithms] == ["celery"]


def test_a_policy_that_stumbles_holds_nothing_up(caplog: pytest.LogCaptureFixture) -> None:
    class Stumbling(CountingPolicy):
        def learn_one(self, outcome: Outcome, now: float) -> None:
            raise ZeroDivisionError

    tracker = TaskPerformanceTracker(Stumbling())
    tracker.record([outcome(0), outcome(1)], now=0.0)
    assert tracker.policy_errors_count == 2
    assert tracker.total_tasks_processed == 2
    assert len(caplog.records) == 1


def test_workers_and_assignments_are_counted_apart(tracker: TaskPerformanceTracker) -> None:
    tracker.record(
        [
            outcome(0, worker_id="a", gpu_model="K80"),
            outcome(1, worker_id="b", gpu_model="V100"),
            outcome(2, worker_id="b", gpu_model="V100", task_type="infer"),
        ],
        now=0.0,
    )
    assert [(w.worker_id, w.gpu_model, w.tries) for w in tracker.workers] == [
        ("a", "K80", 1),
        ("b", "V100", 2),
    ]
    assert [(a.task_type, a.worker_id, a.tries) for a in tracker.assignments] == [
        ("train", "a", 1),
        ("train", "b", 1),
        ("infer", "b", 1),
    ]
    assert (tracker.workers_count, tracker.task_types_count) == (2, 2)


def test_service_time_is_per_unit_of_size(tracker: TaskPerformanceTracker) -> None:
    tracker.record(
        [
            outcome(0, size=2.0, service_seconds=2.0, peak_memory_bytes=5),
            outcome(1, size=1.0, service_seconds=3.0, peak_memory_bytes=9),
            outcome(2, state=TryState.RETRY, out_of_memory=True, peak_memory_bytes=7),
        ],
        now=0.0,
    )
    (service,) = tracker.services
    assert (service.count, service.mean_seconds, service.m2) == (2, 2.0, 2.0)
    assert service.standard_error_seconds == 1.0
    assert (service.failures, service.out_of_memory, service.peak_memory_bytes) == (1, 1, 9)


@given(st.lists(st.floats(1e-3, 1e6), min_size=2, max_size=50))
def test_the_running_mean_and_spread_are_those_of_the_sample(seconds: list[float]) -> None:
    tracker = TaskPerformanceTracker(CountingPolicy())
    tracker.record([outcome(n, service_seconds=s) for n, s in enumerate(seconds)], now=0.0)
    (service,) = tracker.services
    mean = math.fsum(seconds) / len(seconds)
    squares = math.fsum((s - mean) ** 2 for s in seconds)
    assert service.mean_seconds == pytest.approx(mean)
    assert service.m2 == pytest.approx(squares, abs=1e-6 * mean**2)


def test_algorithms_are_judged_by_response_time_and_by_foresight(
    tracker: TaskPerformanceTracker,
) -> None:
    tracker.record(
        [
            outcome(0, algorithm="counting", wait_seconds=1.0, predicted_seconds=2.5),
            outcome(1, algorithm="counting", wait_seconds=3.0, explored=True),
            outcome(2, algorithm="counting"),
            outcome(3, algorithm="celery", wait_seconds=9.0, state=TryState.FAILURE),
        ],
        now=0.0,
    )
    ours, celery = tracker.algorithms
    assert (ours.tries, ours.responses, ours.mean_response_seconds) == (3, 2, 4.0)
    assert (ours.response_squared, ours.explored, ours.mean_error_seconds) == (34.0, 1, 0.5)
    assert (celery.tries, celery.mean_response_seconds) == (1, None)
    assert tracker.mean_response_seconds == 4.0


def test_the_learning_curve_is_by_minute_and_hour(tracker: TaskPerformanceTracker) -> None:
    at = 7200.0
    tracker.record(
        [
            outcome(0, finished_at=at + 1, wait_seconds=1.0),
            outcome(1, finished_at=at + 61, wait_seconds=2.0),
            outcome(2, finished_at=at + 59, wait_seconds=3.0),
        ],
        now=0.0,
    )
    points = [(p.bucket_seconds, p.started_at, p.response_seconds) for p in tracker.curve]
    assert points == [(60, 7200, 8.0), (60, 7260, 4.0), (3600, 7200, 12.0)]


def test_the_learning_curve_keeps_the_latest_buckets(tracker: TaskPerformanceTracker) -> None:
    kept = CURVE_BUCKETS[60]
    tracker.record([outcome(n, finished_at=60.0 * n) for n in range(kept + 10)], now=0.0)
    tracker.record([outcome(kept + 10, finished_at=0.0)], now=0.0)
    minutes = [p.started_at for p in tracker.curve if p.bucket_seconds == 60]
    assert minutes == [60 * n for n in range(10, kept + 10)]
    assert {p.started_at for p in tracker.take().aggregates.curve if p.bucket_seconds == 60} == set(
        minutes
    )


def test_exploration_is_that_of_the_policys_latest_tries(tracker: TaskPerformanceTracker) -> None:
    assert tracker.exploration_rate is None
    explored = [
        outcome(n, algorithm="counting", explored=True, finished_at=0.0) for n in range(300)
    ]
    settled = [outcome(n, algorithm="counting", finished_at=60.0) for n in range(300, 500)]
    others = [
        outcome(n, algorithm="user", explored=True, finished_at=99.0) for n in range(999, 1999)
    ]
    tracker.record(explored, now=0.0)
    assert tracker.exploration_rate == 1.0
    tracker.record(settled + others, now=0.0)
    assert tracker.exploration_rate == 0.0


def test_what_is_beyond_a_bound_is_pooled() -> None:
    tracker = TaskPerformanceTracker(
        CountingPolicy(), max_task_types=2, max_workers=3, max_assignments=2
    )
    outcomes = [
        outcome(n, task_type=f"t{n}", worker_id=f"w{n}", gpu_model=f"g{n}") for n in range(1_000)
    ]
    tracker.record(outcomes, now=0.0)
    assert [(k.task_type, k.tries) for k in tracker.task_types] == [
        ("t0", 1),
        ("t1", 1),
        (OTHER, 998),
    ]
    assert [w.tries for w in tracker.workers] == [1, 1, 1, 997]
    assert sum(a.tries for a in tracker.assignments) == 1_000
    assert len(tracker.assignments) == 3
    assert len({s.gpu_model for s in tracker.services}) == MAX_GPU_MODELS + 1
    assert tracker.task_types_count == 2
    assert tracker.workers_count == 3
    assert tracker.total_tasks_processed == 1_000
    assert {w.gpu_model for w in tracker.workers if w.worker_id == OTHER} == {OTHER}


def test_forged_algorithms_leave_room_for_those_that_exist(
    tracker: TaskPerformanceTracker,
) -> None:
    forged = [outcome(n, algorithm=f"forged-{n}", wait_seconds=1.0) for n in range(500)]
    tracker.record(forged, now=0.0)
    known = ["celery", "counting", "user", *BUILT_IN]
    tracker.record(
        [outcome(n, algorithm=name) for n, name in enumerate(known, 500)],
        now=0.0,
    )
    tries = {row.algorithm: row.tries for row in tracker.algorithms}
    assert tries == {OTHER: 500, **dict.fromkeys(known, 1)}
    assert {point.algorithm for point in tracker.curve} == {OTHER, *known}


@pytest.mark.parametrize("bound", ["max_task_types", "max_workers", "max_assignments"])
def test_a_bound_is_at_least_one(bound: str) -> None:
    with pytest.raises(ValueError, match=bound):
        TaskPerformanceTracker(CountingPolicy(), **{bound: 0})


def test_only_what_changed_is_handed_to_the_next_commit(tracker: TaskPerformanceTracker) -> None:
    tracker.record([outcome(0), outcome(1, task_type="infer")], now=0.0)
    first = tracker.take()
    tracker.record([outcome(2)], now=0.0)
    second = tracker.take()
    assert [row.task_type for row in first.aggregates.task_types] == ["infer", "train"]
    assert [(row.task_type, row.tries) for row in second.aggregates.task_types] == [("train", 2)]
    assert [o.task_id for o in second.outcomes] == ["task-2"]
    assert tracker.take() == type(second)()


def test_what_is_handed_out_does_not_change_afterwards(tracker: TaskPerformanceTracker) -> None:
    tracker.record([outcome(0)], now=0.0)
    pending, (seen,) = tracker.take(), tracker.task_types
    tracker.record([outcome(1)], now=0.0)
    assert pending.aggregates.task_types[0].tries == seen.tries == 1


def everything(tracker: TaskPerformanceTracker) -> Aggregates:
    return Aggregates(
        tracker.task_types,
        tracker.workers,
        tracker.assignments,
        tracker.services,
        tracker.algorithms,
        tracker.curve,
    )


def saved(tracker: TaskPerformanceTracker) -> Learned:
    state = json.loads(json.dumps(tracker.policy.state()))
    return Learned("1-0", (SavedPolicy("counting", 2, state, 0.0),), everything(tracker))


def test_a_restored_tracker_goes_on_as_if_nothing_had_happened() -> None:
    outcomes = stream(400)
    whole, first = (TaskPerformanceTracker(CountingPolicy()) for _ in range(2))
    whole.record(outcomes, now=0.0)
    first.record(outcomes[:150], now=0.0)
    second = TaskPerformanceTracker(CountingPolicy(seed=99))
    second.restore(saved(first))
    second.record(outcomes[150:], now=0.0)
    assert second.policy.state() == whole.policy.state()
    assert everything(second) == everything(whole)


def test_restoring_forgets_what_was_not_committed(tracker: TaskPerformanceTracker) -> None:
    blank = tracker.policy.state()
    tracker.record([outcome(0)], now=0.0)
    tracker.restore(Learned("0-0"))
    assert tracker.policy.state() == blank
    assert everything(tracker) == Aggregates(*((),) * 6)
    assert tracker.take().outcomes == ()
    assert len(tracker.record([outcome(0)], now=0.0).accepted) == 1


def test_an_unreadable_state_gives_way_to_an_older_one(
    tracker: TaskPerformanceTracker, caplog: pytest.LogCaptureFixture
) -> None:
    other = CountingPolicy()
    other.learn_one(outcome(0), now=0.0)
    tracker.restore(
        Learned(
            "1-0",
            (
                SavedPolicy("another", 1, {}, 3.0),
                SavedPolicy("counting", 9, {"format": 9}, 2.0),
                SavedPolicy("counting", 2, other.state(), 1.0),
            ),
        )
    )
    assert tracker.policy.state() == other.state()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_state_that_breaks_the_policy_leaves_it_as_it_began(
    tracker: TaskPerformanceTracker, caplog: pytest.LogCaptureFixture
) -> None:
    blank = tracker.policy.state()
    tracker.restore(Learned("1-0", (SavedPolicy("counting", 2, {"format": 2}, 2.0),)))
    assert tracker.policy.state() == blank
    assert tracker.policy_errors_count == 1
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


def test_restoring_leaves_the_saved_state_alone(tracker: TaskPerformanceTracker) -> None:
    class Sharing(CountingPolicy):
        name: ClassVar[str] = "counting"

        def restore(self, state: Any) -> None:
            super().restore(state)
            self.counts = state["counts"]

    state = {**CountingPolicy().state(), "counts": {"train": 5}}
    sharing = TaskPerformanceTracker(Sharing())
    sharing.restore(Learned("1-0", (SavedPolicy("counting", 2, state, 0.0),)))
    sharing.record([outcome(0)], now=0.0)
    assert state["counts"] == {"train": 5}
