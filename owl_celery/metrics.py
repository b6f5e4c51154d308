"""Every metric of the exporter in one table; documented for users in ``docs/metrics.md``.

The first nine have names that others rely on: they are gauges whatever their names suggest, and
are never renamed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

MAX_TASK_TYPES: Final = 200
MAX_QUEUES: Final = 1_000
MAX_WORKERS: Final = 1_000
MAX_PAIRS: Final = 2_000
MAX_GPU_MODELS: Final = 50
"""Most label values of each kind, and pairs of them; what is beyond is pooled in ``other``."""

DECISION_SECONDS_BOUNDS: Final = (
    *(25e-6, 50e-6, 75e-6, 100e-6, 150e-6, 200e-6, 300e-6, 500e-6),
    *(1e-3, 2.5e-3, 10e-3, 100e-3, math.inf),
)
TASK_SECONDS_BOUNDS: Final = (
    *(0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
    *(120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 21_600.0, math.inf),
)
"""Upper bounds, inclusive, of the buckets of a histogram."""


class Kind(StrEnum):
    """Type of a metric, in the words of Prometheus."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One metric.

    Parameters
    ----------
    name
        As exposed; a counter ends in ``_total`` here too.
    help
        What it says, in one sentence.
    labels
        Names of its labels, in order.
    unit
        Unit of its values, as Grafana names units: ``s``, ``bytes``, ``percentunit`` (0-1),
        ``short`` (a number), ``bool`` (0 or 1), ``celsius``, ``watt``.
    bounds
        Of a histogram's buckets.

    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    unit: str = "short"
    bounds: tuple[float, ...] = ()


def _gauge(name: str, help: str, *labels: str, unit: str = "short") -> MetricSpec:
    return MetricSpec(name, Kind.GAUGE, help, labels, unit)


def _counter(name: str, help: str, *labels: str) -> MetricSpec:
    return MetricSpec(name, Kind.COUNTER, help, labels)


def _histogram(name: str, help: str, *labels: str, bounds: tuple[float, ...]) -> MetricSpec:
    return MetricSpec(name, Kind.HISTOGRAM, help, labels, "s", bounds)


QUEUE: Final = ("queue", "gpu_model")
GPU: Final = ("worker_id", "gpu_model")
SERVICE: Final = ("task_type", "gpu_model")
DEPENDENCY: Final = ("process", "dependency")

CONTRACT: Final = (
    _gauge("owl_task_types_count", "Task types with tries."),
    _gauge("owl_total_tasks_processed", "Tries that succeeded or failed, ever."),
    _gauge(
        "owl_exploration_rate",
        "Share of the policy's latest tries that went elsewhere than it thought best.",
        unit="percentunit",
    ),
    _gauge(
        "owl_task_type_success_rate",
        "Share of tries that succeeded, of all ever.",
        "task_type",
        unit="percentunit",
    ),
    _gauge(
        "owl_task_type_avg_duration",
        "Mean service time of the successful tries, of all ever, in seconds.",
        "task_type",
        unit="s",
    ),
    _gauge("owl_worker_task_count", "Tries that succeeded or failed, ever.", "worker_id"),
    _gauge(
        "owl_worker_success_rate",
        "Share of tries that succeeded, of all ever.",
        "worker_id",
        unit="percentunit",
    ),
    _gauge(
        "owl_task_worker_assignments_count",
        "Tries of the task type on the worker that succeeded or failed, ever.",
        "task_type",
        "worker_id",
    ),
    _gauge(
        "owl_routing_algorithm_avg_duration",
        "Mean response time (wait and service) of the tasks that the algorithm placed, in seconds.",
        "algorithm",
        unit="s",
    ),
)

TASKS: Final = (
    _counter("owl_tasks_total", "Tries that ended, by how they ended.", *SERVICE, "state"),
    _counter(
        "owl_task_failures_total",
        "Tries that failed, by reason: error, out_of_memory or lost.",
        *SERVICE,
        "reason",
    ),
    _histogram(
        "owl_task_duration_seconds",
        "Service time of successful tries.",
        "gpu_model",
        bounds=TASK_SECONDS_BOUNDS,
    ),
    _histogram(
        "owl_task_queue_wait_seconds",
        "Time from publishing to start.",
        "gpu_model",
        bounds=TASK_SECONDS_BOUNDS,
    ),
    _histogram(
        "owl_task_response_seconds",
        "Wait and service time of successful tries, by what placed them.",
        "algorithm",
        bounds=TASK_SECONDS_BOUNDS,
    ),
    _gauge(
        "owl_task_type_p99_seconds",
        "99th percentile of the service time of recent successful tries.",
        "task_type",
        unit="s",
    ),
)

