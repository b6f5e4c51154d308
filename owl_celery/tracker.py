"""Outcomes in, learning out: feeds the policy and keeps the aggregates, all of it bounded."""

from __future__ import annotations

import copy
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from owl_celery.aggregates import (
    OTHER,
    Aggregates,
    AlgorithmStats,
    AssignmentStats,
    CurvePoint,
    Learned,
    ServiceStats,
    TaskTypeStats,
    WorkerStats,
)
from owl_celery.book import CURVE_BUCKETS, Book
from owl_celery.errors import StateError
from owl_celery.policies import policy_names
from owl_celery.policies.base import Policy
from owl_celery.requirements import Requirements, derive
from owl_celery.sanity import sane
from owl_celery.types import Outcome, TaskView

logger = logging.getLogger(__name__)

NO_POLICY: Final = ("celery", "user")
"""What stands for an algorithm where no policy chose: Celery fell back, or the user did."""

MAX_RECENT_KEYS: Final = 100_000
EXPLORATION_TRIES: Final = 200


@dataclass(frozen=True, slots=True)
class Batch:
    """What became of the outcomes given to ``TaskPerformanceTracker.record``.

    Parameters
    ----------
    accepted
        Learned from, in order, with names cut to their longest.
    duplicates
        Left out: another report of the same try came first.
    refused
        Left out: a value is not of its kind or absurd, such as a negative duration.

    """

    accepted: tuple[Outcome, ...] = ()
    duplicates: int = 0
    refused: int = 0


@dataclass(frozen=True, slots=True)
class Pending:
    """What the next commit has to write: outcomes accepted and rows changed since the last."""

    outcomes: tuple[Outcome, ...] = ()
    aggregates: Aggregates = field(default_factory=Aggregates)


