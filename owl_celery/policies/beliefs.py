"""What a choice is made from: predictions by task type and GPU model, laid out over a fleet."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, Self

import numpy as np

from owl_celery.errors import StateError
from owl_celery.fleet import Bools, Fleet, Floats, Ints
from owl_celery.policies.eligible import roomiest
from owl_celery.policies.failures import CLOSED_PROBABILITY, success_ratio
from owl_celery.policies.warm import WarmModels
from owl_celery.types import MAX_SIZE, MIN_SIZE, TaskView

SNAPSHOT_TYPES: Final = 2_000
"""Most recently seen types that a snapshot carries; others are predicted as unseen ones."""

KEPT_TYPES: Final = 200
"""Task types that a layout keeps the columns of."""

MIN_SECONDS: Final = 1e-6
MAX_SECONDS: Final = 10.0 * 365 * 86_400
MAX_LOAD_SECONDS: Final = 1e12


class Beliefs:
    """Predictions that a policy chooses from; its owner may replace the attributes.

    Attributes
    ----------
    types, models
        Row of each task type and column of each GPU model; row and column 0 stand for unseen ones.
    service, count
        Service seconds of a task of size 1 on a GPU of normal speed, and samples behind it.
    failure
        Probability that the type fails on the GPU model, 0 where it never did.
    needed
        GPU memory the type needs on the GPU model, bytes, 0 where unknown.
    speeds, failing
        Speed factor of each queue where it is not 1, failure probability where it is not 0.
    confirmed
        The factors of ``speeds`` as last measured: to count on less is to explore.
    warm
        Where models are loaded, and how long loading takes.
    completed
        Successful tries behind all this.
    version
        Changes with ``speeds`` and ``failing``.
    is_final
        Whether nothing here changes any more, as in what was read from a snapshot.

    """

    __slots__ = (
        "completed",
        "confirmed",
        "count",
        "failing",
        "failure",
        "is_final",
        "models",
        "needed",
        "service",
        "speeds",
        "types",
        "version",
        "warm",
    )

    def __init__(self) -> None:
        self.types: Mapping[str, int] = {}
        self.models: Mapping[str, int] = {}
        self.service: Floats = np.ones((1, 1))
        self.count: Floats = np.zeros((1, 1))
        self.failure: Floats = np.zeros((1, 1))
        self.needed: Floats = np.zeros((1, 1))
        self.speeds: Mapping[str, float] = {}
        self.confirmed: Mapping[str, float] = {}
        self.failing: Mapping[str, float] = {}
        self.warm = WarmModels()
        self.completed = 0
        self.version = 0
        self.is_final = False

    def predict_seconds(self, task: TaskView, gpu_model: str) -> float:
        """Service time on a GPU of normal speed, seconds."""
        row, column = self.types.get(task.task_type, 0), self.models.get(gpu_model, 0)
        seconds = usable_size(task.size) * float(self.service[row, column])
        return min(max(seconds, MIN_SECONDS), MAX_SECONDS)

    def encode(self) -> dict[str, Any]:
        """JSON values for a snapshot, rounded to four digits."""
        names = list(self.types)[-SNAPSHOT_TYPES:]
        rows = np.array([0, *(self.types[name] for name in names)], dtype=np.int64)
        failure, needed = self.failure[rows], self.needed[rows]
        return {
            "completed": self.completed,
            "types": names,
            "models": list(self.models),
            "service": rounded(self.service[rows]),
            "count": self.count[rows].astype(np.int64).tolist(),
            "failure": _sparse(failure),
            "needed": _sparse(needed),
            "speeds": {name: round(value, 4) for name, value in self.speeds.items()},
            "confirmed": {name: round(value, 4) for name, value in self.confirmed.items()},
            "failing": {name: round(value, 4) for name, value in self.failing.items()},
            "warm": self.warm.state(),
        }

    @classmethod
    def decode(cls, snapshot: Mapping[str, Any]) -> Self:
        """Read a snapshot; unknown keys are ignored.

        Raises
        ------
        StateError
            When it is damaged.

        """
        beliefs = cls()
        try:
            types, models = snapshot["types"], snapshot["models"]
            beliefs.types = {str(name): row for row, name in enumerate(types, start=1)}
            beliefs.models = {str(name): column for column, name in enumerate(models, start=1)}
            shape = len(types) + 1, len(models) + 1
            beliefs.service = np.array(snapshot["service"], dtype=np.float64)
            beliefs.count = np.array(snapshot["count"], dtype=np.float64)
            beliefs.failure = _dense(snapshot.get("failure", ()), shape)
            beliefs.needed = _dense(snapshot.get("needed", ()), shape)
            beliefs.speeds = {str(k): float(v) for k, v in snapshot.get("speeds", {}).items()}
            confirmed = snapshot.get("confirmed", {})
            beliefs.confirmed = {str(k): float(v) for k, v in confirmed.items()}
            beliefs.failing = {str(k): float(v) for k, v in snapshot.get("failing", {}).items()}
            beliefs.completed = int(snapshot["completed"])
            if "warm" in snapshot:
                beliefs.warm = WarmModels.of(snapshot["warm"])
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise StateError(f"The policy snapshot is damaged: {error!r}.") from error
        is_sane = (
            beliefs.service.shape == beliefs.count.shape == shape
            and bool(np.isfinite(beliefs.service).all() and (beliefs.service > 0.0).all())
            and bool(np.isfinite(beliefs.count).all() and (beliefs.count >= 0.0).all())
            and bool(((beliefs.failure >= 0.0) & (beliefs.failure <= 1.0)).all())
            and bool(np.isfinite(beliefs.needed).all())
            and all(math.isfinite(v) and v > 0.0 for v in beliefs.speeds.values())
            and all(0.0 <= v <= 1.0 for v in beliefs.failing.values())
            and all(math.isfinite(v) and v > 0.0 for v in beliefs.confirmed.values())
        )
        if not is_sane:
            raise StateError("The policy snapshot is damaged: a number is out of bounds.")
        beliefs.is_final = True
        return beliefs


class TypeColumns(NamedTuple):
    """What is believed of one task type, spread over the queues, each of shape (N,).

    Attributes
    ----------
    per_size
        Service seconds of each unit of size; tiny where the size counts bytes.
    service
        Service seconds at size 1, within the bounds.
    uncertainty
        Uncertainty of these, 1 without samples.
    doubt
        The largest of them.
    success
        Probability of success, at least 0.01; None where nothing has failed of late.
    needed
        GPU memory needed, bytes; None where unknown everywhere.
    suits_all
        Whether nothing speaks against any of the queues.

    """

    per_size: Floats
    service: Floats
    uncertainty: Floats
    doubt: float
    success: Floats | None
    needed: Floats | None
    suits_all: bool


class Layout:
    """Beliefs spread over the queues of one fleet; made anew when either changes.

    Attributes
    ----------
    columns
        Column of each queue's GPU model, shape (N,).
    speeds
        Speed factor of each queue, shape (N,).
    caution
        What the confirmed factor is of the one believed, shape (N,); None when 1 everywhere.
    failing
        Failure probability of each queue itself, shape (N,).

    """

    __slots__ = (
        "_beliefs",
        "_model_count",
        "_names",
        "_types",
        "_version",
        "caution",
        "columns",
        "failing",
        "speeds",
    )

    def __init__(self, beliefs: Beliefs, fleet: Fleet) -> None:
        self._beliefs, self._names = beliefs, fleet.names
        self._types: dict[str, TypeColumns] = {}
        self._model_count, self._version = len(beliefs.models), beliefs.version
        columns = np.array([beliefs.models.get(model, 0) for model in fleet.models], dtype=np.int64)
        self.columns: Ints = columns[fleet.model_index] if len(fleet) else columns
        self.speeds: Floats = np.ones(len(fleet))
        self.caution: Floats | None = None
        self.failing: Floats = np.zeros(len(fleet))
        if beliefs.speeds or beliefs.failing:
            position = {name: row for row, name in enumerate(fleet.names)}
            for column, values in (
                (self.speeds, beliefs.speeds),
                (self.failing, beliefs.failing),
            ):
                for name, value in values.items():
                    if name in position:
                        column[position[name]] = value
            if beliefs.confirmed:
                self.caution = np.ones(len(fleet))
                for name, value in beliefs.confirmed.items():
                    if name in position:
                        self.caution[position[name]] = value / self.speeds[position[name]]

    def fits(self, beliefs: Beliefs, fleet: Fleet) -> bool:
        """Whether this layout is of these beliefs as they are now, and of these very queues."""
        return (
            self._names is fleet.names
            and self._beliefs is beliefs
            and self._version == beliefs.version
            and self._model_count == len(beliefs.models)
        )

    def of_type(self, task_type: str) -> TypeColumns:
        """What is believed of a task type; kept for later tasks when it cannot change."""
        columns = self._types.get(task_type)
        if columns is None:
            columns = self._lay_out(task_type)
            if self._beliefs.is_final and len(self._types) < KEPT_TYPES:
                self._types[task_type] = columns
        return columns

    def _lay_out(self, task_type: str) -> TypeColumns:
        beliefs = self._beliefs
        row = beliefs.types.get(task_type, 0)
        per_size = beliefs.service[row].take(self.columns) * self.speeds
        uncertainty = (1.0 / np.sqrt(beliefs.count[row] + 1.0)).take(self.columns)
        failure, needed = beliefs.failure[row], beliefs.needed[row]
        can_fail, has_need = bool(beliefs.failing) or bool(failure.any()), bool(needed.any())
        return TypeColumns(
            per_size,
            bounded(per_size),
            uncertainty,
            float(uncertainty.max(initial=0.0)),
            success_ratio(failure.take(self.columns), self.failing) if can_fail else None,
            needed.take(self.columns) if has_need else None,
            suits_all=not (can_fail or has_need),
        )

    def seconds_on(self, row: int, tasks: Sequence[TaskView]) -> Floats:
        """Service time of each of M tasks on one queue, shape (M,)."""
        beliefs = self._beliefs
        rows = [beliefs.types.get(task.task_type, 0) for task in tasks]
        sizes = np.array([usable_size(task.size) for task in tasks])
        seconds = sizes * beliefs.service[rows, self.columns[row]] * self.speeds[row]
        return bounded(seconds)

    def suits(self, row: int, task: TaskView, fleet: Fleet) -> bool:
        """Whether a task fits on one queue and does not fail there nearly always."""
        beliefs = self._beliefs
        kind, column = beliefs.types.get(task.task_type, 0), int(self.columns[row])
        if fleet.free_memory_bytes[row] < beliefs.needed[kind, column]:
            return False
        works = (1.0 - beliefs.failure[kind, column]) * (1.0 - self.failing[row])
        return bool(works > 1.0 - CLOSED_PROBABILITY)

    def sensible_mask(self, columns: TypeColumns, fleet: Fleet, is_open: Bools) -> Bools:
        """Narrow ``is_open`` to where a task of a type fits and does not fail nearly always.

        A task that fits nowhere goes where there is most memory: it runs there, or its failure
        tells its author. A demand to work that leaves nothing is dropped.
        """
        if columns.needed is not None:
            # NaN, unknown, compares false and leaves the queue open.
            fits = is_open & ~(fleet.free_memory_bytes < columns.needed)
            is_open = fits if fits.any() else roomiest(is_open, fleet)
        if columns.success is not None:
            works = is_open & (columns.success > 1.0 - CLOSED_PROBABILITY)
            is_open = works if works.any() else is_open
        return is_open


def load_seconds(fleet: Fleet, now: float) -> tuple[Floats, Floats]:
    """Rest of what runs, and wait of a task that joins, of each queue, as ``Fleet`` defines them.

    Both are cut at 1e12 s, so that no load makes a score infinite.
    """
    residual = fleet.residual_seconds(now)
    if fleet.is_simple:
        return residual, residual + fleet.waiting_seconds
    residual = np.minimum(residual, MAX_LOAD_SECONDS)
    if fleet.running_seconds.shape[1] == 1:
        # An idle queue that serves one at a time has neither backlog nor wait.
        return residual, np.minimum(residual + fleet.waiting_seconds, MAX_LOAD_SECONDS)
    return residual, np.minimum(fleet.wait_seconds(now), MAX_LOAD_SECONDS)


def sized(columns: TypeColumns, size: float) -> Floats:
    """Service times of a task of this size; do not write to the result."""
    return columns.service if size == 1.0 else bounded(usable_size(size) * columns.per_size)


def bounded(seconds: Floats) -> Floats:
    """Cut service times to what is finite and above zero."""
    cut: Floats = np.minimum(np.maximum(seconds, MIN_SECONDS), MAX_SECONDS)
    return cut


def usable_size(size: float) -> float:
    """A task's size, or 1 when it makes no sense."""
    return min(max(size, MIN_SIZE), MAX_SIZE) if size > 0.0 else 1.0


def rounded(values: Floats) -> list[Any]:
    """Nested lists of floats to four significant digits, short when written as JSON."""
    with np.errstate(divide="ignore"):
        digits = np.where(values != 0.0, np.floor(np.log10(np.abs(values))), 0.0)
    scale = 10.0 ** np.clip(3.0 - digits, 0.0, 300.0)
    nested: list[Any] = (np.round(values * scale) / scale).tolist()
    return nested


def _sparse(matrix: Floats) -> list[Sequence[float]]:
    rows, columns = np.nonzero(matrix)
    values = rounded(matrix[rows, columns])
    return [list(cell) for cell in zip(rows.tolist(), columns.tolist(), values, strict=True)]


def _dense(cells: Sequence[Sequence[float]], shape: tuple[int, int]) -> Floats:
    matrix = np.zeros(shape)
    for row, column, value in cells:
        matrix[int(row), int(column)] = value
    return matrix