ROUTING: Final = (
    _counter(
        "owl_routing_decisions_total",
        "Decisions of a policy; in mode shadow Celery routed all the same.",
        "algorithm",
        "mode",
    ),
    _counter(
        "owl_routing_fallbacks_total",
        "Tasks left to Celery or to a simpler policy, by reason.",
        "reason",
    ),
    _histogram(
        "owl_routing_decision_duration_seconds",
        "Time that apply_async spent in the router.",
        bounds=DECISION_SECONDS_BOUNDS,
    ),
    _gauge("owl_mode", "1 for the kill switch's position: on, shadow or off.", "mode", unit="bool"),
    _gauge("owl_policy_version", "Version of the policy's published knowledge."),
    _gauge(
        "owl_prediction_error_ratio",
        "Mean absolute error of predicted service times, as a share of their mean, lately.",
        "algorithm",
        unit="percentunit",
    ),
    _gauge(
        "owl_improvement_service_ratio",
        "Mean service time against one shared queue, below 1 is better: estimate, low and high.",
        "bound",
    ),
    _gauge(
        "owl_improvement_response_ratio",
        "Mean response time against tasks that Celery placed: estimate, low and high.",
        "bound",
    ),
)

QUEUES: Final = (
    _gauge("owl_queue_backlog_seconds", "Predicted work ahead in the queue.", *QUEUE, unit="s"),
    _gauge("owl_queue_waiting_tasks", "Tasks that wait in the queue.", *QUEUE),
    _gauge("owl_queue_running_tasks", "Tasks of the queue that run.", *QUEUE),
    _gauge("owl_queue_open", "1 while the queue takes tasks.", *QUEUE, unit="bool"),
    _gauge(
        "owl_queue_speed_factor",
        "Service time on this queue's GPU against others of its model; 2 is half as fast.",
        *QUEUE,
    ),
    _gauge(
        "owl_queue_unserved_tasks",
        "Tasks that wait in a queue which no live worker serves; only such queues are there.",
        "queue",
    ),
)

LEARNED: Final = (
    _gauge(
        "owl_service_seconds",
        "Learned mean service time of a task of size 1.",
        *SERVICE,
        unit="s",
    ),
    _gauge("owl_service_samples", "Successful tries behind the learned mean.", *SERVICE),
    _gauge("owl_assignments_by_gpu_model", "Tries that succeeded or failed, ever.", *SERVICE),
    _gauge(
        "owl_task_type_worker_success_rate",
        "Share of tries that succeeded, of all ever.",
        "task_type",
        "worker_id",
        unit="percentunit",
    ),
)

WORKERS: Final = (
    _gauge(
        "owl_worker_busy_ratio",
        "Share of the worker's slots that hold a task.",
        *GPU,
        unit="percentunit",
    ),
    _gauge("owl_gpu_utilization_ratio", "Utilisation by NVML.", *GPU, unit="percentunit"),
    _gauge("owl_gpu_memory_used_bytes", "GPU memory in use.", *GPU, unit="bytes"),
    _gauge("owl_gpu_memory_total_bytes", "GPU memory.", *GPU, unit="bytes"),
    _gauge("owl_gpu_temperature_celsius", "Temperature of the GPU.", *GPU, unit="celsius"),
    _gauge("owl_gpu_power_watts", "Power that the GPU draws.", *GPU, unit="watt"),
)

SYSTEM: Final = (
    _gauge("owl_controller_active", "1 while a controller leads.", unit="bool"),
    _gauge("owl_controller_tick_seconds", "Mean duration of a controller's round.", unit="s"),
    _gauge("owl_view_age_seconds", "Age of the load view that producers choose from.", unit="s"),
    _gauge("owl_stream_lag_seconds", "How far learning is behind the outcomes.", unit="s"),
    _gauge("owl_trouble", "1 for each part that does not work.", "part", unit="bool"),
    _gauge(
        "owl_visibility_timeout_seconds",
        "Time after which Redis delivers a running task again.",
        unit="s",
    ),
    _counter("owl_tasks_stolen_total", "Waiting tasks moved to an idle GPU."),
    _counter("owl_tasks_rescued_total", "Tasks taken from queues of dead workers."),
    _counter(
        "owl_dependency_failures_total",
        "Times that what a process depends on stopped working.",
        *DEPENDENCY,
    ),
    _counter(
        "owl_dependency_down_seconds_total",
        "Time for which what a process depends on did not work, summed over processes.",
        *DEPENDENCY,
    ),
    _counter("owl_outcomes_dropped_total", "Events dropped by workers: Redis was away too long."),
    _counter("owl_store_errors_total", "Failures of the database."),
    _counter("owl_policy_errors_total", "Failures of the policy in the controller."),
    _gauge("owl_build_info", "Release of owl_celery, and policy at work.", "version", "policy"),
    _gauge("owl_exporter_age_seconds", "Age of what the exporter shows.", unit="s"),
)

METRICS: Final[Mapping[str, MetricSpec]] = {
    spec.name: spec
    for group in (CONTRACT, TASKS, ROUTING, QUEUES, LEARNED, WORKERS, SYSTEM)
    for spec in group
}
"""All of them by name."""
