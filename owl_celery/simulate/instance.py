"""One random instance of the benchmark: service times, type mix and fleet of one seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from owl_celery.fleet import Fleet
from owl_celery.simulate.capacity import Capacity, lp_capacity
from owl_celery.simulate.table import ServiceTable

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Instance:
    """What is true in one simulated world; only oracles may look.

    Parameters
    ----------
    table
        Mean service seconds, columns in the order of ``Fleet.models`` (sorted).
    mix
        Share of each task type among arrivals, sums to 1, shape (K,).
    gpus
        Number of GPUs of each model of the table, shape (C,).

    """

    table: ServiceTable
    mix: Floats
    gpus: npt.NDArray[np.int64]

    @classmethod
    def draw(cls, table: ServiceTable, fleet: Mapping[str, int], seed: int) -> Instance:
        """Draw the instance of a seed.

        Every type takes ``exp(U[-1, 1])`` on its best GPU, by the table's ratios elsewhere; types
        have shares ``U[0.5, 1.5]``; all is scaled so that the mean service on the best GPU is 1 s.
        """
        rng = np.random.default_rng([seed, 1])
        levelled = table.restricted(tuple(sorted(fleet))).levelled()
        weights = np.exp(rng.uniform(-1.0, 1.0, len(table.types)))
        mix = rng.uniform(0.5, 1.5, len(table.types))
        mix /= mix.sum()
        seconds = levelled.seconds * weights[:, None] / float(weights @ mix)
        return cls._of(ServiceTable(table.types, levelled.models, seconds), mix, fleet)

    @classmethod
    def as_measured(
        cls, table: ServiceTable, fleet: Mapping[str, int], mix: Floats | None = None
    ) -> Instance:
        """Take the table's own seconds, and equal shares unless a mix is given."""
        share = np.ones(len(table.types)) if mix is None else np.asarray(mix, dtype=np.float64)
        return cls._of(table.restricted(tuple(sorted(fleet))), share / share.sum(), fleet)

    @classmethod
    def _of(cls, table: ServiceTable, mix: Floats, fleet: Mapping[str, int]) -> Instance:
        gpus = np.array([fleet[model] for model in table.models], dtype=np.int64)
        return cls(table, mix, gpus)

    @cached_property
    def capacity(self) -> Capacity:
        """The most this fleet can serve of this mix."""
        return lp_capacity(self.table.seconds, self.mix, self.gpus.astype(np.float64))

    @cached_property
    def mean_best_seconds(self) -> float:
        """Mean service time if every task ran on its best GPU model."""
        return float(self.mix @ np.nanmin(self.table.seconds, axis=1))

    def fleet(self) -> Fleet:
        """Build the empty queues, one per GPU."""
        models = [m for m, n in zip(self.table.models, self.gpus, strict=True) for _ in range(n)]
        return Fleet([f"gpu.host.{i}" for i in range(len(models))], models)
