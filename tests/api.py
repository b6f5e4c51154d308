"""The API over a real Redis and a real SQLite database, on a free port."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from owl_celery.api.app import create_app
from owl_celery.api.gate import Limits
from owl_celery.api.server import ApiServer
from owl_celery.controller.health import Health
from owl_celery.keys import Keys
from owl_celery.overview import OverviewReader
from owl_celery.policies.expected_completion import ExpectedCompletion
from owl_celery.redis_state import RedisState
from owl_celery.settings import Settings
from owl_celery.store import open_store
from owl_celery.store.base import Store
from owl_celery.testing import wait_until
from owl_celery.tracker import TaskPerformanceTracker
from owl_celery.types import Outcome, QueueView
from owl_celery.wire import Heartbeat
from tests.published import Publisher

NAMESPACE = "app"
TOKEN = "a-token-of-the-tests"
UNLIMITED = Limits(requests_per_second=1e6, burst=1_000_000)


def learn(store: Store, outcomes: Sequence[Outcome]) -> ExpectedCompletion:
    """Commit outcomes as a controller does; gives the policy that has learned from them."""
    tracker = TaskPerformanceTracker(ExpectedCompletion(seed=1))
    learned = store.load()
    tracker.restore(learned)
    tracker.record(outcomes, now=0.0)
    pending = tracker.take()
    store.commit(
        expected_cursor=learned.cursor,
        cursor=f"{int(learned.cursor.partition('-')[0]) + 1}-0",
        outcomes=pending.outcomes,
        policy_name=tracker.policy.name,
        policy_state=tracker.policy.state(),
        aggregates=pending.aggregates,
    )
    assert isinstance(tracker.policy, ExpectedCompletion)
    return tracker.policy


class Site:
    """One application as its API sees it: Redis, database, and what a controller published."""

    def __init__(self, redis_url: str, folder: Path, **fields: Any) -> None:
        fields.setdefault("database_url", f"sqlite:///{folder}/owl.sqlite3")
        # What a test publishes once must not grow old on a slow machine.
        fields.setdefault("view_stale_seconds", 600.0)
        fields.setdefault("view_dead_seconds", 600.0)
        self.settings = Settings.load(redis_url=redis_url, namespace=NAMESPACE, **fields)
        self.state = RedisState(redis_url, Keys(NAMESPACE))
        self.reader = OverviewReader(self.state, self.settings)
        self.store = open_store(self.settings)
        self.publisher = Publisher(self.state)

    def app(self, limits: Limits = UNLIMITED) -> FastAPI:
        """A fresh application."""
        return create_app(self.settings, self.state, self.reader, limits)

    @contextmanager
    def served(self, limits: Limits = UNLIMITED, **headers: str) -> Iterator[httpx.Client]:
        """A client of a fresh server on a free port; the database has answered, or failed."""
        wait_until(
            lambda: self.reader.read().health.database.status != "unread", "the database", 30.0
        )
        server = ApiServer(self.app(limits), "127.0.0.1", 0)
        server.start()
        try:
            with httpx.Client(base_url=server.url, headers=headers, timeout=10.0) as client:
                yield client
        finally:
            server.stop()

    def publish(
        self, queues: Sequence[QueueView], policy: ExpectedCompletion | None = None
    ) -> None:
        """Publish a view and health, and the heartbeat of one worker for each queue."""
        snapshot = policy.snapshot() if policy else None
        self.publisher.publish(queues, policy.name if policy else "shortest_queue", snapshot)
        health = Health(controller="host:1", active_since=1.0, policy="expected_completion")
        self.state.client.set(self.state.keys.health, health.encode())
        for index, queue in enumerate(queues):
            beat = Heartbeat(f"gpu{index}@a", queue.name, queue.gpu_model)
            self.state.client.set(self.state.keys.heartbeat(beat.node), beat.encode(), px=60_000)
            self.state.client.sadd(self.state.keys.nodes, beat.node)

    def close(self) -> None:
        """Close the database."""
        self.reader.close()
        self.store.close()
