"""Arrivals as producers count them, handed to the policy one by one."""

from __future__ import annotations

from typing import Any, Final

from owl_celery.redis_state import RedisState

READ_SECONDS: Final = 0.1
READ_SECONDS_PER_TYPE: Final = 1e-4
MAX_ARRIVALS: Final = 2_000


class Arrivals:
    """Reads the counters that producers add to.

    Parameters
    ----------
    state
        Where the counters are.

    """

    def __init__(self, state: RedisState) -> None:
        self._state = state
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
        told, since = self._told, self._read_at
        self._told, self._read_at = totals, now
        self._next_at = now + READ_SECONDS + READ_SECONDS_PER_TYPE * len(totals)
        if told is None:
            return []
        return spread(
            {name: total - told.get(name, 0) for name, total in totals.items()}, since, now
        )


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
