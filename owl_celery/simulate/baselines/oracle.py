"""What the policies with known rates share: true mean service times, but not the luck of a task."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
import numpy.typing as npt

from owl_celery.fleet import Fleet
from owl_celery.policies.base import Policy
from owl_celery.policies.eligible import open_mask, pick_least
from owl_celery.simulate.instance import Instance
from owl_celery.types import Decision, TaskView

Floats = npt.NDArray[np.float64]


class Oracle(Policy):
    """Chooses the queue of the least score, by true mean service times.

    It knows the GPUs as built: a throttled one surprises it.

    Parameters
    ----------
    instance
        What is true.
    rate
        Mean arrival rate, tasks per second.
    seed
        Of the choice among equal scores.

    """

    def __init__(self, instance: Instance, rate: float, seed: int = 0) -> None:
        self.instance = instance
        self.rate = rate
        self._random = np.random.default_rng([seed, 5])
        self._kind = {name: kind for kind, name in enumerate(instance.table.types)}
        self._column = {name: column for column, name in enumerate(instance.table.models)}
        means = instance.table.seconds
        self._means = np.where(np.isnan(means), np.inf, means)
        self._by_queue = self._means[:, instance.fleet().model_index]

    def kind(self, task: TaskView) -> int:
        """Row of the task's type in the table."""
        return self._kind[task.task_type]

    def service_seconds(self, task: TaskView) -> Floats:
        """Mean service time on each queue, infinite where the task does not fit."""
        seconds: Floats = self._by_queue[self._kind[task.task_type]] * task.size
        return seconds

    def predict_seconds(self, task: TaskView, gpu_model: str) -> float | None:
        seconds = self._means[self._kind[task.task_type], self._column[gpu_model]] * task.size
        return float(seconds)

    @abstractmethod
    def scores(self, task: TaskView, service: Floats, fleet: Fleet, now: float) -> Floats:
        """Score of each queue; the least wins."""

    def choose(self, task: TaskView, fleet: Fleet, now: float) -> Decision:
        service = self.service_seconds(task)
        scores = self.scores(task, service, fleet, now)
        row, _ = pick_least(np.where(open_mask(task, fleet), scores, np.inf), self._random)
        return Decision(
            fleet.names[row], fleet.gpu_model(row), self.name, service_seconds=float(service[row])
        )
