"""Balanced-PANDAS with known rates: the least workload weighted by the service time."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from owl_celery.fleet import Fleet
from owl_celery.simulate.baselines.oracle import Oracle
from owl_celery.types import TaskView


class PandasOracle(Oracle):
    """Minimise workload times service time; among idle queues the fastest wins."""

    name: ClassVar[str] = "pandas_oracle"

    def scores(
        self, task: TaskView, service: npt.NDArray[np.float64], fleet: Fleet, now: float
    ) -> npt.NDArray[np.float64]:
        workload = fleet.waiting_seconds + fleet.residual_seconds(now)
        # The small share of service only breaks ties of an empty queue.
        return (workload + 1e-6) * service
