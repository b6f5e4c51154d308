"""Plain Celery: one shared queue, prefetch off."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import ClassVar

from owl_celery.fleet import Fleet
from owl_celery.simulate.central import Central
from owl_celery.simulate.instance import Instance
from owl_celery.types import TaskView


class SharedFifo(Central):
    """Give the oldest task to the worker that has asked for one longest, as Redis does."""

    name: ClassVar[str] = "shared_fifo"

    def __init__(self, instance: Instance, rate: float, seed: int = 0) -> None:
        self._held: deque[int] = deque()

    def hold(self, index: int, task: TaskView) -> None:
        self._held.append(index)

    def release(self, idle: Iterable[int], fleet: Fleet, now: float) -> tuple[int, int] | None:
        if not self._held:
            return None
        return self._held.popleft(), next(iter(idle))
