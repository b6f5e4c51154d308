"""Clocks of producers and workers that are an hour wrong, or jump."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery

from owl_celery.controller.events import entries_of
from owl_celery.feedback import Feedback
from owl_celery.gpus import current_gpu
from owl_celery.keys import Keys
from owl_celery.redis_state import RedisState
from owl_celery.settings import Settings
from owl_celery.sync import ProducerSync
from owl_celery.types import Outcome
from owl_celery.wire import TaskHeader, encode_event
from tests.learning import outcome

HOUR = 3600.0
AT = 1_700_000_000.0


def arrived(finished_at: float, wait_seconds: float | None) -> Outcome:
    """An outcome as it is read, when it was added to the stream at ``AT``."""
    sent = replace(outcome(0), finished_at=finished_at, wait_seconds=wait_seconds)
    (entry,) = entries_of([(f"{AT * 1000:.0f}-0", {"e": encode_event(sent)})])
    assert isinstance(entry.event, Outcome)
    return entry.event


def test_a_worker_an_hour_ahead_reports_no_hour_of_waiting() -> None:
    read = arrived(AT + HOUR, 0.5 + HOUR)
    assert (read.finished_at, read.wait_seconds) == (AT, 0.5)


def test_an_outcome_that_waited_for_redis_keeps_its_times() -> None:
    read = arrived(AT - HOUR, 0.5)
    assert (read.finished_at, read.wait_seconds) == (AT - HOUR, 0.5)


def test_an_unknown_wait_stays_unknown() -> None:
    assert arrived(AT + HOUR, None).wait_seconds is None


def test_a_producer_dates_tasks_by_the_clock_of_redis_when_its_own_jumps(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = RedisState(redis_url, Keys("test"))
    sync = ProducerSync(state, Settings())
    sync.flush()
    seconds, _ = state.client.time()
    monkeypatch.setattr("time.time", lambda: seconds - HOUR)
    assert sync.wall_time() == pytest.approx(seconds, abs=10.0)


def test_a_producer_that_has_not_reached_redis_uses_its_own_clock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sync = ProducerSync(RedisState("redis://127.0.0.1:1/0", Keys("test")), Settings())
    monkeypatch.setattr("time.time", lambda: AT)
    assert sync.wall_time() == AT


def test_a_clock_that_is_set_right_while_a_task_runs_reports_no_hour_of_waiting() -> None:
    clocks = {"monotonic": 100.0, "wall": AT + HOUR}
    sent: list[Any] = []
    app = Celery("clocks", set_as_current=False)
    feedback = Feedback(
        app,
        SimpleNamespace(put=sent.append),  # type: ignore[arg-type]
        current_gpu(),
        clock=lambda: clocks["monotonic"],
        wall_clock=lambda: clocks["wall"],
    )

    @app.task(name="work", shared=False)
    def task() -> None:
        """Do nothing."""

    header = TaskHeader("d1", "gpu.a.0", "q_learning", "work", published_at=AT - 0.5)
    task.push_request(id="t1", hostname="gpu0@a", called_directly=False, owl=header.encode())
    feedback.prerun("t1", task)
    clocks.update(monotonic=101.0, wall=AT + 1.0)
    feedback.postrun("t1", state="SUCCESS")
    task.pop_request()
    app.close()
    (ended,) = [event for event in sent if isinstance(event, Outcome)]
    assert (ended.service_seconds, ended.wait_seconds) == (1.0, 0.5)
