"""What is known of each task while a simulation runs, as columns."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from owl_celery.simulate.arrivals import Arrivals
from owl_celery.simulate.conditions import Run
from owl_celery.types import Decision, Outcome, TaskView, TryState

UNPREDICTED_SECONDS: Final = 1.0
"""Counted for a task whose policy does not predict."""


class TaskBook:
    """Columns of length n, one row a task in order of arrival.

    Parameters
    ----------
    arrivals
        The tasks.
    types
        Names of the task types.
    size_feature
        Whether policies are told the size of a task.

    Attributes
    ----------
    times, kinds, sizes
        As in ``Arrivals``.
    views
        What policies may know of each; equal ones share an object.
    published
        When its last try was published, seconds.
    unsettled, lost
        Tasks that have not ended, and those given up.

    """

    def __init__(self, arrivals: Arrivals, types: tuple[str, ...], size_feature: bool) -> None:
        count = len(arrivals)
        self.times: list[float] = arrivals.times.tolist()
        self.kinds: list[int] = arrivals.types.tolist()
        self.sizes: list[float] = arrivals.sizes.tolist()
        models = arrivals.models or [None] * count
        shown = self.sizes if size_feature else [1.0] * count
        known: dict[tuple[int, float, str | None], TaskView] = {}
        self.views: list[TaskView] = []
        for key in zip(self.kinds, shown, models, strict=True):
            view = known.get(key)
            if view is None:
                view = known[key] = TaskView(types[key[0]], key[1], key[2])
            self.views.append(view)
        self.published = list(self.times)
        self.unsettled = count
        self.lost = 0
        self._predicted: list[float | None] = [None] * count
        self._explored = [False] * count
        self._explorations = 0
        self._tries = [0] * count
        self._ends = [math.nan] * count
        self._queues = [-1] * count

    def decided(self, index: int, decision: Decision) -> None:
        """Note what was decided for the next try."""
        self._predicted[index] = decision.service_seconds
        self._explored[index] = decision.explored
        self._explorations += decision.explored

    def predict(self, index: int, seconds: float | None) -> None:
        """Replace the predicted service seconds: the task runs elsewhere than was decided."""
        self._predicted[index] = seconds

    def counted_seconds(self, index: int) -> float:
        """Service seconds to count for a task in the load."""
        predicted = self._predicted[index]
        return UNPREDICTED_SECONDS if predicted is None else predicted

    def tries(self, index: int) -> int:
        """Tries that have ended."""
        return self._tries[index]

    def end_try(
        self, index: int, row: int, model: str, state: TryState, out_of_memory: bool, now: float
    ) -> None:
        """Note how a try on a queue ended; after a lack of memory the model counts as tried."""
        self._tries[index] += 1
        self._queues[index] = row
        if state.succeeded:
            self._end(index, now)
        elif out_of_memory:
            view = self.views[index]
            tried = view.tried | {model}
            self.views[index] = TaskView(view.task_type, view.size, view.model, tried)

    def give_up(self, index: int, now: float) -> None:
        """End a task without success."""
        self.lost += 1
        self._end(index, now)

    def _end(self, index: int, now: float) -> None:
        self._ends[index] = now
        self.unsettled -= 1

    def outcome(
        self,
        index: int,
        queue: str,
        model: str,
        algorithm: str,
        state: TryState,
        out_of_memory: bool,
        started: float,
        now: float,
    ) -> Outcome:
        """What a worker would report of the try that ends now."""
        view, attempt = self.views[index], self._tries[index]
        return Outcome(
            task_id=str(index),
            decision_id=f"{index}.{attempt}",
            attempt=attempt,
            task_type=view.task_type,
            size=view.size,
            queue=queue,
            worker_id=queue,
            gpu_model=model,
            state=state,
            service_seconds=now - started,
            finished_at=now,
            wait_seconds=started - self.published[index],
            predicted_seconds=self._predicted[index],
            algorithm=algorithm,
            explored=self._explored[index],
            error=_error(state, out_of_memory),
            out_of_memory=out_of_memory,
            model=view.model,
        )

    def run(self, stolen: int) -> Run:
        """What has happened, as arrays."""
        arrived = np.array(self.times)
        return Run(
            arrived=arrived,
            response=np.array(self._ends) - arrived,
            tries=np.array(self._tries),
            queues=np.array(self._queues),
            lost=self.lost,
            stolen=stolen,
            explored=self._explorations,
        )


def _error(state: TryState, out_of_memory: bool) -> str | None:
    """Class name of what a try raises."""
    if state.succeeded:
        return None
    if state is TryState.LOST:
        return "WorkerLostError"
    return "OutOfMemoryError" if out_of_memory else "RuntimeError"
