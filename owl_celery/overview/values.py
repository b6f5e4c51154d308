"""What is shown of an application: frozen values, the same for API, exporter and terminal.

Durations are seconds, memory is bytes, shares lie in 0-1, times are Unix times.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from owl_celery.aggregates import (
    AlgorithmStats,
    AssignmentStats,
    CurvePoint,
    ServiceStats,
    TaskTypeStats,
    WorkerStats,
)
from owl_celery.counters import Counters
from owl_celery.policies.base import Policy
from owl_celery.policies.beliefs import Beliefs


class Status(StrEnum):
    """How the application is doing."""

    OK = "ok"
    DEGRADED = "degraded"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class Reason:
    """Why the status is not ``ok``, or what else should be known, in a sentence."""

    part: str
    sentence: str


@dataclass(frozen=True, slots=True)
class ControllerNow:
    """The active controller."""

    name: str
    active_since: float
    policy: str
    tick_seconds: float


@dataclass(frozen=True, slots=True)
class DatabaseNow:
    """The database as this process reaches it.

    Parameters
    ----------
    status
        ``ok``, ``down``, or ``unread`` before the first answer.
    kind
        ``sqlite``, ``postgresql`` or ``memory``.

    """

    status: Literal["ok", "down", "unread"]
    kind: str


@dataclass(frozen=True, slots=True)
class HealthNow:
    """Whether learned routing works, and why not.

    Parameters
    ----------
    status
        ``down``: tasks go Celery's own way. ``degraded``: something does not work.
    mode
        The kill switch: ``on``, ``shadow`` or ``off``.
    view_age_seconds
        Age of the load view that producers choose from; None without one.
    backlog_seconds
        Predicted work of all queues, the rest of what runs included.

    """

    status: Status
    reasons: tuple[Reason, ...]
    mode: str
    view_age_seconds: float | None
    controller: ControllerNow | None
    database: DatabaseNow
    stream_lag_seconds: float | None
    queues: int
    open_queues: int
    waiting_count: int
    backlog_seconds: float
    running_count: int
    version: str


@dataclass(frozen=True, slots=True)
class GpuNow:
    """Readings of one GPU; None where unknown."""

    utilization_ratio: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    temperature_celsius: float | None = None
    power_watts: float | None = None


@dataclass(frozen=True, slots=True)
class RunningNow:
    """A task that runs; id and type are None where no event has told them."""

    task_id: str | None
    task_type: str | None
    predicted_seconds: float
    elapsed_seconds: float


@dataclass(frozen=True, slots=True)
class QueueNow:
    """One queue and the GPU behind it.

    Parameters
    ----------
    worker_ids
        Live workers that serve it.
    is_open, is_drained
        Whether tasks are sent there, and whether an operator has said that none shall be.
    waiting_seconds, backlog_seconds
        Predicted service time of what waits; the same with the rest of what runs.
    speed_factor
        2 when everything takes twice as long as on others of its GPU model.
    idle_memory_bytes
        Memory that is free while nothing of ours runs, as routing sees it; None when unknown.

    """

    name: str
    gpu_model: str
    worker_ids: tuple[str, ...]
    concurrency: int
    is_open: bool
    is_drained: bool
    waiting_count: int
    waiting_seconds: float
    backlog_seconds: float
    running: tuple[RunningNow, ...]
    speed_factor: float
    gpu: GpuNow
    idle_memory_bytes: float | None = None


@dataclass(frozen=True, slots=True)
class WorkerNow:
    """One worker: what it did, and what it does if it is alive.

    Parameters
    ----------
    busy_ratio
        Share of its slots that hold a task; None for one that is not alive.
    stats
        Its row in the database; None before its first outcome.

    """

    worker_id: str
    queue: str
    gpu_model: str
    is_alive: bool
    is_draining: bool
    active_count: int
    concurrency: int
    busy_ratio: float | None
    gpu: GpuNow
    stats: WorkerStats | None


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over all task types."""

    successes: int = 0
    failures: int = 0
    success_rate: float | None = None
    mean_service_seconds: float | None = None
    mean_response_seconds: float | None = None
    task_types: int = 0
    workers: int = 0

    @property
    def tasks(self) -> int:
        """Tries that succeeded or failed."""
        return self.successes + self.failures


@dataclass(frozen=True, slots=True)
class Ratio:
    """A comparison: below 1 is better, with bounds that hold it 95 times in 100.

    Parameters
    ----------
    ratio, low, high
        Estimate and bounds.
    tasks
        Tries that it rests on.
    sentence
        The same for people.

    """

    ratio: float
    low: float
    high: float
    tasks: int
    sentence: str


@dataclass(frozen=True, slots=True)
class Improvement:
    """What routing has gained; None where the tries do not tell.

    Parameters
    ----------
    service
        Mean service time against that of plain Celery's one shared queue; it claims nothing of
        waits. See ``improvement.service_ratio``.
    response
        Mean response time of tasks that the policy placed against those that Celery placed here.

    """

    service: Ratio | None = None
    response: Ratio | None = None


@dataclass(frozen=True, slots=True, eq=False)
class KnowledgeNow:
    """What the controller has published of the policy's knowledge.

    Parameters
    ----------
    version
        0 before the first.
    policy
        A policy that predicts by it; None when this process cannot read it.
    beliefs
        Predictions by task type and GPU model; None for a policy that publishes others.

    """

    version: int = 0
    name: str = ""
    policy: Policy | None = None
    beliefs: Beliefs | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Overview:
    """Everything that is shown, as of one moment.

    Parameters
    ----------
    read_at
        When it was read.
    redis_time
        Clock of Redis then; 0 when it has never answered.
    is_redis_down
        Whether Redis does not answer.
    has_rows
        Whether the database has ever answered; without, its rows are empty.
    task_types, assignments, services, algorithms, curve
        Rows of the database, the latest that could be read.
    exploration_rate
        Share that explored of the policy's latest tries; None before the first.
    counters
        What producers and workers count.
    controller_counters
        What the active controller counts since it leads.
    own_counters
        What this process counts of its own dependencies, as ``Breaker.totals``.
    p99_seconds
        99th percentile of the service time of recent successful tries, by task type.

    """

    read_at: float
    redis_time: float
    health: HealthNow
    is_redis_down: bool = False
    has_rows: bool = False
    queues: tuple[QueueNow, ...] = ()
    workers: tuple[WorkerNow, ...] = ()
    task_types: tuple[TaskTypeStats, ...] = ()
    assignments: tuple[AssignmentStats, ...] = ()
    services: tuple[ServiceStats, ...] = ()
    algorithms: tuple[AlgorithmStats, ...] = ()
    curve: tuple[CurvePoint, ...] = ()
    totals: Totals = field(default_factory=Totals)
    improvement: Improvement = field(default_factory=Improvement)
    exploration_rate: float | None = None
    counters: Counters = field(default_factory=Counters)
    controller_counters: Mapping[str, int] = field(default_factory=dict)
    own_counters: Mapping[str, float] = field(default_factory=dict)
    p99_seconds: Mapping[str, float] = field(default_factory=dict)
    knowledge: KnowledgeNow = field(default_factory=KnowledgeNow)
