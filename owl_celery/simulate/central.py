"""Schedulers that hold tasks in one place until a GPU is free, which no router can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar

from owl_celery.fleet import Fleet
from owl_celery.types import TaskView


class Central(ABC):
    """Holds every waiting task; only the simulator can drive it.

    ``fleet`` shows what runs; nothing ever waits in a queue of its own.
    """

    name: ClassVar[str]

    @abstractmethod
    def hold(self, index: int, task: TaskView) -> None:
        """Take a task that has arrived; ``index`` names it."""

    @abstractmethod
    def release(self, idle: Iterable[int], fleet: Fleet, now: float) -> tuple[int, int] | None:
        """Start a held task on an idle queue: its index and the row; None to wait.

        Parameters
        ----------
        idle
            Rows that are idle and open, the one that has been idle longest first.
        fleet
            What runs.
        now
            Seconds.

        """

    def predict_seconds(self, task: TaskView, gpu_model: str) -> float | None:
        """Service time expected of a task on a GPU model, in seconds; None when unknown."""
        return None
