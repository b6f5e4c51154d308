"""Workers that live and send heartbeats, and take no tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from owl_celery.wire import Heartbeat

WEDGED_SECONDS: Final = 15.0
"""Longest silence of an event loop; longest time in which an idle worker takes nothing."""

RECONNECT_SECONDS: Final = 10.0
"""Time in which a worker may find its broker again before what waits for it goes elsewhere."""

FIRST_PAUSE_SECONDS: Final = 60.0
LONGEST_PAUSE_SECONDS: Final = 600.0
DEAF_SECONDS: Final = 3.0
"""A longer pause between two looks says nothing of the workers: the controller stood still."""


def takes_tasks(beat: Heartbeat) -> bool:
    """Whether a worker says that it is able to take tasks."""
    return beat.consuming and beat.tick_age_seconds <= WEDGED_SECONDS


@dataclass(slots=True)
class Wedged:
    """Watches the workers of one queue.

    That an event loop stands still, and that nothing consumes, the worker says itself, and as
    soon as it says otherwise it is well. A worker that says nothing of the kind, is idle, and
    leaves alone what waits gets no tasks for a minute; when it leaves alone the next ones, too, for
    two, and so on.

    Attributes
    ----------
    reason
        What is wrong, in a clause; empty when all is well.

    """

    reason: str = ""
    _silent_since: float | None = None
    _untaken_since: float | None = None
    _depth: int = 0
    _closed_until: float = float("-inf")
    _pause: float = FIRST_PAUSE_SECONDS
    _looked_at: float = float("-inf")

    def look(
        self, beats: Sequence[Heartbeat], depth: int | None, is_idle: bool, now: float
    ) -> None:
        """Take in how things are.

        Parameters
        ----------
        beats
            The workers' latest heartbeats, one at least.
        depth
            Tasks that wait in the queue; None where unknown.
        is_idle
            Whether the workers hold none.

        """
        if now - self._looked_at > DEAF_SECONDS:
            self._silent_since = self._untaken_since = None
        self._looked_at = now
        consumes = any(beat.consuming for beat in beats)
        is_leaving = all(beat.draining for beat in beats)
        if consumes or is_leaving:
            self._silent_since = None
        elif self._silent_since is None:
            self._silent_since = now
        if not is_idle:
            self._pause = FIRST_PAUSE_SECONDS
        if not depth or depth < self._depth or not is_idle or is_leaving or not consumes:
            self._untaken_since = None
        elif self._untaken_since is None:
            self._untaken_since = now
        self._depth = depth or 0
        if self._untaken_since is not None and now - self._untaken_since > WEDGED_SECONDS:
            self._untaken_since = None
            self._closed_until = now + self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
        elif not is_idle:
            self._closed_until = now
        self.reason = self._reason(beats, now)

    def _reason(self, beats: Sequence[Heartbeat], now: float) -> str:
        if all(beat.tick_age_seconds > WEDGED_SECONDS for beat in beats):
            return "its event loop stands still"
        if self._silent_since is not None and now - self._silent_since > RECONNECT_SECONDS:
            return "it does not consume"
        return "it takes nothing" if now < self._closed_until else ""


def wedged_workers(reasons: Mapping[str, str]) -> str:
    """Say which workers take no tasks though they live; empty when all do.

    Examples
    --------
    >>> wedged_workers({"gpu.a.0": "it does not consume"})
    'The worker of gpu.a.0 lives and takes no tasks: it does not consume.'

    """
    if not reasons:
        return ""
    name = min(reasons)
    more = f" ({len(reasons) - 1} more)" if len(reasons) > 1 else ""
    return f"The worker of {name} lives and takes no tasks: {reasons[name]}{more}."
