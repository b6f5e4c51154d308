"""The shorter of two queues drawn at random."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from owl_celery.fleet import Fleet
from owl_celery.policies.base import Policy
from owl_celery.policies.eligible import open_mask
from owl_celery.simulate.instance import Instance
from owl_celery.types import Decision, TaskView


class PowerOfTwo(Policy):
    """Draw two open queues and take the one with fewer tasks."""

    name: ClassVar[str] = "power_of_two"

    def __init__(self, instance: Instance, rate: float, seed: int = 0) -> None:
        self._random = np.random.default_rng([seed, 5])

    def choose(self, task: TaskView, fleet: Fleet, now: float) -> Decision:
        rows = np.flatnonzero(open_mask(task, fleet))
        drawn = self._random.choice(rows, size=min(2, len(rows)), replace=False)
        lengths = [
            int(fleet.waiting_count[row]) + int(np.count_nonzero(fleet.running_seconds[row]))
            for row in drawn
        ]
        row = int(drawn[int(np.argmin(lengths))])
        return Decision(fleet.names[row], fleet.gpu_model(row), self.name)
