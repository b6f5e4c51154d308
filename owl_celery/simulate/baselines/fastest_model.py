"""The shortest queue of the GPU model on which the type runs fastest."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from owl_celery.fleet import Fleet
from owl_celery.simulate.baselines.oracle import Oracle
from owl_celery.types import TaskView


class FastestModel(Oracle):
    """What people write by hand: each task type is tied to its best GPU model."""

    name: ClassVar[str] = "fastest_model"

    def scores(
        self, task: TaskView, service: npt.NDArray[np.float64], fleet: Fleet, now: float
    ) -> npt.NDArray[np.float64]:
        usable = np.where(fleet.is_open, service, np.inf)
        is_best = usable <= usable.min() * (1.0 + 1e-9)
        return np.where(is_best, fleet.waiting_count + fleet.running_count(), np.inf)
