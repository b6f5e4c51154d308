"""One step of policy improvement over the linear program's split, with known rates."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from owl_celery.fleet import Fleet
from owl_celery.simulate.baselines.oracle import Oracle
from owl_celery.simulate.instance import Instance
from owl_celery.types import TaskView


class PolicyImprovementOracle(Oracle):
    """Add to the completion time what the task costs those that come after it.

    Under a fixed random split each queue is an M/G/1 queue; its value function is known, and a
    task of ``s`` seconds at a backlog ``u`` costs ``rate / (1 - load) * s * (u + s / 2)`` more.
    """

    name: ClassVar[str] = "policy_improvement_oracle"

    def __init__(self, instance: Instance, rate: float, seed: int = 0) -> None:
        super().__init__(instance, rate, seed)
        rates = rate * instance.mix[:, None] * instance.capacity.fractions / instance.gpus
        finite = np.where(np.isfinite(self._means), self._means, 0.0)
        load = np.minimum((rates * finite).sum(axis=0), 0.99)
        index = instance.fleet().model_index
        self._slope = (rates.sum(axis=0) / (1.0 - load))[index]

    def scores(
        self, task: TaskView, service: npt.NDArray[np.float64], fleet: Fleet, now: float
    ) -> npt.NDArray[np.float64]:
        wait = fleet.wait_seconds(now)
        later: npt.NDArray[np.float64] = self._slope * service * (wait + service / 2.0)
        return wait + service + later
