"""Fixed shares of each type for each GPU model, by the linear program of the capacity."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from owl_celery.fleet import Fleet
from owl_celery.simulate.baselines.oracle import Oracle
from owl_celery.types import TaskView


class LpSplit(Oracle):
    """Draw the GPU model by the optimal shares, then take its shortest queue."""

    name: ClassVar[str] = "lp_split"

    def scores(
        self, task: TaskView, service: npt.NDArray[np.float64], fleet: Fleet, now: float
    ) -> npt.NDArray[np.float64]:
        shares = self.instance.capacity.fractions[self.kind(task)].copy()
        is_usable = np.zeros(len(shares), dtype=np.bool_)
        is_usable[fleet.model_index[fleet.is_open & np.isfinite(service)]] = True
        shares[~is_usable] = 0.0
        if shares.sum() <= 0.0:
            shares = is_usable.astype(np.float64)
        column = self._random.choice(len(shares), p=shares / shares.sum())
        length = fleet.waiting_count + fleet.running_count()
        return np.where((fleet.model_index == column) & np.isfinite(service), length, 1e9)
