"""Families of the present: queues, workers and their GPUs, routing, health."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import Metric

from owl_celery.aggregates import OTHER
from owl_celery.breaker import DEPENDENCIES
from owl_celery.counters import FALLBACK_REASONS, Counters
from owl_celery.exporter.families import counter, gauge, histogram, single
from owl_celery.exporter.labels import clean, pooled
from owl_celery.metrics import MAX_QUEUES, MAX_WORKERS
from owl_celery.overview import Overview
from owl_celery.overview.values import GpuNow, HealthNow, QueueNow, Ratio, WorkerNow

READINGS: Mapping[str, Callable[[GpuNow], float | None]] = {
    "owl_gpu_utilization_ratio": lambda gpu: gpu.utilization_ratio,
    "owl_gpu_memory_used_bytes": lambda gpu: gpu.memory_used_bytes,
    "owl_gpu_memory_total_bytes": lambda gpu: gpu.memory_total_bytes,
    "owl_gpu_temperature_celsius": lambda gpu: gpu.temperature_celsius,
    "owl_gpu_power_watts": lambda gpu: gpu.power_watts,
}
CONTROLLER_COUNTERS: Mapping[str, str] = {
    "owl_tasks_stolen_total": "stolen",
    "owl_tasks_rescued_total": "rescued",
    "owl_store_errors_total": "store_errors",
    "owl_policy_errors_total": "policy_errors",
}


def queue_families(queues: Sequence[QueueNow], unserved: Mapping[str, int]) -> Iterator[Metric]:
    """Families of the queues; of those beyond the bound, the sums."""
    yield gauge(
        "owl_queue_unserved_tasks", (((clean(name),), count) for name, count in unserved.items())
    )
    groups = pooled(
        queues,
        lambda queue: (clean(queue.name), clean(queue.gpu_model)),
        lambda queue: 0.0,  # The same ones every time, however busy.
        MAX_QUEUES,
        (OTHER, OTHER),
    ).items()
    yield gauge(
        "owl_queue_backlog_seconds",
        ((k, sum(q.backlog_seconds for q in group)) for k, group in groups),
    )
    yield gauge(
        "owl_queue_waiting_tasks", ((k, sum(q.waiting_count for q in group)) for k, group in groups)
    )
    yield gauge(
        "owl_queue_running_tasks", ((k, sum(len(q.running) for q in group)) for k, group in groups)
    )
    yield gauge("owl_queue_open", ((k, any(q.is_open for q in group)) for k, group in groups))
    yield gauge(
        "owl_queue_speed_factor",
        ((k, sum(q.speed_factor for q in group) / len(group)) for k, group in groups),
    )


def worker_families(workers: Sequence[WorkerNow]) -> Iterator[Metric]:
    """Families of live workers; beyond the bound, how busy the others are together."""
    groups = pooled(
        [worker for worker in workers if worker.is_alive and worker.busy_ratio is not None],
        lambda worker: (clean(worker.worker_id), clean(worker.gpu_model)),
        lambda worker: 0.0,
        MAX_WORKERS,
        (OTHER, OTHER),
    )
    yield gauge(
        "owl_worker_busy_ratio",
        (
            (key, min(sum(w.active_count for w in group) / sum(w.concurrency for w in group), 1.0))
            for key, group in groups.items()
        ),
    )
    # The temperature of several GPUs is none.
    alone = [(key, group[0].gpu) for key, group in groups.items() if len(group) == 1]
    for name, reading in READINGS.items():
        yield gauge(
            name, ((key, value) for key, gpu in alone if (value := reading(gpu)) is not None)
        )


def routing_families(counters: Counters) -> Iterator[Metric]:
    """Families of what producers and workers count."""
    yield counter("owl_routing_decisions_total", counters.decisions.items())
    # From 0, so that Prometheus sees the first of each reason as an increase.
    fallbacks = dict.fromkeys(FALLBACK_REASONS, 0) | dict(counters.fallbacks)
    yield counter(
        "owl_routing_fallbacks_total", (((reason,), count) for reason, count in fallbacks.items())
    )
    yield histogram(
        "owl_routing_decision_duration_seconds",
        [((), counters.decision_buckets, counters.decision_seconds)],
    )
    yield counter("owl_outcomes_dropped_total", [((), counters.outcomes_dropped)])


def controller_families(counted: Mapping[str, int]) -> Iterator[Metric]:
    """Families of what the controller that leads has counted."""
    for name, key in CONTROLLER_COUNTERS.items():
        yield counter(name, [((), counted.get(key, 0))])


def dependency_families(told: Counters, own: Mapping[str, float]) -> Iterator[Metric]:
    """Families of what did not work: in producers, workers and controllers, and in this process."""
    ours = Counters.read({name: repr(value) for name, value in own.items()})
    pairs = [(process, part) for process, parts in DEPENDENCIES.items() for part in parts]
    opened = {**told.opened, **ours.opened}
    down_seconds = {**told.down_seconds, **ours.down_seconds}
    # From 0, so that Prometheus sees the first failure as an increase.
    yield counter("owl_dependency_failures_total", ((p, opened.get(p, 0)) for p in pairs))
    yield counter("owl_dependency_down_seconds_total", ((p, down_seconds.get(p, 0)) for p in pairs))


def health_families(
    overview: Overview, visibility_timeout_seconds: float | None
) -> Iterator[Metric]:
    """Families of the whole: controller, mode, troubles, gain."""
    health, controller = overview.health, overview.health.controller
    yield single("owl_controller_active", controller is not None)
    yield single("owl_controller_tick_seconds", controller.tick_seconds if controller else None)
    yield single("owl_view_age_seconds", health.view_age_seconds)
    yield single("owl_stream_lag_seconds", health.stream_lag_seconds)
    yield single("owl_policy_version", overview.knowledge.version)
    yield gauge("owl_mode", (((mode,), mode == health.mode) for mode in ("on", "shadow", "off")))
    yield gauge("owl_trouble", (((part,), 1) for part in _troubles(health)))
    yield single("owl_visibility_timeout_seconds", visibility_timeout_seconds)
    policy = controller.policy if controller else overview.knowledge.name
    yield gauge("owl_build_info", [((health.version, clean(policy)), 1)])
    yield _improvement("owl_improvement_service_ratio", overview.improvement.service)
    yield _improvement("owl_improvement_response_ratio", overview.improvement.response)


def _troubles(health: HealthNow) -> dict[str, None]:
    """Parts that do not work; a mode that somebody has chosen is none of them."""
    return {
        clean(reason.part): None
        for reason in health.reasons
        if reason.part != "mode" or health.mode == "on"
    }


def _improvement(name: str, ratio: Ratio | None) -> Metric:
    bounds = (
        {} if ratio is None else {"estimate": ratio.ratio, "low": ratio.low, "high": ratio.high}
    )
    return gauge(name, (((bound,), value) for bound, value in bounds.items()))
