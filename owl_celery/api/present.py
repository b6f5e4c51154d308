"""From the values of the overview to the bodies of answers."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from owl_celery.aggregates import AlgorithmStats, CurvePoint, Tally, TaskTypeStats
from owl_celery.api.models import (
    AlgorithmBody,
    AlternativeBody,
    CellBody,
    ControllerBody,
    CurveBody,
    DatabaseBody,
    DecisionBody,
    FleetBody,
    GpuBody,
    HealthBody,
    ImprovementBody,
    PerformanceBody,
    QueueBody,
    RatioBody,
    ReasonBody,
    RunningBody,
    TaskTypeBody,
    TotalsBody,
    WorkerBody,
)
from owl_celery.overview.decisions import Explained
from owl_celery.overview.matrix import Cell
from owl_celery.overview.values import GpuNow, HealthNow, Overview, QueueNow, Ratio, WorkerNow

MOST_ROWS: Final = 200
MOST_QUEUES: Final = 1_000
CURVE_POINTS: Final = 720
LAST_TIME: Final = 253_402_300_799.0


def time_of(seconds: float) -> datetime | None:
    """A Unix time; None for one that stands for never, or that no calendar has."""
    return datetime.fromtimestamp(seconds, UTC) if 0.0 < seconds <= LAST_TIME else None


def health_body(health: HealthNow) -> HealthBody:
    """Of ``/health``."""
    controller = health.controller
    return HealthBody.model_construct(
        status=health.status.value,
        reasons=[
            ReasonBody.model_construct(part=reason.part, sentence=reason.sentence)
            for reason in health.reasons
        ],
        mode=health.mode,
        view_age_seconds=rounded(health.view_age_seconds),
        controller=None
        if controller is None
        else ControllerBody.model_construct(
            name=controller.name,
            active_since=time_of(controller.active_since),
            policy=controller.policy,
            tick_seconds=controller.tick_seconds,
        ),
        database=DatabaseBody.model_construct(
            status=health.database.status, kind=health.database.kind
        ),
        stream_lag_seconds=health.stream_lag_seconds,
        queues=health.queues,
        open_queues=health.open_queues,
        waiting_count=health.waiting_count,
        backlog_seconds=rounded(health.backlog_seconds),
        running_count=health.running_count,
        version=health.version,
    )


def queue_body(queue: QueueNow) -> QueueBody:
    """Of one queue."""
    return QueueBody.model_construct(
        name=queue.name,
        gpu_model=queue.gpu_model,
        worker_ids=list(queue.worker_ids),
        concurrency=queue.concurrency,
        is_open=queue.is_open,
        is_drained=queue.is_drained,
        waiting_count=queue.waiting_count,
        waiting_seconds=rounded(queue.waiting_seconds),
        backlog_seconds=rounded(queue.backlog_seconds),
        running_count=len(queue.running),
        running=[
            RunningBody.model_construct(
                task_id=task.task_id,
                task_type=task.task_type,
                predicted_seconds=rounded(task.predicted_seconds),
                elapsed_seconds=rounded(task.elapsed_seconds),
            )
            for task in queue.running
        ],
        speed_factor=rounded(queue.speed_factor),
        gpu=gpu_body(queue.gpu),
    )


def gpu_body(gpu: GpuNow) -> GpuBody:
    """Of the readings of one GPU."""
    return GpuBody.model_construct(
        utilization_ratio=gpu.utilization_ratio,
        memory_used_bytes=gpu.memory_used_bytes,
        memory_total_bytes=gpu.memory_total_bytes,
        temperature_celsius=gpu.temperature_celsius,
        power_watts=gpu.power_watts,
    )


def fleet_body(overview: Overview) -> FleetBody:
    """Of the event ``fleet``."""
    return FleetBody.model_construct(
        health=health_body(overview.health),
        queues=[queue_body(queue) for queue in overview.queues[:MOST_QUEUES]],
    )


def worker_body(worker: WorkerNow) -> WorkerBody:
    """Of one worker."""
    stats = worker.stats
    return WorkerBody.model_construct(
        worker_id=worker.worker_id,
        queue=worker.queue,
        gpu_model=worker.gpu_model,
        is_alive=worker.is_alive,
        is_draining=worker.is_draining,
        active_count=worker.active_count,
        concurrency=worker.concurrency,
        busy_ratio=worker.busy_ratio,
        gpu=gpu_body(worker.gpu),
        successes=stats.successes if stats else 0,
        failures=stats.failures if stats else 0,
        success_rate=stats.success_rate if stats else None,
        mean_service_seconds=stats.mean_service_seconds if stats else None,
        last_finished_at=time_of(stats.last_finished_at) if stats else None,
    )


def task_type_body(row: TaskTypeStats, overview: Overview) -> TaskTypeBody:
    """Of one task type."""
    return TaskTypeBody.model_construct(
        **_tally(row),
        task_type=row.task_type,
        out_of_memory=row.out_of_memory,
        p99_service_seconds=overview.p99_seconds.get(row.task_type),
    )


def performance_body(overview: Overview, bucket_seconds: int) -> PerformanceBody:
    """Of ``/performance``: the busiest rows, and the curve in buckets of one length."""
    totals, improvement = overview.totals, overview.improvement
    workers = sorted(
        overview.workers,
        key=lambda worker: (-(worker.stats.tries if worker.stats else 0), worker.worker_id),
    )
    return PerformanceBody.model_construct(
        totals=TotalsBody.model_construct(
            tasks=totals.tasks,
            successes=totals.successes,
            failures=totals.failures,
            success_rate=totals.success_rate,
            mean_service_seconds=totals.mean_service_seconds,
            mean_response_seconds=totals.mean_response_seconds,
            task_types=totals.task_types,
            workers=totals.workers,
        ),
        exploration_rate=overview.exploration_rate,
        improvement=ImprovementBody.model_construct(
            service=_ratio(improvement.service), response=_ratio(improvement.response)
        ),
        curve=curve_bodies(overview.curve, bucket_seconds),
        task_types=[
            task_type_body(row, overview)
            for row in sorted(overview.task_types, key=lambda row: (-row.tries, row.task_type))[
                :MOST_ROWS
            ]
        ],
        workers=[worker_body(worker) for worker in workers[:MOST_ROWS]],
        algorithms=[_algorithm(row) for row in overview.algorithms],
    )


def curve_bodies(curve: Sequence[CurvePoint], bucket_seconds: int) -> list[CurveBody]:
    """The latest points of the learning curve, oldest first."""
    points = sorted(
        (point for point in curve if point.bucket_seconds == bucket_seconds),
        key=lambda point: (point.started_at, point.algorithm),
    )
    return [_point(point) for point in points[-CURVE_POINTS:]]


def cell_body(cell: Cell) -> CellBody:
    """Of one task type on one GPU model."""
    return CellBody.model_construct(
        task_type=cell.task_type,
        gpu_model=cell.gpu_model,
        seconds=cell.seconds,
        samples=cell.samples,
        failure_rate=cell.failure_rate,
        closed=cell.is_closed,
    )


def decision_body(explained: Explained) -> DecisionBody:
    """Of one try of a task."""
    outcome = explained.outcome
    return DecisionBody.model_construct(
        task_id=outcome.task_id,
        task_type=outcome.task_type,
        queue=outcome.queue,
        worker_id=outcome.worker_id,
        gpu_model=outcome.gpu_model,
        algorithm=outcome.algorithm,
        explored=outcome.explored,
        predicted_seconds=outcome.predicted_seconds,
        service_seconds=outcome.service_seconds,
        wait_seconds=outcome.wait_seconds,
        state=outcome.state.value,
        error=outcome.error,
        attempt=outcome.attempt,
        finished_at=time_of(outcome.finished_at),
        reason=explained.reason,
        alternatives=[
            AlternativeBody.model_construct(gpu_model=model, predicted_seconds=seconds)
            for model, seconds in explained.alternatives
        ],
    )


def rounded(seconds: float | None) -> Any:
    """To the microsecond: what is beyond is noise."""
    return None if seconds is None else round(seconds, 6)


def _tally(row: Tally) -> dict[str, Any]:
    return {
        "successes": row.successes,
        "failures": row.failures,
        "revoked": row.revoked,
        "success_rate": row.success_rate,
        "mean_service_seconds": row.mean_service_seconds,
        "last_finished_at": time_of(row.last_finished_at),
    }


def _algorithm(row: AlgorithmStats) -> AlgorithmBody:
    return AlgorithmBody.model_construct(
        **_tally(row),
        algorithm=row.algorithm,
        mean_response_seconds=row.mean_response_seconds,
        mean_error_seconds=row.mean_error_seconds,
        explored=row.explored,
    )


def _point(point: CurvePoint) -> CurveBody:
    tries = point.tries + point.revoked
    return CurveBody.model_construct(
        started_at=time_of(point.started_at),
        bucket_seconds=point.bucket_seconds,
        algorithm=point.algorithm,
        tasks=point.tries,
        success_rate=point.success_rate,
        mean_response_seconds=point.mean_response_seconds,
        mean_service_seconds=point.mean_service_seconds,
        mean_error_seconds=point.mean_error_seconds,
        explored_ratio=point.explored / tries if tries else None,
    )


def _ratio(ratio: Ratio | None) -> RatioBody | None:
    if ratio is None:
        return None
    return RatioBody.model_construct(
        ratio=ratio.ratio,
        low=ratio.low,
        high=ratio.high,
        tasks=ratio.tasks,
        sentence=ratio.sentence,
    )
