"""Follows the stream of events: what has just ended, and which task runs where."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final, NamedTuple

from redis.exceptions import RedisError

from owl_celery.controller.events import Entry, read_events, read_last_events
from owl_celery.redis_state import RedisState
from owl_celery.types import Outcome
from owl_celery.wire import Started

AT_ONCE: Final = 2_000
MAX_STARTED: Final = 20_000


class Begun(NamedTuple):
    """A try that has begun, and when by Redis' clock."""

    event: Started
    at: float


class EventTail:
    """Reads events as they arrive, by one thread at a time.

    It begins with the newest 2,000, and skips to them again when it has fallen behind.

    Parameters
    ----------
    state
        Where the stream is.

    """

    def __init__(self, state: RedisState) -> None:
        self._state = state
        self._cursor: str | None = None
        self._begun: OrderedDict[str, Begun] = OrderedDict()

    def poll(self) -> list[Outcome]:
        """Read what is new; the outcomes in it, oldest first. None at the first call.

        Raises
        ------
        redis.RedisError
            When Redis does not answer.

        """
        if self._cursor is None:
            self._take(read_last_events(self._state, AT_ONCE))
            return []
        entries = read_events(self._state, self._cursor, AT_ONCE)
        if len(entries) == AT_ONCE:
            entries = read_last_events(self._state, AT_ONCE)
        return self._take(entries)

    def follow(self) -> None:
        """Read what is new, if Redis answers."""
        try:
            self.poll()
        except (RedisError, OSError):
            # The stream may have begun anew when it is back.
            self._cursor = None

    def begun(self, task_id: str) -> Begun | None:
        """The latest try of a task that has begun and not ended, if known."""
        return self._begun.get(task_id)

    def _take(self, entries: Sequence[Entry]) -> list[Outcome]:
        outcomes = []
        for entry in entries:
            event = entry.event
            if isinstance(event, Started):
                self._begun[event.task_id] = Begun(event, entry.at)
                self._begun.move_to_end(event.task_id)
            elif isinstance(event, Outcome):
                outcomes.append(event)
                begun = self._begun.get(event.task_id)
                # A late outcome of an earlier try does not end the present one.
                if begun is not None and _ends(event, begun.event):
                    del self._begun[event.task_id]
        while len(self._begun) > MAX_STARTED:
            self._begun.popitem(last=False)
        self._cursor = entries[-1].cursor if entries else self._cursor or "0-0"
        return outcomes


def _ends(outcome: Outcome, started: Started) -> bool:
    """Whether an outcome is of this try."""
    return (outcome.decision_id, outcome.attempt) == (started.decision_id, started.attempt)
