"""One step of policy improvement over the best random split, with known rates."""

from __future__ import annotations

from typing import ClassVar, Final

import numpy as np
import numpy.typing as npt

from owl_celery.fleet import Fleet
from owl_celery.simulate.baselines.oracle import Oracle
from owl_celery.simulate.instance import Instance
from owl_celery.types import TaskView

Floats = npt.NDArray[np.float64]

STEPS: Final = 300
SIZE_CV: Final = 0.3
MAX_LOAD: Final = 0.99


class PolicyImprovementOracle(Oracle):
    """Add to the completion time what the task costs those that come after it.

    Under a fixed random split each queue is an M/G/1 queue; its value function is known, and a
    task of ``s`` seconds at a backlog ``u`` costs ``rate / (1 - load) * s * (u + s / 2)`` more.
    The split is the one with the least mean response time.
    """

    name: ClassVar[str] = "policy_improvement_oracle"

    def __init__(self, instance: Instance, rate: float, seed: int = 0) -> None:
        super().__init__(instance, rate, seed)
        rates = best_split(instance, rate) * (rate * instance.mix[:, None] / instance.gpus)
        finite = np.where(np.isfinite(self._means), self._means, 0.0)
        load = np.minimum((rates * finite).sum(axis=0), MAX_LOAD)
        self._slope = (rates.sum(axis=0) / (1.0 - load))[instance.fleet().model_index]

    def scores(self, task: TaskView, service: Floats, fleet: Fleet, now: float) -> Floats:
        wait = fleet.wait_seconds(now)
        later: Floats = self._slope * service * (wait + service / 2.0)
        return wait + service + later


def best_split(instance: Instance, rate: float) -> Floats:
    """Share of each type for each GPU model that minimises the mean M/G/1 response, (K, C).

    Frank-Wolfe from the split of the linear program, with a line search at each step.
    """
    seconds = instance.table.seconds
    fits = np.isfinite(seconds)
    service = np.where(fits, seconds, 0.0)
    flow = rate * instance.mix[:, None] / instance.gpus
    squares = service**2 * (1.0 + SIZE_CV**2)

    def response(split: Floats) -> tuple[float, Floats]:
        rates = flow * split
        free = 1.0 - (rates * service).sum(axis=0)
        if (free <= 0.0).any():
            return np.inf, np.zeros_like(split)
        moment = (rates * squares).sum(axis=0)
        wait = moment / (2.0 * free)
        slope = rates.sum(axis=0) * (squares / (2.0 * free) + moment * service / (2.0 * free**2))
        total = float((instance.gpus * rates * (service + wait)).sum())
        return total, np.where(fits, service + wait + slope, np.inf)

    split = instance.capacity.fractions
    value, gradient = response(split)
    for _ in range(STEPS):
        if not np.isfinite(value):
            break
        corner = np.zeros_like(split)
        corner[np.arange(len(split)), gradient.argmin(axis=1)] = 1.0
        tries = [split + step * (corner - split) for step in np.geomspace(1e-4, 1.0, 30)]
        values = [response(each)[0] for each in tries]
        best = int(np.argmin(values))
        if values[best] >= value * (1.0 - 1e-9):
            break
        split = tries[best]
        value, gradient = response(split)
    return split
