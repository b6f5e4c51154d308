"""The queues that can be chosen, as columns: one numpy array an attribute, one row a queue."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from owl_celery.types import QueueView, TaskView

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

OVERRUN_SHARE: Final = 0.3
"""A task that outlives its prediction is expected to run this share of its elapsed time longer."""

REUSE_SECONDS: Final = 0.005
"""How long a settled fleet's residual holds: a fraction of the shortest tasks worth routing."""

MODERATE_SECONDS: Final = 1e9
"""Load below which no score comes near the end of the range of numbers."""

LEAST_SECONDS: Final = 1e-6
"""Prediction for a running task that is said to take no time at all."""


class Fleet:
    """Queues and their load.

    The columns may be written in place by the one owner of the object (the simulator, the sync
    thread before it publishes the object); readers never write.

    Parameters
    ----------
    names
        N queue names.
    gpu_models
        GPU model of each queue, N strings.
    concurrency
        Tasks that each queue runs at a time, N integers >= 1; all 1 when omitted.

    Attributes
    ----------
    models
        The distinct GPU models, sorted.
    rows_of_models
        Rows of the queues of each of ``models``.
    model_index
        Index into ``models``, shape (N,).
    concurrency
        Shape (N,).
    is_open
        False where no task may be sent, shape (N,).
    free_memory_bytes
        Free GPU memory of the idle queue, NaN where unknown, shape (N,).
    waiting_count, waiting_seconds
        Tasks that wait and their predicted service seconds, shape (N,).
    running_seconds, running_since
        Predicted service seconds (0 in an idle slot) and start time of what runs, shape (N, C)
        with C the largest concurrency.
    unseen_seconds
        Predicted seconds that other producers have sent since to the queues of each of ``models``,
        nobody knows to which, shape (C,); None where there is no other.
    is_all_open
        Whether the fleet is settled and tasks may be sent to every queue.
    is_simple
        Whether the fleet is settled, serves one task at a time in each queue and has a load
        within reason: the wait is then what runs plus what waits.

    Examples
    --------
    >>> fleet = Fleet(["gpu.a.0", "gpu.a.1"], ["V100", "K80"])
    >>> fleet.running_seconds[0, 0] = 4.0
    >>> fleet.running_since[0, 0] = 10.0
    >>> fleet.wait_seconds(now=11.0).tolist()
    [3.0, 0.0]

    """

    __slots__ = (
        "_is_settled",
        "_residual",
        "_residual_at",
        "_the_open",
        "concurrency",
        "free_memory_bytes",
        "is_all_open",
        "is_open",
        "is_simple",
        "model_index",
        "models",
        "names",
        "rows_of_models",
        "running_seconds",
        "running_since",
        "unseen_seconds",
        "waiting_count",
        "waiting_seconds",
    )

    def __init__(
        self,
        names: Sequence[str],
        gpu_models: Sequence[str],
        concurrency: Sequence[int] | None = None,
    ) -> None:
        if len(names) != len(gpu_models):
            raise ValueError(f"{len(names)} names but {len(gpu_models)} GPU models: give one each")
        if len(set(names)) != len(names):
            raise ValueError("queue names must be distinct")
        count = len(names)
        if concurrency is not None and (
            len(concurrency) != count or min(concurrency, default=1) < 1
        ):
            raise ValueError("concurrency must be one whole number >= 1 for each queue")
        self.names: tuple[str, ...] = tuple(names)
        self.models: tuple[str, ...] = tuple(sorted(set(gpu_models)))
        position = {model: index for index, model in enumerate(self.models)}
        self.model_index: Ints = np.array([position[m] for m in gpu_models], dtype=np.int64)
        self.concurrency: Ints = np.array(
            [1] * count if concurrency is None else concurrency, dtype=np.int64
        )
        self.rows_of_models: tuple[Ints, ...] = tuple(
            np.flatnonzero(self.model_index == index) for index in range(len(self.models))
        )
        slots = int(self.concurrency.max(initial=1))
        self._unsettle()
        self.is_open: Bools = np.ones(count, dtype=np.bool_)
        self.free_memory_bytes: Floats = np.full(count, np.nan)
        self.waiting_count: Ints = np.zeros(count, dtype=np.int64)
        self.waiting_seconds: Floats = np.zeros(count)
        self.running_seconds: Floats = np.zeros((count, slots))
        self.running_since: Floats = np.zeros((count, slots))

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def of(cls, queues: Iterable[QueueView], now: float = 0.0) -> Fleet:
        """Build the columns from one value a queue; ``now`` dates what runs.

        Examples
        --------
        >>> busy = QueueView("gpu.a.0", "V100", waiting_count=1, waiting_seconds=9.0,
        ...                  running=((2.0, 1.5),))
        >>> Fleet.of([busy, QueueView("gpu.a.1", "V100")]).wait_seconds(0.0).round(3).tolist()
        [9.6, 0.0]

        """
        views = list(queues)
        fleet = cls(
            [v.name for v in views], [v.gpu_model for v in views], [v.concurrency for v in views]
        )
        for row, view in enumerate(views):
            fleet.is_open[row] = view.is_open
            fleet.waiting_count[row] = view.waiting_count
            fleet.waiting_seconds[row] = view.waiting_seconds
            if view.free_memory_bytes is not None:
                fleet.free_memory_bytes[row] = view.free_memory_bytes
            for slot, (predicted, elapsed) in enumerate(view.running[: view.concurrency]):
                # Zero would mean an idle slot.
                fleet.running_seconds[row, slot] = max(predicted, LEAST_SECONDS)
                fleet.running_since[row, slot] = now - elapsed
        return fleet

    def emptied(self) -> Fleet:
        """The same queues without load; what never changes is shared, names to their identity."""
        fleet = object.__new__(Fleet)
        fleet.names, fleet.models, fleet.model_index = self.names, self.models, self.model_index
        fleet.concurrency, fleet.rows_of_models = self.concurrency, self.rows_of_models
        fleet._unsettle()
        fleet.is_open = np.ones(len(self), dtype=np.bool_)
        fleet.free_memory_bytes = np.full(len(self), np.nan)
        fleet.waiting_count = np.zeros(len(self), dtype=np.int64)
        fleet.waiting_seconds = np.zeros(len(self))
        fleet.running_seconds = np.zeros(self.running_seconds.shape)
        fleet.running_since = np.zeros(self.running_since.shape)
        return fleet

    def _unsettle(self) -> None:
        self._is_settled = self.is_simple = self.is_all_open = False
        self._residual: Floats | None = None
        self._residual_at = 0.0
        self._the_open = 0
        self.unseen_seconds: Floats | None = None

    def settle(self) -> None:
        """Promise that only the waiting columns will be written from now on, and by little.

        What depends on the others need then not be worked out for every decision.
        """
        self._the_open = int(np.count_nonzero(self.is_open))
        self.is_all_open = self._the_open == len(self) > 0
        self.is_simple = (
            self.running_seconds.shape[1] == 1
            and float(self.waiting_seconds.max(initial=0.0)) < MODERATE_SECONDS
            and float(self.running_seconds.max(initial=0.0)) < MODERATE_SECONDS
        )
        self._is_settled = True

    @property
    def open_count(self) -> int:
        """Queues to which tasks may be sent."""
        return self._the_open if self._is_settled else int(np.count_nonzero(self.is_open))

    def gpu_model(self, row: int) -> str:
        """GPU model of one queue."""
        return self.models[self.model_index.item(row)]

    def residual_seconds(self, now: float) -> Floats:
        """Predicted rest of what runs, summed over the slots of each queue, shape (N,).

        Do not write to the result: a settled fleet gives it again for a few milliseconds.
        """
        if self._residual is not None and 0.0 <= now - self._residual_at < REUSE_SECONDS:
            return self._residual
        residual = self._residual_seconds(now)
        if self._is_settled:
            self._residual, self._residual_at = residual, now
        return residual

    def _residual_seconds(self, now: float) -> Floats:
        predicted = self.running_seconds
        elapsed = np.maximum(now - self.running_since, 0.0)
        rest = np.maximum(predicted - elapsed, OVERRUN_SHARE * np.maximum(predicted, elapsed))
        rest *= predicted > 0.0
        # Most queues run one task at a time, and a sum over an axis of one is slow.
        total: Floats = rest[:, 0] if rest.shape[1] == 1 else rest.sum(axis=1)
        return total

    def running_count(self) -> Ints:
        """Tasks that run on each queue, shape (N,)."""
        is_running = self.running_seconds > 0.0
        if is_running.shape[1] == 1:
            return is_running[:, 0].astype(np.int64)
        count: Ints = is_running.sum(axis=1)
        return count

    def wait_seconds(self, now: float) -> Floats:
        """Predicted wait of a task that joins each queue now, shape (N,).

        A queue with a free slot has no wait; a full one works off its backlog with all its slots.
        """
        backlog = self.waiting_seconds + self.residual_seconds(now)
        is_full = self.waiting_count + self.running_count() >= self.concurrency
        return np.where(is_full, backlog / self.concurrency, 0.0)


@dataclass(frozen=True, slots=True, eq=False)
class WaitingTasks:
    """Tasks that wait and may be moved, as columns of length M.

    Those of one queue stand together, in the order in which they will run.

    Parameters
    ----------
    tasks
        What a policy may know of each.
    rows
        The queue each waits in, shape (M,).
    service_seconds
        Predicted service time where it waits, shape (M,).
    ahead_seconds
        Predicted work ahead of it in its queue, the rest of what runs included, shape (M,).
    behind_count
        Tasks behind it in its queue, shape (M,).
    published_at
        When it was published, on the clock of ``now``, shape (M,).

    """

    tasks: Sequence[TaskView]
    rows: Ints
    service_seconds: Floats
    ahead_seconds: Floats
    behind_count: Ints
    published_at: Floats

    def __len__(self) -> int:
        return len(self.tasks)
