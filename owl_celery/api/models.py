"""Bodies of answers and requests: what clients may rely on; fields are only ever added."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

Item = TypeVar("Item")

QUEUE_EXAMPLE: dict[str, Any] = {
    "name": "gpu.host1.0",
    "gpu_model": "Tesla V100-SXM2-16GB",
    "worker_ids": ["gpu0@host1"],
    "concurrency": 1,
    "is_open": True,
    "is_drained": False,
    "waiting_count": 2,
    "waiting_seconds": 6.5,
    "backlog_seconds": 8.1,
    "running_count": 1,
    "running": [
        {
            "task_id": "8f8f6e2c-6b0e-4d0c-9a36-0f1f0a3c2d11",
            "task_type": "train.resnet",
            "predicted_seconds": 3.2,
            "elapsed_seconds": 1.6,
        }
    ],
    "speed_factor": 1.0,
    "gpu": {
        "utilization_ratio": 0.97,
        "memory_used_bytes": 12_884_901_888,
        "memory_total_bytes": 17_179_869_184,
        "temperature_celsius": 71.0,
        "power_watts": 241.0,
    },
}
HEALTH_EXAMPLE: dict[str, Any] = {
    "status": "degraded",
    "reasons": [
        {"part": "database", "sentence": "The database does not answer. Older figures are shown."}
    ],
    "mode": "on",
    "view_age_seconds": 0.04,
    "controller": {
        "name": "host1:4711",
        "active_since": "2026-11-26T09:00:00Z",
        "policy": "q_learning",
        "tick_seconds": 0.003,
    },
    "database": {"status": "down", "kind": "postgresql"},
    "stream_lag_seconds": 0.0,
    "queues": 12,
    "open_queues": 12,
    "waiting_count": 40,
    "backlog_seconds": 96.5,
    "running_count": 12,
    "version": "0.1.0",
}
DECISION_EXAMPLE: dict[str, Any] = {
    "task_id": "8f8f6e2c-6b0e-4d0c-9a36-0f1f0a3c2d11",
    "task_type": "train.resnet",
    "queue": "gpu.host1.0",
    "worker_id": "gpu0@host1",
    "gpu_model": "Tesla V100-SXM2-16GB",
    "algorithm": "q_learning",
    "explored": False,
    "predicted_seconds": 3.2,
    "service_seconds": 3.3,
    "wait_seconds": 0.2,
    "state": "success",
    "error": None,
    "attempt": 0,
    "finished_at": "2026-11-26T09:30:00Z",
    "reason": "Sent where it was predicted to finish first: 3.2 s on Tesla V100-SXM2-16GB; by what "
    "is known now it takes 9.9 s on Tesla K80.",
    "alternatives": [{"gpu_model": "Tesla K80", "predicted_seconds": 9.9}],
}


def _with_example(example: dict[str, Any]) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [example]})


class ReasonBody(BaseModel):
    """Why the status is not ``ok``, or what else should be known."""

    part: str
    sentence: str


class ControllerBody(BaseModel):
    """The active controller."""

    name: str
    active_since: datetime | None
    policy: str
    tick_seconds: float


class DatabaseBody(BaseModel):
    """The database as this process reaches it."""

    status: Literal["ok", "down", "unread"]
    kind: str


class HealthBody(BaseModel):
    """Whether learned routing works, and why not."""

    model_config = _with_example(HEALTH_EXAMPLE)

    status: Literal["ok", "degraded", "down"]
    reasons: list[ReasonBody]
    mode: str
    view_age_seconds: float | None
    controller: ControllerBody | None
    database: DatabaseBody
    stream_lag_seconds: float | None
    queues: int
    open_queues: int
    waiting_count: int
    backlog_seconds: float
    running_count: int
    version: str


class RunningBody(BaseModel):
    """A task that runs; id and type are null where no event has told them."""

    task_id: str | None
    task_type: str | None
    predicted_seconds: float
    elapsed_seconds: float


class GpuBody(BaseModel):
    """Readings of one GPU; null where unknown."""

    utilization_ratio: float | None
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    temperature_celsius: float | None
    power_watts: float | None


class QueueBody(BaseModel):
    """One queue and the GPU behind it."""

    model_config = _with_example(QUEUE_EXAMPLE)

    name: str
    gpu_model: str
    worker_ids: list[str]
    concurrency: int
    is_open: bool
    is_drained: bool
    waiting_count: int
    waiting_seconds: float
    backlog_seconds: float
    running_count: int
    running: list[RunningBody]
    speed_factor: float
    gpu: GpuBody


class TallyBody(BaseModel):
    """Tries by how they ended; means are over successful ones."""

    successes: int
    failures: int
    revoked: int
    success_rate: float | None
    mean_service_seconds: float | None
    last_finished_at: datetime | None


class TaskTypeBody(TallyBody):
    """All tries of one task type."""

    task_type: str
    out_of_memory: int
    p99_service_seconds: float | None


class WorkerBody(BaseModel):
    """One worker: what it does, if it is alive, and what it did."""

    worker_id: str
    queue: str
    gpu_model: str
    is_alive: bool
    is_draining: bool
    active_count: int
    concurrency: int
    busy_ratio: float | None
    gpu: GpuBody
    successes: int
    failures: int
    success_rate: float | None
    mean_service_seconds: float | None
    last_finished_at: datetime | None


class AlgorithmBody(TallyBody):
    """All tries that one routing algorithm placed."""

    algorithm: str
    mean_response_seconds: float | None
    mean_error_seconds: float | None
    explored: int


class CurveBody(BaseModel):
    """The tries of one algorithm within one stretch of time."""

    started_at: datetime | None
    bucket_seconds: int
    algorithm: str
    tasks: int
    success_rate: float | None
    mean_response_seconds: float | None
    mean_service_seconds: float | None
    mean_error_seconds: float | None
    explored_ratio: float | None


class TotalsBody(BaseModel):
    """Sums over all task types."""

    tasks: int
    successes: int
    failures: int
    success_rate: float | None
    mean_service_seconds: float | None
    mean_response_seconds: float | None
    task_types: int
    workers: int


class RatioBody(BaseModel):
    """A comparison: below 1 is better; the bounds hold it 95 times in 100."""

    ratio: float
    low: float
    high: float
    tasks: int
    sentence: str


class ImprovementBody(BaseModel):
    """What routing has gained; null where the tries do not tell."""

    service: RatioBody | None
    response: RatioBody | None


class PerformanceBody(BaseModel):
    """How tasks, workers and algorithms did; lists hold the busiest 200."""

    totals: TotalsBody
    exploration_rate: float | None
    improvement: ImprovementBody
    curve: list[CurveBody]
    task_types: list[TaskTypeBody]
    workers: list[WorkerBody]
    algorithms: list[AlgorithmBody]


class CellBody(BaseModel):
    """What is known of one task type on one GPU model.

    ``seconds`` is what the policy expects of a task of size 1, without samples too.
    """

    task_type: str
    gpu_model: str
    seconds: float | None
    samples: int
    failure_rate: float | None
    closed: bool


class AlternativeBody(BaseModel):
    """Another GPU model, and the service time expected there now."""

    gpu_model: str
    predicted_seconds: float


class DecisionBody(BaseModel):
    """Where one try of a task went, why, and what became of it."""

    model_config = _with_example(DECISION_EXAMPLE)

    task_id: str
    task_type: str
    queue: str
    worker_id: str
    gpu_model: str
    algorithm: str
    explored: bool
    predicted_seconds: float | None
    service_seconds: float
    wait_seconds: float | None
    state: str
    error: str | None
    attempt: int
    finished_at: datetime | None
    reason: str
    alternatives: list[AlternativeBody]


class Page(BaseModel, Generic[Item]):
    """A part of a list; ``next_cursor`` asks for the following part, and is null in the last."""

    items: list[Item]
    next_cursor: str | None = None


class FleetBody(BaseModel):
    """What the event ``fleet`` carries."""

    health: HealthBody
    queues: list[QueueBody]


class ModeBody(BaseModel):
    """The kill switch."""

    model_config = _with_example({"mode": "shadow"})

    mode: Literal["on", "shadow", "off"]


class ModeChangeBody(ModeBody):
    """The mode that is now set, and the one that was in effect before."""

    before: str


class DrainBody(BaseModel):
    """Whether a queue is drained, and whether this request has changed that."""

    queue: str
    is_drained: bool
    changed: bool


class StatusBody(BaseModel):
    """An answer for health checks."""

    status: Literal["ok"] = "ok"


class ComplaintBody(BaseModel):
    """One thing that is wrong with a request."""

    where: str
    message: str


class ProblemBody(BaseModel):
    """An error, as RFC 9457 has it: ``application/problem+json``."""

    model_config = _with_example(
        {
            "type": "about:blank",
            "title": "Not Found",
            "status": 404,
            "detail": "No task type 'train.nothing' has been seen.",
            "instance": "/api/v1/learning/requirements/train.nothing",
        }
    )

    type: Annotated[str, Field(default="about:blank")]
    title: str
    status: int
    detail: str
    instance: str
    errors: list[ComplaintBody] | None = None
