"""One queue after the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from owl_celery.errors import StateError
from owl_celery.fleet import Fleet
from owl_celery.policies.base import Policy
from owl_celery.policies.eligible import open_mask
from owl_celery.policies.randomness import restore_random, state_of
from owl_celery.types import Decision, TaskView

if TYPE_CHECKING:
    from owl_celery.settings import Settings


class RoundRobin(Policy):
    """Send each task to the next open queue in the order of the fleet.

    Parameters
    ----------
    seed
        Seed of where the round begins, so that several producers do not walk in step.

    Examples
    --------
    >>> fleet = Fleet(["gpu.a.0", "gpu.a.1"], ["V100", "V100"])
    >>> policy = RoundRobin(seed=1)
    >>> len({policy.choose(TaskView("resize"), fleet, now=0.0).queue for _ in range(2)})
    2

    """

    name: ClassVar[str] = "round_robin"

    def __init__(self, seed: int | None = None) -> None:
        self.seed = seed
        self._random = np.random.default_rng(seed)
        self._last = int(self._random.integers(1 << 30))

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        return cls(seed=settings.seed)

    def choose(self, task: TaskView, fleet: Fleet, now: float) -> Decision:
        rows = np.flatnonzero(open_mask(task, fleet))
        last = self._last % len(fleet)
        following = rows[rows > last]
        row = int(following[0] if len(following) else rows[0])
        self._last = row
        return Decision(fleet.names[row], fleet.gpu_model(row), self.name, propensity=1.0)

    def state(self) -> Mapping[str, Any]:
        return state_of(self.name, self._random, last=self._last)

    def restore(self, state: Mapping[str, Any]) -> None:
        restore_random(self.name, state, self._random)
        if not isinstance(state.get("last"), int):
            raise StateError("The saved state of round_robin lacks the last row.")
        self._last = state["last"]
