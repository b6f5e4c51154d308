"""How fast tasks arrive and of which types: a short memory for the rate, a long one for the mix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from owl_celery.errors import StateError
from owl_celery.fleet import Floats

MIX_MEMORY: Final = 2_000
RATE_MEMORY: Final = 50
"""Arrivals over which the mix and the rate are taken; a short one lets prices follow bursts."""

MAX_TYPES: Final = 4_096
"""Types kept; those with the smallest shares are dropped first."""

LONG_GAP: Final = 10.0
"""A gap counts as at most so many mean gaps, lest one idle night hides a morning's rush."""

LARGE: Final = 1e100


class ArrivalRates:
    """Learned arrival rates; several arrivals may share a time, as when counters are read."""

    def __init__(self) -> None:
        self._weights: dict[str, float] = {}
        self._next_weight = 1.0
        self._gap_seconds = 0.0
        self._gaps = 0
        self._at: float | None = None
        self._since = 0.0
        self._pending = 0

    def add(self, task_type: str, now: float) -> None:
        """Count one arrival."""
        self._next_weight /= 1.0 - 1.0 / MIX_MEMORY
        self._weights[task_type] = self._weights.get(task_type, 0.0) + self._next_weight
        if self._next_weight > LARGE:
            self._weights = {name: w / LARGE for name, w in self._weights.items()}
            self._next_weight /= LARGE
        if len(self._weights) > MAX_TYPES:
            self._drop_rarest()
        if self._at is None:
            self._at = now
        elif now > self._at:
            self._settle()
            self._since, self._at, self._pending = self._at, now, 1
        elif self._pending:
            self._pending += 1

    def _settle(self) -> None:
        """Take what has arrived at the last time as spread evenly over the gap before it."""
        if not self._pending or self._at is None:
            return
        gap = self._gap()
        for _ in range(min(self._pending, RATE_MEMORY)):
            self._gaps = min(self._gaps + 1, RATE_MEMORY)
            self._gap_seconds += (gap - self._gap_seconds) / self._gaps
        self._pending = 0

    def _gap(self) -> float:
        assert self._at is not None
        gap = (self._at - self._since) / self._pending
        return min(gap, LONG_GAP * self._gap_seconds) if self._gaps >= LONG_GAP else gap

    def _drop_rarest(self) -> None:
        names = sorted(self._weights, key=self._weights.__getitem__)
        for name in names[: MAX_TYPES // 4]:
            del self._weights[name]

    @property
    def rate(self) -> float:
        """Tasks per second; 0 before two different times have been seen."""
        gap, gaps = self._gap_seconds, self._gaps
        if self._pending and self._at is not None:
            weight = min(self._pending / min(gaps + self._pending, RATE_MEMORY), 1.0)
            gap += weight * (self._gap() - gap)
        return 1.0 / gap if gap > 0.0 else 0.0

    def mix(self, most: int) -> tuple[list[str], Floats]:
        """The ``most`` frequent types and their shares, which sum to 1."""
        names, weights = list(self._weights), np.array(list(self._weights.values()))
        if len(names) > most:
            kept = np.sort(np.argpartition(weights, -most)[-most:])
            names, weights = [names[index] for index in kept], weights[kept]
        return names, weights / weights.sum() if len(names) else weights

    def state(self) -> dict[str, Any]:
        """Everything, exactly, as JSON values."""
        return {
            "weights": dict(self._weights),
            "next_weight": self._next_weight,
            "gap": [self._gap_seconds, self._gaps],
            "group": [self._since, self._at, self._pending],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state()``.

        Raises
        ------
        StateError
            When it is damaged.

        """
        try:
            weights = {str(name): float(weight) for name, weight in state["weights"].items()}
            next_weight = float(state["next_weight"])
            gap, gaps = state["gap"]
            since, at, pending = state["group"]
            group = float(since), None if at is None else float(at), int(pending)
            gap_seconds, gaps = float(gap), int(gaps)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StateError("The saved arrival rates are damaged.") from error
        self._weights, self._next_weight = weights, next_weight
        self._gap_seconds, self._gaps = gap_seconds, gaps
        self._since, self._at, self._pending = group
