"""Rescue what waits for a dead worker, and what it held."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection
from typing import Any, Final

from owl_celery.brokers.base import Broker, Owner
from owl_celery.controller.lease import Lease
from owl_celery.controller.load import Load
from owl_celery.controller.placing import Placer
from owl_celery.redis_state import RedisState

log = logging.getLogger(__name__)

SILENT_SECONDS: Final = 15.0
LOOK_SECONDS: Final = 1.0
LOOK_AGAIN_SHARE: Final = 0.1
"""Share of the silence until then after which a queue is looked at again: all is found early."""

LOOK_AT_LEAST_SECONDS: Final = 60.0
DEAF_SECONDS: Final = 3.0
"""A longer pause between two looks is no silence of the workers: nobody was listening."""

LOOKED_AT: Final = 2_000
"""Messages that are looked at in one round, in all queues: no round may outlast the lease."""

LOOKED_AT_ONCE: Final = 50
MAX_SILENT: Final = 2_000


class Rescue:
    """Finds queues whose worker has sent no heartbeat for a while, and empties them.

    A queue is dead when no heartbeat names it and no claim is on it. What its worker held goes
    back to the queue, and what we have routed there goes to the router's next choice; a task whose
    sender named the queue waits there for its next worker.

    Parameters
    ----------
    state
        Where claims are.
    broker
        Counts and moves.
    placer
        Says where a task goes; prepared by the caller.
    lease
        What entitles us to hand back what a worker held.
    counters
        Where ``rescued`` and ``handed_back`` are counted.
    ttl_seconds
        How long a heartbeat counts: a queue is missed only so long after the last one.
    max_losses
        As in ``Broker.restore``.

    """

    def __init__(
        self,
        state: RedisState,
        broker: Broker,
        placer: Placer,
        lease: Lease,
        counters: Counter[str],
        ttl_seconds: float,
        max_losses: int,
    ) -> None:
        self._state = state
        self._broker = broker
        self._placer = placer
        self._lease = lease
        self._counters = counters
        self._ttl_seconds = ttl_seconds
        self._max_losses = max_losses
        self._last_beat: dict[str, float] = {}
        self._searched: set[str] = set()
        self._due_at: dict[str, float] = {}
        self._looked_at = float("-inf")

    def due(self, load: Load, known: Collection[str], now: float) -> list[str]:
        """Queues that have been silent for long enough to be looked at now.

        Parameters
        ----------
        load
            Names the queues that live workers serve.
        known
            Queues to which tasks were ever sent.
        now
            The ledger's clock, seconds.

        """
        pause = now - self._looked_at
        if pause < LOOK_SECONDS:
            return []
        self._looked_at = now
        if pause > DEAF_SECONDS:
            self._last_beat = {name: at + pause for name, at in self._last_beat.items()}
        # When a heartbeat is missed first, it is as old as it may be to count.
        oldest = now - self._ttl_seconds
        for name in known:
            self._last_beat.setdefault(name, oldest)
        for name in load.names:
            self._last_beat[name] = oldest
            self._due_at.pop(name, None)
        self._searched.difference_update(load.names)
        self._forget()
        due = [
            name
            for name, at in self._last_beat.items()
            if now - at >= SILENT_SECONDS and now >= self._due_at.get(name, now)
        ]
        # The most recent deaths first; then whoever has waited longest for a look.
        never = float("-inf")
        due.sort(key=lambda name: (self._due_at.get(name, never), -self._last_beat[name]))
        return due[:LOOKED_AT_ONCE]

    def save(self, queues: list[str], load: Load, knowledge: str, now: float) -> int:
        """Empty these queues as far as nobody claims them; count the tasks that were moved.

        Raises
        ------
        BrokerError
            When the broker does not answer.
        redis.RedisError
            When the state's Redis does not.

        """
        pipe = self._state.client.pipeline(transaction=False)
        for name in queues:
            pipe.exists(self._state.keys.claim(name))
        claimed: list[Any] = pipe.execute()
        for name in queues:
            pause = (now - self._last_beat.get(name, now)) * LOOK_AGAIN_SHARE
            self._due_at[name] = now + min(pause, LOOK_AT_LEAST_SECONDS)
        dead = [name for name, owners in zip(queues, claimed, strict=True) if not owners]
        if not dead or not self._lease.is_held:
            return 0
        self._hand_back([name for name in dead if name not in self._searched])
        depths = self._broker.depths(dead)
        waiting = [name for name in dead if depths.get(name)]
        if waiting:
            self._placer.prepare(load, knowledge, now)
        total, left = 0, LOOKED_AT
        for name in waiting:
            if not left:
                self._due_at[name] = now  # In the next round.
                continue
            moved = self._broker.redirect(name, self._placer.place, left, self._lease.permit())
            left -= min(depths[name], left)
            if self._broker.has_unseen:
                self._due_at[name] = now
            if moved:
                log.warning("owl controller: rescued %d tasks from dead queue %s", moved, name)
            total += moved
        self._counters["rescued"] += total
        return total

    def _hand_back(self, dead: list[str]) -> None:
        """Give back to their queues what the workers held; once, since nobody consumes there."""
        keys = self._state.keys
        owners = {name: Owner(keys.claim(name)) for name in dead}
        if not owners:
            return
        count = self._broker.restore(owners, self._lease.permit(), self._max_losses)
        if not self._broker.has_more:  # Else again in the next round.
            self._searched.update(dead)
        if count:
            log.warning("owl controller: %d tasks were held by dead workers; they run again", count)
            self._counters["handed_back"] += count

    def _forget(self) -> None:
        """Keep the memory bounded: the queues that were silent longest go first."""
        excess = len(self._last_beat) - MAX_SILENT
        if excess > 0:
            longest = sorted(self._last_beat, key=self._last_beat.__getitem__)
            for name in longest[:excess]:
                del self._last_beat[name]
                self._due_at.pop(name, None)
                self._searched.discard(name)
