"""The values that the layers exchange: frozen, typed, free of behaviour.

Durations are seconds, memory is bytes, shares lie in 0-1.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

MIN_SIZE: Final = 1e-9
MAX_SIZE: Final = 1e15
"""Bounds of a task's size; bytes are a size that authors give."""


class TryState(StrEnum):
    """How one try of a task ended."""

    SUCCESS = "success"
    FAILURE = "failure"
    RETRY = "retry"
    REVOKED = "revoked"
    LOST = "lost"

    @property
    def succeeded(self) -> bool:
        """Whether the try did the work it was sent to do."""
        return self is TryState.SUCCESS


class TaskView(NamedTuple):
    """What a policy may know of a task before it runs; never its arguments.

    Parameters
    ----------
    task_type
        The Celery task name, or the finer key its author gave by ``owl_type``.
    size
        Relative amount of work, in [``MIN_SIZE``, ``MAX_SIZE``]; service time is taken as
        proportional to it.
    model
        Name of the machine-learning model the task needs loaded, if any.
    tried
        GPU models on which an earlier try failed for lack of memory; chosen again only where
        nothing else is open.
    exceeded_bytes
        Free memory with which an earlier try ran out of it, so that it needs more; 0 if unknown.

    """

    task_type: str
    size: float = 1.0
    model: str | None = None
    tried: frozenset[str] = frozenset()
    exceeded_bytes: float = 0.0


@dataclass(frozen=True, slots=True)
class QueueView:
    """One queue as the controller last saw it.

    Parameters
    ----------
    name
        Celery queue name, ``gpu.<host>.<n>``.
    gpu_model
        Product name of the GPU behind it (``cpu`` for CPU processes); estimates pool over it.
    concurrency
        Number of tasks it runs at a time.
    waiting_count, waiting_seconds
        Tasks that wait, and the sum of their predicted service times.
    running
        ``(predicted service seconds, elapsed seconds)`` of each running task.
    free_memory_bytes
        Free GPU memory when idle; None when unknown.
    is_open
        False while its worker drains or is unreachable: no task is sent to it.

    """

    name: str
    gpu_model: str
    concurrency: int = 1
    waiting_count: int = 0
    waiting_seconds: float = 0.0
    running: tuple[tuple[float, float], ...] = ()
    free_memory_bytes: int | None = None
    is_open: bool = True


class Decision(NamedTuple):
    """Where a task goes, and what was expected of it.

    Parameters
    ----------
    queue, gpu_model
        The chosen queue and the GPU model behind it.
    algorithm
        Name of the policy that chose.
    wait_seconds, service_seconds
        Predicted wait and service time; None when the policy does not predict.
    explored
        Whether the choice differs from the one the policy thinks best.
    propensity
        Probability with which this queue was chosen; None when it has no closed form.

    """

    queue: str
    gpu_model: str
    algorithm: str
    wait_seconds: float | None = None
    service_seconds: float | None = None
    explored: bool = False
    propensity: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What happened to one try of one task.

    ``(task_id, decision_id, attempt)`` names the try: a second report of the same try is ignored.

    Parameters
    ----------
    attempt
        Celery's retry count of this try, from 0.
    queue, worker_id, gpu_model
        Where it ran: queue, Celery node name, GPU model.
    service_seconds
        Seconds from prerun to postrun by the worker's monotonic clock.
    wait_seconds
        Seconds from publishing to start (wall clocks of two hosts; clipped at 0); None if unknown.
    predicted_seconds
        Service time that the decision predicted; None without a prediction.
    algorithm
        Policy that routed it: a policy name, ``celery`` (fell back), or ``user`` (explicit queue).
    error
        Exception class name of a failed try.
    out_of_memory
        Whether the try failed for lack of memory.
    peak_memory_bytes
        Peak GPU memory of the try; None if unknown.
    finished_at
        Unix time of the end of the try, for display and retention only.

    """

    task_id: str
    decision_id: str
    attempt: int
    task_type: str
    size: float
    queue: str
    worker_id: str
    gpu_model: str
    state: TryState
    service_seconds: float
    finished_at: float
    wait_seconds: float | None = None
    predicted_seconds: float | None = None
    algorithm: str = "celery"
    explored: bool = False
    error: str | None = None
    out_of_memory: bool = False
    peak_memory_bytes: int | None = None
    model: str | None = None

    @property
    def counts_as_failure(self) -> bool:
        """Whether the try counts against the hardware.

        A revoked one does not, nor one that retries without an error: its author polls.
        """
        if self.state is TryState.RETRY:
            return self.error is not None or self.out_of_memory
        return self.state in (TryState.FAILURE, TryState.LOST)

    @property
    def key(self) -> str:
        """Identity of the try, under which its outcome counts exactly once."""
        return f"{self.task_id}:{self.decision_id}:{self.attempt}"