class TaskPerformanceTracker:
    """Learns from outcomes and remembers how tasks, workers and algorithms performed.

    One thread, the controller's, calls ``restore``, ``record`` and ``take``; any thread may read
    the properties and ``requirements``. Nothing here does I/O.

    Parameters
    ----------
    policy
        Learns from every accepted outcome of a try on a known GPU model.
    max_task_types, max_workers, max_assignments
        Rows kept of each kind, >= 1; what comes later is pooled under ``other``. Algorithms have
        a row each when they are installed here, and are pooled otherwise.

    Attributes
    ----------
    duplicates_count, refused_count
        Outcomes left out since this object was made; see ``Batch``.
    policy_errors_count
        Outcomes and saved states on which the policy failed, since this object was made.

    """

    def __init__(
        self,
        policy: Policy,
        *,
        max_task_types: int = 500,
        max_workers: int = 2_000,
        max_assignments: int = 20_000,
    ) -> None:
        if min(max_task_types, max_workers, max_assignments) < 1:
            raise ValueError("max_task_types, max_workers and max_assignments must be at least 1")
        self.policy = policy
        self.max_task_types = max_task_types
        self.max_workers = max_workers
        self.max_assignments = max_assignments
        self.duplicates_count = 0
        self.refused_count = 0
        self.policy_errors_count = 0
        self._untaught = copy.deepcopy(dict(policy.state()))
        self._lock = threading.Lock()
        self._recent: OrderedDict[str, None] = OrderedDict()
        self._accepted: list[Outcome] = []
        algorithms = {*policy_names(), policy.name, *NO_POLICY}
        self._book = Book(max_task_types, max_workers, max_assignments, algorithms)

    def restore(self, learned: Learned) -> None:
        """Continue from what was committed and forget all that was not.

        A saved state of the policy that this release cannot read stays as it is in the store and
        is named in the log; the latest readable one counts, and without any the policy starts as
        it was when this object was made.
        """
        with self._lock:
            self._recent.clear()
            self._accepted.clear()
            self._book.fill(learned.aggregates)
            for saved in learned.policies:
                if saved.name == self.policy.name and self._restore_policy(saved.state):
                    return
            self.policy.restore(copy.deepcopy(self._untaught))

    def _restore_policy(self, state: Mapping[str, Any]) -> bool:
        try:
            self.policy.restore(copy.deepcopy(dict(state)))
        except StateError as error:
            logger.warning("A saved state of policy %s is not used: %s", self.policy.name, error)
            return False
        except Exception:
            logger.exception("A saved state of policy %s cannot be restored", self.policy.name)
            self.policy_errors_count += 1
            return False
        return True

    def record(
        self, outcomes: Sequence[Outcome], now: float, known: Collection[str] = frozenset()
    ) -> Batch:
        """Learn from outcomes; of several reports of one try the first counts.

        Parameters
        ----------
        outcomes
            In the order of the stream.
        now
            The policy's clock, seconds.
        known
            Those of their keys of which the store has an outcome already, by ``Store.known``.

        """
        accepted: list[Outcome] = []
        duplicates = refused = 0
        with self._lock:
            for reported in outcomes:
                outcome = sane(reported)
                if outcome is None:
                    refused += 1
                elif self._is_duplicate(outcome.key, known):
                    duplicates += 1
                else:
                    accepted.append(outcome)
                    self._teach(outcome, now)
                    self._book.count(outcome)
            self._accepted += accepted
            self.duplicates_count += duplicates
            self.refused_count += refused
        return Batch(tuple(accepted), duplicates, refused)

    def take(self) -> Pending:
        """Hand over what the next commit has to write.

        It counts as written from now on: after a commit that failed, ``restore`` from the store
        and read the outcomes again from the stream.
        """
        with self._lock:
            pending = Pending(tuple(self._accepted), self._book.take())
            self._accepted.clear()
        return pending

    def requirements(
        self,
        task_type: str,
        predict: Callable[[str, str], float | None] | None = None,
        memory_bytes: Mapping[str, int] | None = None,
    ) -> Requirements:
        """Say what is known of the hardware that a task type needs.

        ``LearnedRequirements`` says the same in any other process, from the store.

        Parameters
        ----------
        predict
            Service time expected of a task type on a GPU model. The policy's own when omitted,
            together with what it knows of failures and memory, which is right in the thread that
            teaches it only.
        memory_bytes
            Total memory of a GPU, by GPU model, where known.

        """
        prior = self.policy.export_prior() if predict is None else None
        pairs = [pair for pair in prior.pairs if pair.task_type == task_type] if prior else []
        with self._lock:
            totals = self._book.task_types.get((task_type,))
            services = [row for row in self._book.services.copies() if row.task_type == task_type]
            gpu_models = sorted(self._book.gpu_models)
        predict = predict or self._predict
        predicted = {m: predict(task_type, m) for m in gpu_models}
        return derive(task_type, totals, services, predicted, pairs, memory_bytes)

    def _predict(self, task_type: str, gpu_model: str) -> float | None:
        return self.policy.predict_seconds(TaskView(task_type), gpu_model)

    @property
    def task_types(self) -> tuple[TaskTypeStats, ...]:
        """Every task type, in order of appearance."""
        with self._lock:
            return self._book.task_types.copies()

    @property
    def workers(self) -> tuple[WorkerStats, ...]:
        """Every worker, in order of appearance."""
        with self._lock:
            return self._book.workers.copies()

    @property
    def assignments(self) -> tuple[AssignmentStats, ...]:
        """Every pair of task type and worker that has met."""
        with self._lock:
            return self._book.assignments.copies()

    @property
    def services(self) -> tuple[ServiceStats, ...]:
        """Every pair of task type and GPU model that has met."""
        with self._lock:
            return self._book.services.copies()

    @property
    def algorithms(self) -> tuple[AlgorithmStats, ...]:
        """Every routing algorithm, in order of appearance."""
        with self._lock:
            return self._book.algorithms.copies()

    @property
    def curve(self) -> tuple[CurvePoint, ...]:
        """The learning curve, by length of bucket, time and algorithm."""
        with self._lock:
            points = self._book.curve.copies()
        return tuple(sorted(points, key=lambda p: (p.bucket_seconds, p.started_at, p.algorithm)))

    @property
    def total_tasks_processed(self) -> int:
        """Tries that succeeded or failed, ever."""
        return sum(row.tries for row in self.task_types)

    @property
    def task_types_count(self) -> int:
        """Task types with a row of their own."""
        return sum(row.task_type != OTHER for row in self.task_types)

    @property
    def workers_count(self) -> int:
        """Workers with a row of their own."""
        return sum(row.worker_id != OTHER for row in self.workers)

    @property
    def success_rate(self) -> float | None:
        """Share of all tries that succeeded, 0-1; None before the first."""
        rows = self.task_types
        tries = sum(row.tries for row in rows)
        return sum(row.successes for row in rows) / tries if tries else None

    @property
    def mean_service_seconds(self) -> float | None:
        """Mean service time of all successful tries; None before the first."""
        rows = self.task_types
        successes = sum(row.successes for row in rows)
        return sum(row.service_seconds for row in rows) / successes if successes else None

    @property
    def mean_response_seconds(self) -> float | None:
        """Mean of wait plus service of all successful tries with a known wait; None before any."""
        rows = self.algorithms
        responses = sum(row.responses for row in rows)
        return sum(row.response_seconds for row in rows) / responses if responses else None

    @property
    def exploration_rate(self) -> float | None:
        """Share that explored of the policy's latest tries, 200 or so; None before the first."""
        tries = explored = 0
        for point in reversed(self.curve):
            if point.algorithm == self.policy.name and point.bucket_seconds == min(CURVE_BUCKETS):
                tries += point.tries + point.revoked
                explored += point.explored
                if tries >= EXPLORATION_TRIES:
                    break
        return explored / tries if tries else None

    def _is_duplicate(self, key: str, known: Collection[str]) -> bool:
        if key in self._recent or key in known:
            return True
        self._recent[key] = None
        if len(self._recent) > MAX_RECENT_KEYS:
            self._recent.popitem(last=False)
        return False

    def _teach(self, outcome: Outcome, now: float) -> None:
        # A plain Celery worker names no GPU model, and there is nothing to learn of "".
        if not outcome.gpu_model:
            return
        try:
            self.policy.learn_one(outcome, now)
        except Exception:
            # One outcome that a policy stumbles over must not hold up the stream for ever.
            if self.policy_errors_count == 0:
                logger.exception("Policy %s failed to learn from an outcome", self.policy.name)
            self.policy_errors_count += 1
