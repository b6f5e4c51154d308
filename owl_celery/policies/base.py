"""What a policy is: two verbs, no clock, no I/O, deterministic given its seed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

if TYPE_CHECKING:
    from owl_celery.fleet import Fleet, WaitingTasks
    from owl_celery.policies.q_table import QTable
    from owl_celery.prior import Prior, TakenPrior
    from owl_celery.settings import Settings
    from owl_celery.types import Decision, Outcome, TaskView


class Policy(ABC):
    """Chooses the queue of each task and learns from what happened.

    One object can play both parts, as in the simulator. In production the controller's object
    learns and publishes ``snapshot()``; each producer's object reads it by ``apply_snapshot`` and
    only chooses. Time is an argument, in seconds from an arbitrary origin, never decreasing.
    """

    name: ClassVar[str]
    """Name in settings, headers and metrics."""

    fallback: ClassVar[str | None] = None
    """Name of the simpler policy that takes over when this one lacks knowledge."""

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Build from the settings of an application; override to use more than the defaults."""
        return cls()

    @property
    def ready(self) -> bool:
        """Whether enough is known to choose; False only for a policy that needs a snapshot."""
        return True

    @abstractmethod
    def choose(self, task: TaskView, fleet: Fleet, now: float) -> Decision:
        """Choose the queue of a task.

        Raises
        ------
        NoOpenQueueError
            When no queue is open for this task.

        """

    def predict_seconds(self, task: TaskView, gpu_model: str) -> float | None:
        """Service time expected of a task on a GPU model, in seconds; None when unknown."""
        return None

    def arrived(self, task: TaskView, now: float) -> None:
        """Called on the learning side once for each task published."""

    def learn_one(self, outcome: Outcome, now: float) -> None:
        """Learn from one outcome."""

    def tick(self, fleet: Fleet, now: float) -> None:
        """Called on the learning side every few seconds: plan, age and forget here."""

    def steal(self, row: int, waiting: WaitingTasks, fleet: Fleet, now: float) -> int | None:
        """Index of the waiting task that the idle queue ``row`` should take; None for none."""
        return None

    def q_values(self, fleet: Fleet, now: float, most: int) -> QTable | None:
        """Q values for people to read, at most ``most``; None without any."""
        return None

    def export_prior(self) -> Prior | None:
        """What was learned that another site can begin from; None when nothing can be taken."""
        return None

    def import_prior(self, prior: Prior) -> TakenPrior | None:
        """Begin from what another site has learned, where nothing was learned here.

        Called on the learning side; None when this policy takes nothing from others.
        """
        return None

    def snapshot(self) -> Mapping[str, Any]:
        """What a choosing object needs, as JSON values; smaller than ``state()``."""
        return {}

    def apply_snapshot(self, snapshot: Mapping[str, Any]) -> None:
        """Choose from now on by this snapshot; unknown keys of a newer release are ignored."""

    def state(self) -> Mapping[str, Any]:
        """Everything learned, as JSON values: restoring it changes no later decision."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a state saved by this or an earlier release.

        Raises
        ------
        StateError
            When the state is of a format this release cannot read.

        """
