"""What a worker says that it holds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from celery.worker import state
from kombu.utils.limits import TokenBucket

from owl_celery.heartbeat import held_by


class Request:
    """The part of Celery's that is looked at."""

    def __init__(self, id: str) -> None:
        self.id = id


def test_a_task_that_waits_for_its_rate_limit_is_held() -> None:
    bucket: Any = TokenBucket(0.1)  # type: ignore[no-untyped-call]
    bucket.add((Request("limited"), 1))
    consumer = SimpleNamespace(task_buckets={"slow": bucket, "fast": None})
    running = Request("b"), Request("a")
    try:
        state.reserved_requests.update(running)

        assert held_by(consumer) == ("a", "b", "limited")
        assert held_by(None) == ("a", "b")
    finally:
        state.reserved_requests.difference_update(running)
