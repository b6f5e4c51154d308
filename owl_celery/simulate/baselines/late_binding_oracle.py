"""A central queue that is planned anew whenever a GPU is free, with known rates."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import numpy as np

from owl_celery.fleet import Fleet
from owl_celery.simulate.baselines.priced_oracle import GAIN, rule_prices
from owl_celery.simulate.central import Central
from owl_celery.simulate.instance import Instance
from owl_celery.types import TaskView


class LateBindingOracle(Central):
    """Plan all held tasks in order of arrival by the priced rule; start what can start.

    A task that would rather wait for a busy GPU than run on a slow idle one waits, and those
    behind it may go first. It binds a task only when it starts, which no router can do.

    Parameters
    ----------
    instance
        What is true.
    rate
        Mean arrival rate, tasks per second.
    seed
        Unused: nothing is drawn.

    """

    name: ClassVar[str] = "late_binding_oracle"

    def __init__(self, instance: Instance, rate: float, seed: int = 0) -> None:
        means = instance.table.seconds
        self._means = np.where(np.isnan(means), np.inf, means)
        self._kind = {name: kind for kind, name in enumerate(instance.table.types)}
        self._column = {name: column for column, name in enumerate(instance.table.models)}
        index = instance.fleet().model_index
        self._by_queue = self._means[:, index]
        self._static, self._present, self._heavy = (
            prices[index] for prices in rule_prices(instance, rate)
        )
        self._held: dict[int, tuple[TaskView, float]] = {}
        self._held_work = 0.0

    def hold(self, index: int, task: TaskView) -> None:
        service = self._by_queue[self._kind[task.task_type]] * task.size
        work = float((self._heavy * service).min())
        self._held[index] = (task, work)
        self._held_work += work

    def predict_seconds(self, task: TaskView, gpu_model: str) -> float | None:
        seconds = self._means[self._kind[task.task_type], self._column[gpu_model]] * task.size
        return float(seconds)

    def release(self, idle: Iterable[int], fleet: Fleet, now: float) -> tuple[int, int] | None:
        if not self._held:
            return None
        free_in = fleet.residual_seconds(now).copy()
        running = float(self._present @ free_in)
        work = max(running + self._held_work, 1e-9)
        share = (self._present * running + self._heavy * self._held_work) / work
        free_in[~fleet.is_open] = np.inf
        still_idle = set(idle)
        gain = GAIN * len(fleet) * share
        for index, (task, own) in self._held.items():
            service = self._by_queue[self._kind[task.task_type]] * task.size
            later = self._static + gain * (work + 0.5 * share * service)
            row = int(np.argmin(free_in + service * (1.0 + later)))
            if row in still_idle:
                del self._held[index]
                self._held_work = self._held_work - own if self._held else 0.0
                return index, row
            free_in[row] += service[row]
        return None
