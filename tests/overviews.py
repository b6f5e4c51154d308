"""Made-up overviews, for what is built on them: of any size, the same in every run."""

from __future__ import annotations

from owl_celery.aggregates import (
    AlgorithmStats,
    AssignmentStats,
    CurvePoint,
    ServiceStats,
    TaskTypeStats,
    WorkerStats,
)
from owl_celery.counters import Counters
from owl_celery.metrics import DECISION_SECONDS_BOUNDS
from owl_celery.overview.values import (
    ControllerNow,
    DatabaseNow,
    GpuNow,
    HealthNow,
    Improvement,
    KnowledgeNow,
    Overview,
    QueueNow,
    Ratio,
    Reason,
    RunningNow,
    Status,
    Totals,
    WorkerNow,
)

GPU_MODELS = ("K80", "P100", "V100", "A100", "H100")
GPU = GpuNow(0.75, 6 * 2**30, 16 * 2**30, 61.0, 240.5)


def health(queues: int = 1, **changed: object) -> HealthNow:
    """Health of a fleet whose controller cannot write to its database."""
    fields = {
        "status": Status.DEGRADED,
        "reasons": (Reason("store", "It is read-only."), Reason("mode", "It is shadow.")),
        "mode": "shadow",
        "view_age_seconds": 0.04,
        "controller": ControllerNow("host:1", 1.8e9, "expected_completion", 0.004),
        "database": DatabaseNow("ok", "sqlite"),
        "stream_lag_seconds": 0.1,
        "queues": queues,
        "open_queues": queues,
        "waiting_count": 2 * queues,
        "backlog_seconds": 3.0 * queues,
        "running_count": queues,
        "version": "0.1.0",
        **changed,
    }
    return HealthNow(**fields)  # type: ignore[arg-type]


def overview(queue_count: int = 3, type_count: int = 2, **changed: object) -> Overview:
    """A fleet of so many queues, each with a worker, that has run so many types of task.

    Parameters
    ----------
    changed
        Fields of the overview that are otherwise.

    """
    models = [GPU_MODELS[n % len(GPU_MODELS)] for n in range(queue_count)]
    workers = [f"gpu{n}@host" for n in range(queue_count)]
    types = [f"proj.tasks.train_{n}" for n in range(type_count)]
    running = (RunningNow("id", types[0], 2.0, 0.5),)
    fields = {
        "read_at": 1.8e9,
        "redis_time": 1.8e9,
        "health": health(queue_count),
        "queues": tuple(
            QueueNow(
                name=f"gpu.host.{n}",
                gpu_model=model,
                worker_ids=(workers[n],),
                concurrency=1,
                is_open=n > 0,
                is_drained=False,
                waiting_count=n % 7,
                waiting_seconds=1.5 * (n % 7),
                backlog_seconds=1.5 * (n % 7) + 1.5,
                running=running,
                speed_factor=1.0 + n % 2,
                gpu=GPU,
            )
            for n, model in enumerate(models)
        ),
        "workers": tuple(
            WorkerNow(
                worker_id=workers[n],
                queue=f"gpu.host.{n}",
                gpu_model=model,
                is_alive=True,
                is_draining=False,
                active_count=1,
                concurrency=1,
                busy_ratio=1.0,
                gpu=GPU,
                stats=WorkerStats(
                    successes=30 + n,
                    failures=2,
                    service_seconds=60.0,
                    worker_id=workers[n],
                    gpu_model=model,
                ),
            )
            for n, model in enumerate(models)
        ),
        "task_types": tuple(
            TaskTypeStats(successes=30 + n, failures=2, service_seconds=60.0, task_type=name)
            for n, name in enumerate(types)
        ),
        "assignments": tuple(
            AssignmentStats(
                successes=3 + n % 11,
                failures=n % 2,
                service_seconds=9.0,
                task_type=name,
                worker_id=workers[(7 * n + k) % queue_count],
            )
            for n, name in enumerate(types)
            for k in range(min(queue_count, 40))
        ),
        "services": tuple(
            ServiceStats(name, model, 9 + n, 2.5, 1.0, 1, 1)
            for n, name in enumerate(types)
            for model in sorted(set(models))
        ),
        "algorithms": tuple(
            AlgorithmStats(
                successes=20,
                service_seconds=50.0,
                algorithm=name,
                responses=20,
                response_seconds=70.0,
                response_squared=300.0,
                predictions=20,
                predicted_error_seconds=5.0,
            )
            for name in ("expected_completion", "celery")
        ),
        "curve": tuple(
            CurvePoint(
                successes=20,
                service_seconds=50.0,
                algorithm="expected_completion",
                responses=20,
                response_seconds=70.0,
                predictions=20,
                predicted_error_seconds=5.0,
                bucket_seconds=length,
                started_at=60 * number,
            )
            for length in (60, 3600)
            for number in range(20)
        ),
        "totals": Totals(
            successes=sum(30 + n for n in range(type_count)),
            failures=2 * type_count,
            task_types=type_count,
            workers=queue_count,
        ),
        "improvement": Improvement(
            Ratio(0.4, 0.3, 0.5, 200, "Better."), Ratio(0.5, 0.4, 0.6, 200, "Better.")
        ),
        "exploration_rate": 0.125,
        "counters": Counters(
            {("expected_completion", "on"): 90, ("expected_completion", "shadow"): 10},
            {"no_view": 3},
            0.0125,
            tuple(range(len(DECISION_SECONDS_BOUNDS))),
            4,
        ),
        "controller_counters": {"stolen": 5, "rescued": 6, "store_errors": 7, "policy_errors": 8},
        "p99_seconds": {name: 12.5 for name in types},
        "knowledge": KnowledgeNow(70_000_000_001, "expected_completion"),
        **changed,
    }
    return Overview(**fields)  # type: ignore[arg-type]
