"""Blind GB-PANDAS: Balanced-PANDAS on learned rates, with forced exploration that fades."""

from __future__ import annotations

from typing import ClassVar, Final

import numpy as np

from owl_celery.fleet import Fleet
from owl_celery.policies.base import Policy
from owl_celery.policies.eligible import open_mask, pick_least
from owl_celery.simulate.instance import Instance
from owl_celery.types import Decision, Outcome, TaskView

EXPLORATION_POWER: Final = 0.5
"""The n-th task explores with probability ``n ** -0.5``."""


class BlindPandas(Policy):
    """Minimise estimated workload times estimated service time, each (type, queue) by itself.

    It follows Yekkehkhany and Nagi (arXiv 1901.04047): it knows neither arrival nor service
    rates, and does not know that GPUs of one model are alike.
    """

    name: ClassVar[str] = "blind_pandas"

    def __init__(self, instance: Instance, rate: float, seed: int = 0) -> None:
        queues = len(instance.fleet())
        self._random = np.random.default_rng([seed, 5])
        self._kind = {name: kind for kind, name in enumerate(instance.table.types)}
        self._row = {name: row for row, name in enumerate(instance.fleet().names)}
        self._count = np.zeros((len(self._kind), queues))
        self._mean = np.ones((len(self._kind), queues))
        self._chosen = 0

    def choose(self, task: TaskView, fleet: Fleet, now: float) -> Decision:
        mask = open_mask(task, fleet)
        service = self._mean[self._kind[task.task_type]] * task.size
        self._chosen += 1
        explored = self._random.random() < self._chosen**-EXPLORATION_POWER
        if explored:
            row = int(self._random.choice(np.flatnonzero(mask)))
        else:
            workload = fleet.waiting_seconds + fleet.residual_seconds(now)
            scores = np.where(mask, (workload + 1e-6) * service, np.inf)
            row, _ = pick_least(scores, self._random)
        return Decision(
            fleet.names[row],
            fleet.gpu_model(row),
            self.name,
            service_seconds=float(service[row]),
            explored=bool(explored),
        )

    def learn_one(self, outcome: Outcome, now: float) -> None:
        if not outcome.state.succeeded:
            return
        cell = self._kind[outcome.task_type], self._row[outcome.queue]
        self._count[cell] += 1.0
        sample = outcome.service_seconds / outcome.size
        self._mean[cell] += (sample - self._mean[cell]) / self._count[cell]
