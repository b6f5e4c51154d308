"""Which machine-learning model each queue has loaded, and how long loading another one takes.

A task that names its model and follows one that used another pays for loading; so does the next
task of the model that had to go. Both are counted in seconds, never as a priority: a popular
model that is worth a second copy gets one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, Self

import numpy as np

from owl_celery.errors import StateError
from owl_celery.fleet import Fleet, Floats, Ints
from owl_celery.prior import PRIOR_SAMPLES, LoadPrior

MAX_MODELS: Final = 1_000
MAX_QUEUES: Final = 10_000
"""Models and queues kept; the one seen longest ago is forgotten first."""

LOAD_MEMORY: Final = 50
SHARE_MEMORY: Final = 2_000
"""Loads over which a load time is taken, and tries over which a model's share is."""

EVICTION_WEIGHT: Final = 0.3
"""Share of its load time that throwing a model out costs at most."""


class WarmModels:
    """Learned load times, popularity and whereabouts of models; also what a snapshot holds."""

    def __init__(self) -> None:
        self._loads: dict[str, tuple[float, float]] = {}
        self._all = (0.0, 0.0)
        self._shares: dict[str, float] = {}
        self._loaded: dict[str, str] = {}

    def observe(self, queue: str, model: str) -> bool:
        """Note that a queue has run a task of a model; whether it had to load it."""
        was_cold = self._loaded.pop(queue, None) != model
        if len(self._loaded) >= MAX_QUEUES:
            del self._loaded[next(iter(self._loaded))]
        self._loaded[queue] = model
        kept = 1.0 - 1.0 / SHARE_MEMORY
        self._shares = {name: share * kept for name, share in self._shares.items()}
        share = self._shares.pop(model, 0.0)
        if len(self._shares) >= MAX_MODELS:
            self._shares.pop(next(iter(self._shares)))
        self._shares[model] = share + 1.0 - kept
        return was_cold

    def learn_load(self, model: str, seconds: float) -> None:
        """Learn how much longer a try took that had to load its model; may be negative by noise."""
        self._all = _averaged(self._all, seconds)
        load = _averaged(self._loads.pop(model, (0.0, 0.0)), seconds)
        if len(self._loads) >= MAX_MODELS:
            del self._loads[next(iter(self._loads))]
        self._loads[model] = load

    def load_seconds(self, model: str) -> float:
        """Expected time to load a model; before it was ever loaded, that of the others."""
        count, mean = self._loads.get(model, (0.0, 0.0))
        return max((count * mean + self._all[1]) / (count + 1.0), 0.0)

    def export_prior(self) -> tuple[LoadPrior, ...]:
        """The load times as another site can begin from them."""
        return tuple(
            LoadPrior(model, max(mean, 0.0), math.ceil(count))
            for model, (count, mean) in self._loads.items()
        )

    def import_prior(self, loads: Sequence[LoadPrior]) -> int:
        """Take the load times of models that were never loaded here; says how many."""
        taken = 0
        for load in loads:
            if load.count < 1 or load.model in self._loads or len(self._loads) >= MAX_MODELS:
                continue
            self._loads[load.model] = min(float(load.count), PRIOR_SAMPLES), load.seconds
            self._all = _averaged(self._all, load.seconds)
            taken += 1
        return taken

    def loaded(self) -> Mapping[str, str]:
        """Model of the last task that each queue is known to have run."""
        return self._loaded

    def share(self, model: str) -> float:
        """Share of the tasks with a model that need this one."""
        total = sum(self._shares.values())
        return self._shares.get(model, 0.0) / total if total > 0.0 else 0.0

    def state(self) -> dict[str, Any]:
        """Everything, exactly, as JSON values."""
        return {
            "loads": {name: list(load) for name, load in self._loads.items()},
            "all": list(self._all),
            "shares": dict(self._shares),
            "loaded": dict(self._loaded),
        }

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Self:
        """Read what ``state()`` wrote.

        Raises
        ------
        StateError
            When it is damaged.

        """
        warm = cls()
        try:
            warm._loads = {str(k): (float(n), float(s)) for k, (n, s) in state["loads"].items()}
            count, mean = state["all"]
            warm._all = float(count), float(mean)
            warm._shares = {str(name): float(share) for name, share in state["shares"].items()}
            warm._loaded = {str(queue): str(model) for queue, model in state["loaded"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StateError("The saved load times of models are damaged.") from error
        numbers = [
            *warm._all,
            *warm._shares.values(),
            *(x for v in warm._loads.values() for x in v),
        ]
        if not all(math.isfinite(number) for number in numbers):
            raise StateError("The saved load times of models are damaged: a number is not finite.")
        return warm


class Occupancy:
    """Model of the last task sent to each queue of one fleet, own choices included.

    Parameters
    ----------
    fleet
        The queues.
    last
        Model that each queue is believed to end up with, by queue name.

    """

    def __init__(self, fleet: Fleet, last: Mapping[str, str]) -> None:
        self.fleet = fleet
        self._names: list[str] = [""]
        self._ids: dict[str, int] = {"": 0}
        self._last: Ints = np.zeros(len(fleet), dtype=np.int64)
        if last:
            for row, name in enumerate(fleet.names):
                self.sent(row, last.get(name, ""))

    def sent(self, row: int, model: str) -> None:
        """Note that a task of a model was sent to a queue."""
        number = self._ids.get(model)
        if number is None:
            number = self._ids[model] = len(self._names)
            self._names.append(model)
        self._last[row] = number

    def costs(self, model: str, warm: WarmModels) -> tuple[Floats, Floats]:
        """Seconds to load a model on each queue, and what throwing out the one there costs."""
        is_cold = self._last != self._ids.get(model, -1)
        switch: Floats = np.where(is_cold, warm.load_seconds(model), 0.0)
        copies = np.bincount(self._last, minlength=len(self._names))
        count = len(self.fleet)
        loss = np.array(
            [0.0]
            + [
                EVICTION_WEIGHT
                * warm.load_seconds(name)
                * min(1.0, warm.share(name) * count / max(int(copies[number]), 1))
                for number, name in enumerate(self._names[1:], start=1)
            ]
        )
        return switch, np.where(is_cold, loss[self._last], 0.0)


def _averaged(load: tuple[float, float], seconds: float) -> tuple[float, float]:
    count = min(load[0] + 1.0, LOAD_MEMORY)
    return count, load[1] + (seconds - load[1]) / count
