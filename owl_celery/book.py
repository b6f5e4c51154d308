"""The rows of the aggregates in memory: counted into, bounded, and handed over when changed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import fields
from functools import partial
from operator import attrgetter
from typing import Any, Final, Generic, TypeVar

from owl_celery.aggregates import (
    OTHER,
    Aggregates,
    AlgorithmStats,
    AssignmentStats,
    CurvePoint,
    ServiceStats,
    Tally,
    TaskTypeStats,
    WorkerStats,
)
from owl_celery.types import Outcome

MAX_GPU_MODELS: Final = 64
CURVE_BUCKETS: Final[Mapping[int, int]] = {60: 1_440, 3_600: 2_160}
"""Buckets of the learning curve that are kept, by length: a day by minute, 90 days by hour."""

Key = tuple[Any, ...]
Row = TypeVar("Row")


class Table(Generic[Row]):
    """Rows by key, and the keys of those that changed since they were last taken.

    Parameters
    ----------
    kind
        Class of the rows, a dataclass.
    key_names
        Fields that make up the key.

    """

    def __init__(self, kind: Callable[..., Row], *key_names: str) -> None:
        self.rows: dict[Key, Row] = {}
        self._kind = kind
        self._key_names = key_names
        self._values_of = attrgetter(*(field.name for field in fields(kind)))  # type: ignore[arg-type]
        self._dirty: set[Key] = set()

    def _copy(self, row: Row) -> Row:
        return self._kind(*self._values_of(row))

    def _key(self, row: Row) -> Key:
        return tuple(getattr(row, name) for name in self._key_names)

    def within(self, key: Key, limit: int) -> Key:
        """The key while there is room for it; beyond the limit ``other`` in each place."""
        if key in self.rows or len(self.rows) < limit:
            return key
        return (OTHER,) * len(key)

    def row(self, key: Key) -> Row:
        """The row of a key, made when it is new, and marked as changed."""
        self._dirty.add(key)
        row = self.rows.get(key)
        if row is None:
            row = self.rows[key] = self._kind(**dict(zip(self._key_names, key, strict=True)))
        return row

    def get(self, key: Key) -> Row | None:
        """A copy of the row of a key; None when there is none."""
        row = self.rows.get(key)
        return None if row is None else self._copy(row)

    def forget(self, is_old: Callable[[Key], bool]) -> None:
        """Drop rows by key."""
        for key in [key for key in self.rows if is_old(key)]:
            del self.rows[key]
            self._dirty.discard(key)

    def take(self) -> tuple[Row, ...]:
        """Copies of the changed rows by key; they count as unchanged from now on."""
        taken = tuple(self._copy(self.rows[key]) for key in sorted(self._dirty))
        self._dirty.clear()
        return taken

    def copies(self) -> tuple[Row, ...]:
        """Copies of all rows, in order of appearance."""
        return tuple(self._copy(row) for row in self.rows.values())

    def fill(self, rows: Iterable[Row]) -> None:
        """Hold copies of these rows and no others, unchanged."""
        self._dirty.clear()
        self.rows.clear()
        self.merge(rows)

    def merge(self, rows: Iterable[Row]) -> None:
        """Put copies of these rows in the place of those with the same key."""
        self.rows |= {self._key(row): self._copy(row) for row in rows}


class Book:
    """Every aggregate of one application; not safe for several threads.

    Parameters
    ----------
    max_task_types, max_workers, max_assignments
        Rows of each kind, beyond which newcomers are pooled under ``other``.
    algorithms
        Those that have a row of their own; all others are pooled under ``other``.

    """

    def __init__(
        self,
        max_task_types: int = 500,
        max_workers: int = 2_000,
        max_assignments: int = 20_000,
        algorithms: Collection[str] = (),
    ) -> None:
        self._limits = (max_task_types, max_workers, max_assignments)
        self._known_algorithms = frozenset(algorithms)
        self.task_types = Table(TaskTypeStats, "task_type")
        self.workers = Table(WorkerStats, "worker_id")
        self.assignments = Table(AssignmentStats, "task_type", "worker_id")
        self.services = Table(ServiceStats, "task_type", "gpu_model")
        self.algorithms = Table(AlgorithmStats, "algorithm")
        self.curve = Table(CurvePoint, "bucket_seconds", "started_at", "algorithm")
        self.gpu_models: set[str] = set()
        self._starts: dict[int, set[int]] = {length: set() for length in CURVE_BUCKETS}

    def count(self, outcome: Outcome) -> None:
        """Count one outcome into every row that it concerns."""
        max_task_types, max_workers, max_assignments = self._limits
        (task_type,) = self.task_types.within((outcome.task_type,), max_task_types)
        kind = self.task_types.row((task_type,))
        _tally(kind, outcome)
        kind.out_of_memory += outcome.out_of_memory

        (worker_id,) = self.workers.within((outcome.worker_id,), max_workers)
        worker = self.workers.row((worker_id,))
        worker.gpu_model = OTHER if worker_id == OTHER else outcome.gpu_model
        _tally(worker, outcome)

        pair = self.assignments.within((task_type, worker_id), max_assignments)
        _tally(self.assignments.row(pair), outcome)

        if outcome.gpu_model:
            self._count_service(outcome, task_type)
        self._count_algorithm(outcome)

    def _count_service(self, outcome: Outcome, task_type: str) -> None:
        gpu_model = outcome.gpu_model
        if gpu_model not in self.gpu_models and len(self.gpu_models) >= MAX_GPU_MODELS:
            gpu_model = OTHER
        self.gpu_models.add(gpu_model)
        service = self.services.row((task_type, gpu_model))
        if outcome.state.succeeded:
            service.add(outcome.service_seconds / outcome.size)
        elif outcome.counts_as_failure:
            service.failures += 1
            service.out_of_memory += outcome.out_of_memory
        if outcome.peak_memory_bytes is not None:
            service.peak_memory_bytes = max(
                service.peak_memory_bytes or 0, outcome.peak_memory_bytes
            )

    def _count_algorithm(self, outcome: Outcome) -> None:
        # The name comes from a message header: forged ones must not take the place of ours.
        algorithm = outcome.algorithm if outcome.algorithm in self._known_algorithms else OTHER
        _judge(self.algorithms.row((algorithm,)), outcome)
        for length in CURVE_BUCKETS:
            start = int(outcome.finished_at) // length * length
            if self._has_room(length, start):
                _judge(self.curve.row((length, start, algorithm)), outcome)

    def _has_room(self, length: int, start: int) -> bool:
        """Make room for a bucket by dropping the oldest; False when this is the oldest."""
        starts = self._starts[length]
        starts.add(start)
        if len(starts) > CURVE_BUCKETS[length]:
            self.trim()
        return start in starts

    def trim(self) -> None:
        """Drop the oldest buckets of the learning curve beyond those that are kept."""
        for length, starts in self._starts.items():
            for start in sorted(starts)[: max(len(starts) - CURVE_BUCKETS[length], 0)]:
                starts.discard(start)
                self.curve.forget(partial(_is_in_bucket, length, start))

    def take(self) -> Aggregates:
        """Copies of the rows that changed since this was last called."""
        return Aggregates(
            task_types=self.task_types.take(),
            workers=self.workers.take(),
            assignments=self.assignments.take(),
            services=self.services.take(),
            algorithms=self.algorithms.take(),
            curve=self.curve.take(),
        )

    def all(self) -> Aggregates:
        """Copies of all rows."""
        return Aggregates(
            task_types=self.task_types.copies(),
            workers=self.workers.copies(),
            assignments=self.assignments.copies(),
            services=self.services.copies(),
            algorithms=self.algorithms.copies(),
            curve=self.curve.copies(),
        )

    def fill(self, rows: Aggregates) -> None:
        """Hold copies of these rows and no others, unchanged."""
        self.task_types.fill(rows.task_types)
        self.workers.fill(rows.workers)
        self.assignments.fill(rows.assignments)
        self.services.fill(rows.services)
        self.algorithms.fill(rows.algorithms)
        self.curve.fill(rows.curve)
        self._index()

    def merge(self, rows: Aggregates) -> None:
        """Put copies of these rows in the place of those with the same key."""
        self.task_types.merge(rows.task_types)
        self.workers.merge(rows.workers)
        self.assignments.merge(rows.assignments)
        self.services.merge(rows.services)
        self.algorithms.merge(rows.algorithms)
        self.curve.merge(rows.curve)
        self._index()

    def _index(self) -> None:
        self.gpu_models = {gpu_model for _, gpu_model in self.services.rows}
        for length, starts in self._starts.items():
            starts.clear()
            starts.update(key[1] for key in self.curve.rows if key[0] == length)


def _is_in_bucket(length: int, start: int, key: Key) -> bool:
    return bool(key[0] == length and key[1] == start)


def _tally(row: Tally, outcome: Outcome) -> None:
    if outcome.state.succeeded:
        row.successes += 1
        row.service_seconds += outcome.service_seconds
    elif outcome.counts_as_failure:
        row.failures += 1
    else:
        row.revoked += 1
    row.last_finished_at = max(row.last_finished_at, outcome.finished_at)


def _judge(row: AlgorithmStats, outcome: Outcome) -> None:
    _tally(row, outcome)
    row.explored += outcome.explored
    if not outcome.state.succeeded:
        return
    if outcome.wait_seconds is not None:
        response_seconds = outcome.wait_seconds + outcome.service_seconds
        row.responses += 1
        row.response_seconds += response_seconds
        row.response_squared += response_seconds * response_seconds
    if outcome.predicted_seconds is not None:
        row.predictions += 1
        row.predicted_error_seconds += abs(outcome.predicted_seconds - outcome.service_seconds)
