"""Join the queue of the shortest expected delay, with known rates."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from owl_celery.fleet import Fleet
from owl_celery.simulate.baselines.oracle import Oracle
from owl_celery.types import TaskView


class JsedOracle(Oracle):
    """Send each task where it is expected to finish first; also called minimum completion time."""

    name: ClassVar[str] = "jsed_oracle"

    def scores(
        self, task: TaskView, service: npt.NDArray[np.float64], fleet: Fleet, now: float
    ) -> npt.NDArray[np.float64]:
        return fleet.wait_seconds(now) + service
