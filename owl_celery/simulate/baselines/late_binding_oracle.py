"""A central queue that is planned anew whenever a GPU is free, with known rates."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import numpy as np

from owl_celery.fleet import Fleet
from owl_celery.simulate.central import Central
from owl_celery.simulate.instance import Instance
from owl_celery.types import TaskView


class LateBindingOracle(Central):
    """Plan all held tasks in order of arrival, each where it would finish first; start what can.

    A task that would rather wait for a busy GPU than run on a slow idle one waits, and those
    behind it may go first. It binds a task when it starts, so no router can do as well with the
    same rule.
    """

    name: ClassVar[str] = "late_binding_oracle"

    def __init__(self, instance: Instance, rate: float, seed: int = 0) -> None:
        means = instance.table.seconds
        self._means = np.where(np.isnan(means), np.inf, means)
        self._kind = {name: kind for kind, name in enumerate(instance.table.types)}
        self._column = {name: column for column, name in enumerate(instance.table.models)}
        self._by_queue = self._means[:, instance.fleet().model_index]
        self._held: dict[int, TaskView] = {}

    def hold(self, index: int, task: TaskView) -> None:
        self._held[index] = task

    def predict_seconds(self, task: TaskView, gpu_model: str) -> float | None:
        seconds = self._means[self._kind[task.task_type], self._column[gpu_model]] * task.size
        return float(seconds)

    def release(self, idle: Iterable[int], fleet: Fleet, now: float) -> tuple[int, int] | None:
        if not self._held:
            return None
        free_in = fleet.residual_seconds(now)
        free_in[~fleet.is_open] = np.inf
        still_idle = set(idle)
        for index, task in self._held.items():
            service = self._by_queue[self._kind[task.task_type]] * task.size
            row = int(np.argmin(free_in + service))
            if row in still_idle:
                del self._held[index]
                return index, row
            free_in[row] += service[row]
        return None
