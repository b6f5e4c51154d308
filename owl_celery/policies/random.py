"""Any open queue, each as likely as the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from owl_celery.fleet import Fleet
from owl_celery.policies.base import Policy
from owl_celery.policies.eligible import open_mask
from owl_celery.policies.randomness import restore_random, state_of
from owl_celery.types import Decision, TaskView

if TYPE_CHECKING:
    from owl_celery.settings import Settings


class Random(Policy):
    """Send each task to an open queue at random: the floor that anything learned must beat.

    Parameters
    ----------
    seed
        Seed of the random choices.

    Examples
    --------
    >>> policy = Random(seed=1)
    >>> policy.choose(TaskView("resize"), Fleet(["gpu.a.0"], ["V100"]), now=0.0).queue
    'gpu.a.0'

    """

    name: ClassVar[str] = "random"

    def __init__(self, seed: int | None = None) -> None:
        self.seed = seed
        self._random = np.random.default_rng(seed)

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        return cls(seed=settings.seed)

    def choose(self, task: TaskView, fleet: Fleet, now: float) -> Decision:
        rows = np.flatnonzero(open_mask(task, fleet))
        row = int(rows[self._random.integers(len(rows))])
        return Decision(
            fleet.names[row], fleet.gpu_model(row), self.name, propensity=1.0 / len(rows)
        )

    def state(self) -> Mapping[str, Any]:
        return state_of(self.name, self._random)

    def restore(self, state: Mapping[str, Any]) -> None:
        restore_random(self.name, state, self._random)
