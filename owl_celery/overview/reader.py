"""Puts together what is shown, from Redis and the database, for any number of readers."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Final, TypeVar

from owl_celery.aggregates import Aggregates, WorkerStats
from owl_celery.overview.health import health_of
from owl_celery.overview.improvement import response_ratio, service_ratio
from owl_celery.overview.kept import Kept, KeptReader
from owl_celery.overview.live import Live, LiveReader
from owl_celery.overview.load import queues_of, workers_of
from owl_celery.overview.tail import EventTail
from owl_celery.overview.totals import exploration_rate, totals_of
from owl_celery.overview.values import (
    Improvement,
    KnowledgeNow,
    Overview,
    QueueNow,
    Totals,
    WorkerNow,
)
from owl_celery.redis_state import RedisState
from owl_celery.settings import Settings
from owl_celery.store.base import Store
from owl_celery.types import TaskView
from owl_celery.wire import Heartbeat

CACHE_SECONDS: Final = 0.25
"""How long an overview is given again; the load view itself changes thirty times a second."""

COST_SHARE: Final = 0.1
MOST_SECONDS: Final = 1.0
"""Most of the time that is spent on making overviews, and the longest pause for that."""

DOWN_SECONDS: Final = 1.0
"""Pause before a Redis that does not answer is asked again."""

Answer = TypeVar("Answer")


class OverviewReader:
    """Reads what is shown of an application; for any thread, and cheap to ask often.

    It reads Redis and the database only, so that it tells the same in every process, whichever
    one leads. A database that hangs or fails leaves the last good copy in place, and a Redis that
    does not answer leaves the queues away; ``health`` says so.

    Parameters
    ----------
    state
        Redis of load and learning state.
    settings
        Ages at which the view counts as old.
    open_store
        Makes the store; called in a thread of ours. By default the store of the settings.
    clock
        Monotonic seconds.

    """

    def __init__(
        self,
        state: RedisState,
        settings: Settings,
        open_store: Callable[[], Store] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._state = state
        self._settings = settings
        self._clock = clock
        self._lock = threading.Lock()
        self._live = LiveReader(state, settings, clock)
        self._kept = KeptReader(open_store or self._store_of_settings, clock)
        self._tail = EventTail(state)
        self._last: Overview | None = None
        self._next_at = float("-inf")
        self._derived: _Derived | None = None
        self._known_workers: (
            tuple[Mapping[str, Heartbeat], Sequence[WorkerStats], tuple[WorkerNow, ...]] | None
        ) = None

    def read(self) -> Overview:
        """What is known now, at most a second old; never raises for a fault."""
        with self._lock:
            began = self._clock()
            if self._last is None or began >= self._next_at:
                self._last = self._build()
                ended = self._clock()
                pause = DOWN_SECONDS if self._last.is_redis_down else CACHE_SECONDS
                # With many queues, and on a slow machine, it is made anew less often.
                pause = max(pause, min((ended - began) / COST_SHARE, MOST_SECONDS))
                self._next_at = ended + pause
            return self._last

    def ask(self, question: Callable[[Store], Answer]) -> Answer:
        """Ask the store something that is in no overview, within a second.

        Raises
        ------
        StoreError
            When the database cannot be used, or does not answer in time.

        """
        return self._kept.ask(question)

    def close(self) -> None:
        """Close the connections to the database; the next use opens new ones."""
        self._kept.close()

    def _build(self) -> Overview:
        live = self._live.read()
        if not live.trouble:
            self._tail.follow()
        kept = self._kept.latest()
        rows = kept.aggregates
        workers = self._workers(live.heartbeats, rows.workers)
        queues = queues_of(live, workers, self._tail.begun)
        derived = self._derive(kept, live, queues)
        return Overview(
            read_at=time.time(),
            redis_time=live.redis_time,
            health=health_of(
                live, kept, queues, self._settings, database_kind(self._settings), _version()
            ),
            is_redis_down=bool(live.trouble),
            has_rows=kept.version >= 0,
            queues=queues,
            workers=workers,
            task_types=tuple(rows.task_types),
            assignments=tuple(rows.assignments),
            services=tuple(rows.services),
            algorithms=tuple(rows.algorithms),
            curve=tuple(rows.curve),
            totals=derived.totals,
            improvement=derived.improvement,
            exploration_rate=derived.exploration_rate,
            counters=live.counters,
            controller_counters=live.controller.counters if live.controller else {},
            own_counters={**self._live.redis.totals(), **self._kept.totals()},
            p99_seconds=kept.p99_seconds,
            knowledge=live.knowledge,
        )

    def _workers(
        self, heartbeats: Mapping[str, Heartbeat], rows: Sequence[WorkerStats]
    ) -> tuple[WorkerNow, ...]:
        """Of heartbeats that change once a second, and rows that change every other."""
        known = self._known_workers
        if known is None or known[0] is not heartbeats or known[1] is not rows:
            known = self._known_workers = heartbeats, rows, workers_of(heartbeats, rows)
        return known[2]

    def _derive(self, kept: Kept, live: Live, queues: tuple[QueueNow, ...]) -> _Derived:
        """What is computed of many rows, anew only when they have changed."""
        gpus: Counter[str] = Counter()
        for queue in queues:
            gpus[queue.gpu_model] += queue.concurrency
        policy = live.controller.policy if live.controller else self._settings.policy
        # A fleet that is out of sight for a moment does not undo the comparison with it.
        if not gpus and self._derived is not None:
            gpus = self._derived.gpus
        last = self._derived
        if (
            last is None
            or last.rows is not kept.aggregates
            or (last.gpus, last.policy)
            != (
                gpus,
                policy,
            )
        ):
            self._derived = _Derived(kept.aggregates, gpus, policy, live.knowledge)
        assert self._derived is not None
        return self._derived

    def _store_of_settings(self) -> Store:
        from owl_celery.store import open_store

        return open_store(self._settings, self._state.keys.namespace)


class _Derived:
    """What follows from one copy of the rows."""

    def __init__(
        self, rows: Aggregates, gpus: Counter[str], policy: str, knowledge: KnowledgeNow
    ) -> None:
        self.rows, self.gpus, self.policy = rows, gpus, policy
        self.totals: Totals = totals_of(rows)
        self.exploration_rate = exploration_rate(rows.curve, policy)
        self.improvement = Improvement(
            service_ratio(rows.services, gpus, predictions(knowledge)),
            response_ratio(rows.algorithms, policy),
        )


def predictions(knowledge: KnowledgeNow) -> Callable[[str, str], float | None]:
    """What the published knowledge predicts for a task of size 1, by task type and GPU model."""
    policy = knowledge.policy

    def predict(task_type: str, gpu_model: str) -> float | None:
        if policy is None:
            return None
        try:
            return policy.predict_seconds(TaskView(task_type), gpu_model)
        except Exception:
            # A policy of a user's own; without its prediction everything else is still shown.
            return None

    return predict


def database_kind(settings: Settings) -> str:
    """Name the kind of database that the settings ask for."""
    if settings.database_url is None:
        return "sqlite"
    scheme = settings.database_url.get_secret_value().strip().partition(":")[0].lower()
    return "sqlite" if scheme.startswith("sqlite") else "postgresql"


def _version() -> str:
    # By name: the package itself offers what is above this layer.
    return str(import_module("owl_celery").__version__)
