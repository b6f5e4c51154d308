"""What is kept of all outcomes: one row an object, the same columns as the database's tables.

Averages and their spread are over successful tries only, so that a fast crash never looks good;
a revoked try counts as neither a success nor a failure, and so does one that asks to be retried
without an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

OTHER: Final = "other"
"""Stands for everything beyond a bound: the rest of the task types, workers or GPU models."""


@dataclass(slots=True)
class Tally:
    """Counts that every kind of row has.

    Parameters
    ----------
    successes, failures, revoked
        Tries by how they ended; ``revoked`` are all that were neither.
    service_seconds
        Sum over the successful tries.
    last_finished_at
        Unix time of the latest try.

    """

    successes: int = 0
    failures: int = 0
    revoked: int = 0
    service_seconds: float = 0.0
    last_finished_at: float = 0.0

    @property
    def tries(self) -> int:
        """Tries that succeeded or failed."""
        return self.successes + self.failures

    @property
    def success_rate(self) -> float | None:
        """Share of tries that succeeded, 0-1; None before the first."""
        return self.successes / self.tries if self.tries else None

    @property
    def mean_service_seconds(self) -> float | None:
        """Mean service time of the successful tries; None before the first."""
        return self.service_seconds / self.successes if self.successes else None


@dataclass(slots=True)
class TaskTypeStats(Tally):
    """All tries of one task type."""

    task_type: str = ""
    out_of_memory: int = 0


@dataclass(slots=True)
class WorkerStats(Tally):
    """All tries on one worker."""

    worker_id: str = ""
    gpu_model: str = ""


@dataclass(slots=True)
class AssignmentStats(Tally):
    """All tries of one task type on one worker."""

    task_type: str = ""
    worker_id: str = ""


@dataclass(slots=True)
class ServiceStats:
    """Service time of one task type on one GPU model.

    Parameters
    ----------
    count, mean_seconds, m2
        Welford's running mean of seconds per unit of size, over successful tries, and the sum of
        squared differences from it.
    failures, out_of_memory
        Failed tries, and those among them that ran out of memory.
    peak_memory_bytes
        Largest peak of any try; None when no try reported one.

    """

    task_type: str = ""
    gpu_model: str = ""
    count: int = 0
    mean_seconds: float = 0.0
    m2: float = 0.0
    failures: int = 0
    out_of_memory: int = 0
    peak_memory_bytes: int | None = None

    def add(self, seconds: float) -> None:
        """Take one successful try of so many seconds per unit of size into the mean."""
        self.count += 1
        delta = seconds - self.mean_seconds
        self.mean_seconds += delta / self.count
        self.m2 += delta * (seconds - self.mean_seconds)

    @property
    def standard_error_seconds(self) -> float | None:
        """Standard error of the mean; None below two samples."""
        if self.count < 2:
            return None
        return float((max(self.m2, 0.0) / (self.count - 1) / self.count) ** 0.5)


@dataclass(slots=True)
class AlgorithmStats(Tally):
    """All tries that one routing algorithm placed, and how well it foresaw them.

    Parameters
    ----------
    responses, response_seconds, response_squared
        Successful tries with a known wait: how many, sum and sum of squares of their response
        times.
    explored
        Tries placed elsewhere than the algorithm thought best.
    predictions, predicted_error_seconds
        Successful tries with a predicted service time, and the sum of the absolute errors.

    """

    algorithm: str = ""
    responses: int = 0
    response_seconds: float = 0.0
    response_squared: float = 0.0
    explored: int = 0
    predictions: int = 0
    predicted_error_seconds: float = 0.0

    @property
    def mean_response_seconds(self) -> float | None:
        """Mean of wait plus service; None before the first with a known wait."""
        return self.response_seconds / self.responses if self.responses else None

    @property
    def mean_error_seconds(self) -> float | None:
        """Mean absolute error of the predicted service time; None before the first prediction."""
        return self.predicted_error_seconds / self.predictions if self.predictions else None


@dataclass(slots=True)
class CurvePoint(AlgorithmStats):
    """The tries of one algorithm that ended within one stretch of time: the learning curve.

    Parameters
    ----------
    bucket_seconds
        Length of the stretch.
    started_at
        Unix time of its begin, a multiple of the length.

    """

    bucket_seconds: int = 60
    started_at: int = 0


@dataclass(frozen=True, slots=True)
class QValue:
    """One readable entry of a policy's Q table; written for people, never read back by policies.

    Parameters
    ----------
    seconds, idle_seconds
        Predicted cost of sending the task there, at the present backlog and at none.
    visits
        Completed tries that the value rests on.
    changed_at
        Unix time of the last change, or of the last look an hour after it.
    is_open
        Whether tasks of the type may be sent there.

    """

    task_type: str
    queue: str
    gpu_model: str
    seconds: float
    idle_seconds: float
    visits: int
    changed_at: float
    is_open: bool = True


@dataclass(frozen=True, slots=True)
class Aggregates:
    """Rows of every kind: all of them when loaded, the changed ones when committed."""

    task_types: Sequence[TaskTypeStats] = ()
    workers: Sequence[WorkerStats] = ()
    assignments: Sequence[AssignmentStats] = ()
    services: Sequence[ServiceStats] = ()
    algorithms: Sequence[AlgorithmStats] = ()
    curve: Sequence[CurvePoint] = ()


@dataclass(frozen=True, slots=True)
class SavedPolicy:
    """State of a policy as it was committed; ``format`` is the ``format`` in it, or 1."""

    name: str
    format: int
    state: Mapping[str, Any]
    updated_at: float


@dataclass(frozen=True, slots=True)
class Learned:
    """Everything a controller continues from.

    Parameters
    ----------
    cursor
        Stream position up to which outcomes have been counted; ``0-0`` before the first.
    policies
        Saved states, latest first: one for each policy and state format ever used.
    aggregates
        All rows.
    prior
        Number of the last import that the saved policy has taken; 0 before the first.

    """

    cursor: str
    policies: tuple[SavedPolicy, ...] = ()
    aggregates: Aggregates = field(default_factory=Aggregates)
    prior: int = 0

    @property
    def policy_name(self) -> str | None:
        """Name of the policy that was saved last."""
        return self.policies[0].name if self.policies else None

    @property
    def policy_state(self) -> Mapping[str, Any] | None:
        """State of the policy that was saved last."""
        return self.policies[0].state if self.policies else None
