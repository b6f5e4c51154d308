"""Families of what is kept in the database: tries by task type, worker, GPU model, algorithm."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from prometheus_client import Metric

from owl_celery.aggregates import (
    OTHER,
    AlgorithmStats,
    AssignmentStats,
    CurvePoint,
    ServiceStats,
    Tally,
    TaskTypeStats,
    WorkerStats,
)
from owl_celery.exporter.families import gauge, single
from owl_celery.exporter.labels import clean, names_kept, pooled
from owl_celery.metrics import MAX_GPU_MODELS, MAX_PAIRS, MAX_TASK_TYPES, MAX_WORKERS
from owl_celery.overview import Overview

Sums = dict[tuple[str, ...], Tally]

RECENT_PREDICTIONS: Final = 200
"""Latest predictions, at least, over which their error is averaged."""


def learned_families(overview: Overview, is_read: bool = True) -> Iterator[Metric]:
    """Families of the rows of the database.

    Parameters
    ----------
    is_read
        Whether the database was ever read: one that was not is none without tries.

    """
    task_types = pooled(
        overview.task_types, lambda row: clean(row.task_type), _tries, MAX_TASK_TYPES, OTHER
    )
    stats = [worker.stats for worker in overview.workers if worker.stats is not None]
    workers = pooled(stats, lambda row: clean(row.worker_id), _tries, MAX_WORKERS, OTHER)
    totals = overview.totals
    yield single("owl_task_types_count", totals.task_types if is_read else None)
    yield single("owl_total_tasks_processed", totals.tasks if is_read else None)
    yield single("owl_exploration_rate", (overview.exploration_rate or 0.0) if is_read else None)
    yield from _by_task_type(task_types)
    yield from _by_worker(workers)
    yield from _assignments(overview.assignments, task_types, workers)
    yield from _services(overview.services, task_types)
    yield from _algorithms(overview.algorithms, overview.curve)
    kept = names_kept(task_types)
    p99: dict[str, float] = {}
    for task_type, seconds in overview.p99_seconds.items():
        p99[kept(task_type)] = max(seconds, p99.get(kept(task_type), 0.0))
    yield gauge("owl_task_type_p99_seconds", (((name,), value) for name, value in p99.items()))


def _by_task_type(task_types: Mapping[str, Sequence[TaskTypeStats]]) -> Iterator[Metric]:
    sums: Sums = {(name,): _sum(rows) for name, rows in task_types.items()}
    yield gauge("owl_task_type_success_rate", _success_rates(sums))
    yield gauge(
        "owl_task_type_avg_duration",
        ((name, s.service_seconds / s.successes) for name, s in sums.items() if s.successes),
    )


def _by_worker(workers: Mapping[str, Sequence[WorkerStats]]) -> Iterator[Metric]:
    sums: Sums = {(name,): _sum(rows) for name, rows in workers.items()}
    yield gauge("owl_worker_task_count", ((name, s.tries) for name, s in sums.items()))
    yield gauge("owl_worker_success_rate", _success_rates(sums))


def _assignments(
    rows: Iterable[AssignmentStats], task_types: Mapping[str, object], workers: Mapping[str, object]
) -> Iterator[Metric]:
    task_type, worker = names_kept(task_types), names_kept(workers)
    pairs = pooled(
        rows,
        lambda row: (task_type(row.task_type), worker(row.worker_id)),
        _tries,
        MAX_PAIRS,
        (OTHER, OTHER),
    )
    sums: Sums = {pair: _sum(group) for pair, group in pairs.items()}
    yield gauge("owl_task_worker_assignments_count", ((pair, s.tries) for pair, s in sums.items()))
    yield gauge("owl_task_type_worker_success_rate", _success_rates(sums))


def _services(rows: Sequence[ServiceStats], task_types: Mapping[str, object]) -> Iterator[Metric]:
    def tries(row: ServiceStats) -> int:
        return row.count + row.failures

    task_type = names_kept(task_types)
    models = pooled(rows, lambda row: clean(row.gpu_model), tries, MAX_GPU_MODELS, OTHER)
    model = names_kept(models)
    pairs = pooled(
        rows,
        lambda row: (task_type(row.task_type), model(row.gpu_model)),
        tries,
        MAX_PAIRS,
        (OTHER, OTHER),
    )
    samples = {pair: sum(row.count for row in group) for pair, group in pairs.items()}
    yield gauge(
        "owl_service_seconds",
        (
            (pair, sum(row.count * row.mean_seconds for row in pairs[pair]) / count)
            for pair, count in samples.items()
            if count
        ),
    )
    yield gauge("owl_service_samples", samples.items())
    yield gauge(
        "owl_assignments_by_gpu_model",
        ((pair, sum(map(tries, group))) for pair, group in pairs.items()),
    )


def _algorithms(rows: Iterable[AlgorithmStats], curve: Sequence[CurvePoint]) -> Iterator[Metric]:
    yield gauge(
        "owl_routing_algorithm_avg_duration",
        (
            ((clean(row.algorithm),), row.response_seconds / row.responses)
            for row in rows
            if row.responses
        ),
    )
    yield gauge(
        "owl_prediction_error_ratio",
        (((clean(name),), ratio) for name, ratio in prediction_errors(curve).items()),
    )


def prediction_errors(curve: Sequence[CurvePoint]) -> dict[str, float]:
    """Mean absolute error of each algorithm's latest predictions, as a share of the mean.

    Parameters
    ----------
    curve
        Of any lengths of bucket; the shortest count.

    """
    shortest = min((point.bucket_seconds for point in curve), default=0)
    latest: dict[str, list[CurvePoint]] = defaultdict(list)
    for point in sorted(curve, key=lambda point: -point.started_at):
        points = latest[point.algorithm]
        if point.bucket_seconds != shortest or not point.predictions:
            continue
        if sum(p.predictions for p in points) < RECENT_PREDICTIONS:
            points.append(point)
    ratios = {}
    for algorithm, points in latest.items():
        predictions = sum(point.predictions for point in points)
        successes = sum(point.successes for point in points)
        seconds = sum(point.service_seconds for point in points)
        if predictions and seconds > 0.0:
            error = sum(point.predicted_error_seconds for point in points) / predictions
            ratios[algorithm] = error / (seconds / successes)
    return ratios


def _tries(row: Tally) -> int:
    return row.tries


def _sum(rows: Sequence[Tally]) -> Tally:
    if len(rows) == 1:
        return rows[0]
    return Tally(
        successes=sum(row.successes for row in rows),
        failures=sum(row.failures for row in rows),
        service_seconds=sum(row.service_seconds for row in rows),
    )


def _success_rates(sums: Sums) -> Iterator[tuple[tuple[str, ...], float]]:
    return ((name, s.successes / s.tries) for name, s in sums.items() if s.tries)
