"""Arrivals as producers count them, handed to the policy one by one."""

from __future__ import annotations

from typing import Any, Final

from owl_celery.controller.idle import IdleFields
from owl_celery.redis_state import RedisState

READ_SECONDS: Final = 0.1
READ_SECONDS_PER_TYPE: Final = 1e-4
MAX_ARRIVALS: Final = 2_000
MAX_IDLE_TYPES: Final = 10_000


class Arrivals:
    """Reads the counters that producers add to, and drops those of types no longer in use.

    Parameters
    ----------
    state
        Where the counters are.

    """

    def __init__(self, state: RedisState) -> None:
        self._state = state
        self._idle = IdleFields(state, [state.keys.arrivals], MAX_IDLE_TYPES)
        self._told: dict[str, int] | None = None
        self._read_at = float("-inf")
        self._next_at = float("-inf")

    def read(self, now: float) -> list[tuple[str, float]]:
        """Task type and time of what arrived since the last reading, in order of time.

        Only the counts are known: arrivals are spread evenly over the time between the readings.
        Beyond 2,000 at once the rest is left out.

        Raises
        ------
        redis.RedisError
            When Redis does not answer.

        """
        if now < self._next_at:
            return []
        reply: Any = self._state.client.hgetall(self._state.keys.arrivals)
        totals = {name: int(total) for name, total in reply.items()}
        counts = {}
        if self._told is not None:
            counts = {
                name: since_told(total, self._told.get(name, 0)) for name, total in totals.items()
            }
        for name in self._idle.drop(totals, [name for name in counts if counts[name]], now):
            del totals[name]
        since, self._told, self._read_at = self._read_at, totals, now
        self._next_at = now + READ_SECONDS + READ_SECONDS_PER_TYPE * len(totals)
        return spread(counts, since, now)


def since_told(total: int, told: int) -> int:
    """What was added to a counter; one that went back has started over.

    Examples
    --------
    >>> since_told(7, 5), since_told(2, 5)
    (2, 2)

    """
    return total - told if total >= told else max(total, 0)


def spread(counts: dict[str, int], since: float, until: float) -> list[tuple[str, float]]:
    """Spread arrivals of several types evenly over a stretch of time.

    Examples
    --------
    >>> spread({"a": 2, "b": 1, "c": 0}, 0.0, 4.0)
    [('a', 1.0), ('b', 2.0), ('a', 3.0)]

    """
    arrived = sorted(
        (since + (until - since) * (index + 0.5) / count, name)
        for name, count in counts.items()
        if count > 0
        for index in range(min(count, MAX_ARRIVALS))
    )
    return [(name, at) for at, name in arrived[:MAX_ARRIVALS]]
