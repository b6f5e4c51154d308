"""The queue with the fewest tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from owl_celery.fleet import Fleet
from owl_celery.policies.base import Policy
from owl_celery.policies.eligible import open_mask, pick_least
from owl_celery.policies.randomness import restore_random, state_of
from owl_celery.types import Decision, TaskView

if TYPE_CHECKING:
    from owl_celery.settings import Settings


class ShortestQueue(Policy):
    """Send each task where the fewest tasks wait and run for each one that runs at a time.

    It needs no knowledge but the load, so the learned policies fall back to it.

    Parameters
    ----------
    seed
        Seed of the choice among equally short queues.

    Examples
    --------
    >>> fleet = Fleet(["gpu.a.0", "gpu.a.1"], ["V100", "V100"])
    >>> fleet.waiting_count[0] = 3
    >>> ShortestQueue(seed=1).choose(TaskView("resize"), fleet, now=0.0).queue
    'gpu.a.1'

    """

    name: ClassVar[str] = "shortest_queue"

    def __init__(self, seed: int | None = None) -> None:
        self.seed = seed
        self._random = np.random.default_rng(seed)

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        return cls(seed=settings.seed)

    def choose(self, task: TaskView, fleet: Fleet, now: float) -> Decision:
        mask = open_mask(task, fleet)
        tasks = (fleet.waiting_count + fleet.running_count()) / fleet.concurrency
        row, ties = pick_least(np.where(mask, tasks, np.inf), self._random)
        return Decision(fleet.names[row], fleet.gpu_model(row), self.name, propensity=1.0 / ties)

    def state(self) -> Mapping[str, Any]:
        return state_of(self.name, self._random)

    def restore(self, state: Mapping[str, Any]) -> None:
        restore_random(self.name, state, self._random)
