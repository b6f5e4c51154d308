from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from owl_celery.fleet import OVERRUN_SHARE, Fleet
from owl_celery.types import QueueView

seconds = st.floats(min_value=0.0, max_value=1e6)
views = st.builds(
    QueueView,
    name=st.uuids().map(str),
    gpu_model=st.sampled_from(["K80", "P100", "V100"]),
    concurrency=st.integers(1, 4),
    waiting_count=st.integers(0, 100),
    waiting_seconds=seconds,
    running=st.lists(st.tuples(seconds, seconds), max_size=6).map(tuple),
    free_memory_bytes=st.none() | st.integers(0, 2**40),
    is_open=st.booleans(),
)


def test_an_empty_fleet_is_allowed() -> None:
    fleet = Fleet([], [])

    assert len(fleet) == 0
    assert fleet.models == ()
    assert fleet.wait_seconds(0.0).shape == (0,)


def test_models_are_pooled_and_sorted() -> None:
    fleet = Fleet(["a", "b", "c"], ["V100", "K80", "V100"])

    assert fleet.models == ("K80", "V100")
    assert [fleet.gpu_model(row) for row in range(3)] == ["V100", "K80", "V100"]


def test_a_new_fleet_is_open_and_idle() -> None:
    fleet = Fleet(["a", "b"], ["V100", "V100"], [1, 3])

    assert fleet.is_open.all()
    assert fleet.wait_seconds(0.0).tolist() == [0.0, 0.0]
    assert fleet.running_count().tolist() == [0, 0]
    assert np.isnan(fleet.free_memory_bytes).all()


def test_names_and_models_must_match() -> None:
    with pytest.raises(ValueError, match="1 names but 2 GPU models"):
        Fleet(["a"], ["V100", "K80"])


def test_names_must_be_distinct() -> None:
    with pytest.raises(ValueError, match="distinct"):
        Fleet(["a", "a"], ["V100", "K80"])


@pytest.mark.parametrize("concurrency", [[0], [-1], [1, 1]])
def test_every_queue_runs_at_least_one_task(concurrency: list[int]) -> None:
    with pytest.raises(ValueError, match="concurrency"):
        Fleet(["a"], ["V100"], concurrency)


def test_columns_hold_what_the_views_say() -> None:
    fleet = Fleet.of(
        [
            QueueView("a", "V100", waiting_count=2, waiting_seconds=5.0, free_memory_bytes=2**30),
            QueueView("b", "cpu", concurrency=2, running=((4.0, 1.0),), is_open=False),
        ],
        now=100.0,
    )

    assert fleet.names == ("a", "b")
    assert fleet.waiting_count.tolist() == [2, 0]
    assert fleet.waiting_seconds.tolist() == [5.0, 0.0]
    assert fleet.is_open.tolist() == [True, False]
    assert fleet.free_memory_bytes[0] == 2**30
    assert fleet.running_count().tolist() == [0, 1]
    assert fleet.running_since[1, 0] == 99.0


def test_what_runs_counts_with_the_rest_of_its_prediction() -> None:
    fleet = Fleet.of([QueueView("a", "V100", running=((10.0, 4.0),))], now=50.0)

    assert fleet.residual_seconds(50.0).tolist() == [6.0]
    assert fleet.residual_seconds(52.0).tolist() == [4.0]


def test_a_task_that_outlives_its_prediction_is_expected_to_go_on() -> None:
    fleet = Fleet.of([QueueView("a", "V100", running=((1.0, 10.0),))])

    assert fleet.residual_seconds(0.0) == pytest.approx([OVERRUN_SHARE * 10.0])


def test_a_clock_that_went_back_adds_nothing() -> None:
    fleet = Fleet.of([QueueView("a", "V100", running=((10.0, 0.0),))], now=50.0)

    assert fleet.residual_seconds(now=-3_600.0).tolist() == [10.0]


def test_a_queue_with_a_free_slot_has_no_wait() -> None:
    one_runs = QueueView("a", "cpu", concurrency=2, running=((9.0, 0.0),))
    both_run = QueueView("b", "cpu", concurrency=2, running=((9.0, 0.0), (5.0, 0.0)))

    assert Fleet.of([one_runs, both_run]).wait_seconds(0.0).tolist() == [0.0, 7.0]


def test_a_running_task_without_a_prediction_is_running_all_the_same() -> None:
    fleet = Fleet.of([QueueView("a", "V100", running=((0.0, 10.0),))])

    assert fleet.running_count().tolist() == [1]
    assert fleet.wait_seconds(0.0) == pytest.approx([OVERRUN_SHARE * 10.0])


@given(
    st.lists(views, max_size=6, unique_by=lambda view: view.name),
    st.floats(min_value=-1e9, max_value=1e9),
)
def test_waits_are_finite_and_not_negative(queues: list[QueueView], now: float) -> None:
    waits = Fleet.of(queues, now=0.0).wait_seconds(now)

    assert np.isfinite(waits).all()
    assert (waits >= 0.0).all()


@given(views, seconds)
def test_more_waiting_work_never_shortens_the_wait(view: QueueView, more: float) -> None:
    fleet = Fleet.of([view])
    before = fleet.wait_seconds(0.0)[0]

    fleet.waiting_count[0] += 1
    fleet.waiting_seconds[0] += more

    assert fleet.wait_seconds(0.0)[0] >= before
