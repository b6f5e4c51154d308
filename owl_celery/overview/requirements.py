"""What hardware task types need, for a process that does not lead."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Final

from owl_celery.errors import StoreError
from owl_celery.learned_requirements import LearnedRequirements
from owl_celery.overview.matrix import free_of
from owl_celery.overview.reader import OverviewReader
from owl_celery.overview.values import Overview
from owl_celery.requirements import Requirements
from owl_celery.settings import Settings

CACHE_SECONDS: Final = 5.0
"""How long an answer of the database is used: it holds the whole state of the policy."""

RETRY_SECONDS: Final = 1.0
"""How long the error of a database is given again: whoever has waited behind it need not ask."""


class RequirementsReader:
    """Derives requirements from what the store keeps, the latest copy when it fails.

    Parameters
    ----------
    reader
        Asks the store.
    settings
        Of the application.
    clock
        Monotonic seconds.

    """

    def __init__(
        self,
        reader: OverviewReader,
        settings: Settings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reader = reader
        self._settings = settings
        self._clock = clock
        self._lock = threading.Lock()
        self._learned: LearnedRequirements | None = None
        self._error = StoreError()
        self._next_at = float("-inf")

    def of(self, task_type: str) -> Requirements | None:
        """Requirements of a task type; None for one of which nothing is known.

        Raises
        ------
        StoreError
            When the database cannot be used and never could.

        """
        learned, overview = self._latest(), self._reader.read()
        # What is closed is so by the same rule as in the matrix.
        found = learned.of(task_type, memory_of(overview), free_of(overview))
        is_known = found.successes + found.failures > 0 or any(
            model.count or model.failures or model.failure_probability is not None
            for model in found.models
        )
        return found if is_known else None

    def _latest(self) -> LearnedRequirements:
        with self._lock:
            if self._clock() >= self._next_at:
                pause = CACHE_SECONDS
                try:
                    learned = self._reader.ask(lambda store: store.load())
                    self._learned = LearnedRequirements(learned, self._settings)
                except StoreError as error:
                    self._error = error
                    pause = CACHE_SECONDS if self._learned else RETRY_SECONDS
                self._next_at = self._clock() + pause
            if self._learned is None:
                raise StoreError(str(self._error)) from self._error
            return self._learned


def memory_of(overview: Overview) -> Mapping[str, int]:
    """Memory of a GPU by GPU model, as live workers tell; the least where GPUs differ."""
    found: dict[str, int] = {}
    for worker in overview.workers:
        size = worker.gpu.memory_total_bytes
        if worker.queue and size is not None:
            found[worker.gpu_model] = min(found.get(worker.gpu_model, size), size)
    return found
