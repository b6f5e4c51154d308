"""Keep hashes that producers only add to from growing for ever."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from owl_celery.controller.lease import lua
from owl_celery.redis_state import RedisState

KEEP_IDLE_SECONDS: Final = 3_600.0
DROPPED_AT_ONCE: Final = 1_000
FORGET_SCRIPT: Final = lua("forget")


class IdleFields:
    """Drops fields that have been idle for an hour, and those idle longest beyond a number.

    A producer may add to a field at any time: one that was dropped starts over at 0, and one that
    was added to since it was read stays. The hour starts over with each controller, the number of
    fields does not.

    Parameters
    ----------
    state
        Where the hashes are.
    keys
        Hashes that share their fields; the first holds whole numbers.
    max_idle
        Idle fields that are kept.

    """

    def __init__(self, state: RedisState, keys: Sequence[str], max_idle: int) -> None:
        self._state = state
        self._keys = keys
        self._max_idle = max_idle
        self._used_at: dict[str, float] = {}

    def drop(self, totals: Mapping[str, int], active: Collection[str], now: float) -> set[str]:
        """Drop what has been idle too long, a thousand fields at most; returns what is gone.

        Parameters
        ----------
        totals
            The first hash as read just now.
        active
            Fields in use, which are kept however many there are.
        now
            Monotonic seconds.

        Raises
        ------
        redis.RedisError
            When Redis does not answer.

        """
        before, in_use = self._used_at, frozenset(active)
        self._used_at = {name: now if name in in_use else before.get(name, now) for name in totals}
        idle = [name for name in totals if name not in in_use]
        # Of several that are idle equally long the least used come first.
        idle.sort(key=lambda name: (self._used_at[name], totals[name]))
        excess = len(idle) - self._max_idle
        gone = [
            name
            for rank, name in enumerate(idle[:DROPPED_AT_ONCE])
            if rank < excess or now - self._used_at[name] > KEEP_IDLE_SECONDS
        ]
        if not gone:
            return set()
        script = self._state.client.register_script(FORGET_SCRIPT)
        reply: Any = script(self._keys, [text for name in gone for text in (name, totals[name])])
        return set(reply)
