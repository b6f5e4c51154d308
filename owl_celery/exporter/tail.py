"""Reads each outcome of the stream once, from the moment the exporter starts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from redis.exceptions import RedisError

from owl_celery.controller.events import is_beyond, read_events, read_last_events
from owl_celery.redis_state import RedisState
from owl_celery.store.base import FIRST_CURSOR
from owl_celery.types import Outcome

AT_ONCE: Final = 1_000
AT_MOST: Final = 20
"""Reads in one go: a burst is spread over several, so that nothing else waits for it."""


class OutcomeTail:
    """A cursor of our own in the stream of events; used by one thread.

    It waits where it is while Redis is away, and begins anew with a stream that does.

    Parameters
    ----------
    state
        Where the stream is.

    """

    def __init__(self, state: RedisState) -> None:
        self._state = state
        self._cursor: str | None = None

    def poll(self) -> Iterator[Outcome]:
        """Outcomes that have arrived since the last call; what was there before the first is not.

        Never raises for a Redis that is away.
        """
        try:
            if self._cursor is None:
                last = read_last_events(self._state, 1)
                self._cursor = last[-1].cursor if last else FIRST_CURSOR
                return
            for _ in range(AT_MOST):
                entries = read_events(self._state, self._cursor, AT_ONCE)
                if not entries:
                    if is_beyond(self._state, self._cursor):
                        self._cursor = FIRST_CURSOR
                        continue
                    return
                self._cursor = entries[-1].cursor
                yield from (e.event for e in entries if isinstance(e.event, Outcome))
        except (RedisError, OSError):
            return
