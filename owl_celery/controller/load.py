"""The load of every queue at one moment, and what was moved between two of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from owl_celery.fleet import Fleet


@dataclass(slots=True)
class Load:
    """Load of every queue; item ``i`` of every list is one queue.

    Parameters
    ----------
    names, gpu_models, concurrency
        As in ``FleetRecord``; sorted by name.
    waiting_count, waiting_seconds, free_memory_bytes
        As in ``View``.
    running
        ``(row, predicted seconds, start by the ledger's clock)`` of each running task.
    closed
        Rows that take no work.

    """

    names: list[str] = field(default_factory=list)
    gpu_models: list[str] = field(default_factory=list)
    concurrency: list[int] = field(default_factory=list)
    waiting_count: list[int] = field(default_factory=list)
    waiting_seconds: list[float] = field(default_factory=list)
    running: list[tuple[int, float, float]] = field(default_factory=list)
    closed: list[int] = field(default_factory=list)
    free_memory_bytes: list[int | None] = field(default_factory=list)

    def fleet(self, like: Fleet | None = None) -> Fleet:
        """The same as columns, of the queues of ``like``; what runs is by the ledger's clock."""
        fleet = like.emptied() if like else Fleet(self.names, self.gpu_models, self.concurrency)
        fleet.waiting_count[:] = self.waiting_count
        fleet.waiting_seconds[:] = self.waiting_seconds
        for row, free in enumerate(self.free_memory_bytes):
            if free is not None:
                fleet.free_memory_bytes[row] = free
        fleet.is_open[self.closed] = False
        slots = [0] * len(self.names)
        for row, seconds, since in self.running:
            fleet.running_seconds[row, slots[row]] = seconds
            fleet.running_since[row, slots[row]] = since
            slots[row] += 1
        return fleet


class Move(NamedTuple):
    """A waiting task that was moved to another queue.

    Parameters
    ----------
    decision_id
        Of its header.
    seconds_there, seconds_here
        What it counted in its old queue, None without a prediction, and counts in the new one.

    """

    decision_id: str
    source: str
    destination: str
    seconds_there: float | None
    seconds_here: float
