"""Tasks of queues that many workers serve, whose worker was never heard of again."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from owl_celery.controller.rescue import DEAF_SECONDS, LOOK_SECONDS, SILENT_SECONDS
from owl_celery.wire import Heartbeat

SURELY_SECONDS: Final = 1.0
"""Of difference between the clocks of two hosts that is allowed for."""

MAX_LIVES: Final = 10_000


@dataclass(slots=True)
class _Life:
    """One process of a worker: what it held, when it was last heard of, and silent since when."""

    held: tuple[str, ...]
    heard_at: float
    silent_since: float


class Orphans:
    """Remembers what each worker holds by its heartbeats, until it is known to be dead.

    Of the default queue the broker does not tell who holds a message, and most who do live. Times
    are of the ledger's clock, which shows Unix time.

    Examples
    --------
    >>> orphans = Orphans()
    >>> orphans.due([Heartbeat("gpu0@a", active=("t1",))], now=100.0)
    {}
    >>> [orphans.due([], now) for now in (102.0, 104.0, 106.0, 108.0, 110.0, 112.0, 114.0)][-1]
    {}
    >>> orphans.due([], now=116.0)
    {'t1': 101.0}

    """

    def __init__(self) -> None:
        self._lives: dict[tuple[str, str], _Life] = {}
        self._looked_at = float("-inf")

    def due(self, beats: Iterable[Heartbeat], now: float) -> dict[str, float]:
        """What dead workers held and no live one holds, with the latest time of its delivery.

        Empty between two looks. What is found is found again until ``settled``.
        """
        pause = now - self._looked_at
        if pause < LOOK_SECONDS:
            return {}
        self._looked_at = now
        if pause > DEAF_SECONDS:
            # Nobody was listening.
            for life in self._lives.values():
                life.silent_since += pause
        live: set[str] = set()
        for beat in beats:
            live.update(beat.active)
            self._lives[beat.node, beat.life] = _Life(beat.active, now, now)
        while len(self._lives) > MAX_LIVES:
            del self._lives[next(iter(self._lives))]
        return {
            task_id: life.heard_at + SURELY_SECONDS
            for life in self._lives.values()
            if now - life.silent_since >= SILENT_SECONDS
            for task_id in life.held
            if task_id not in live
        }

    def stay(self, nodes: Collection[str]) -> None:
        """Forget workers that have taken leave: they gave back themselves what they held.

        Others may have taken it within a moment, and not tell by heartbeats what they hold.
        """
        for key in [key for key in self._lives if key[0] not in nodes]:
            del self._lives[key]

    def settled(self, task_ids: Collection[str], now: float) -> None:
        """Note that these were looked for; forget the dead that held nothing else."""
        for key, life in list(self._lives.items()):
            if now - life.silent_since >= SILENT_SECONDS:
                life.held = tuple(held for held in life.held if held not in task_ids)
                if not life.held:
                    del self._lives[key]
