"""Heartbeats of all workers, read in one round trip."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from owl_celery.controller.lease import lua
from owl_celery.controller.ledger import Beat
from owl_celery.redis_state import RedisState
from owl_celery.wire import Heartbeat

FORGET_NODE_SECONDS: Final = 3_600.0
BEATS_SCRIPT: Final = lua("beats")


class Beats:
    """Reads the heartbeats, and forgets workers that have been silent for an hour.

    Parameters
    ----------
    state
        Where they are.
    counters
        Where ``heartbeats_refused`` are counted.

    Attributes
    ----------
    nodes
        Workers that have not taken leave, alive or not, as of the last read.

    """

    def __init__(self, state: RedisState, counters: Counter[str]) -> None:
        self.nodes: frozenset[str] = frozenset()
        self._state = state
        self._counters = counters
        self._texts: dict[str, tuple[str, Heartbeat | None]] = {}
        self._dead_since: dict[str, float] = {}

    def read(self, now: float) -> list[Beat]:
        """Those of all workers that live.

        Raises
        ------
        redis.RedisError
            When Redis does not answer.

        """
        keys, client = self._state.keys, self._state.client
        reply: Any = client.register_script(BEATS_SCRIPT)([keys.nodes], [keys.heartbeat("")])
        self.nodes = frozenset(reply[::3])
        beats, gone = [], []
        texts: dict[str, tuple[str, Heartbeat | None]] = {}
        for node, text, left in zip(reply[::3], reply[1::3], reply[2::3], strict=True):
            heartbeat = None
            if text:
                known, heartbeat = self._texts.get(node, ("", None))
                if text != known:
                    heartbeat = Heartbeat.decode(text)
                texts[node] = text, heartbeat
            if heartbeat is not None and heartbeat.node == node:
                beats.append(Beat(heartbeat, now + max(int(left), 0) / 1000.0))
                self._dead_since.pop(node, None)
                continue
            self._counters["heartbeats_refused"] += text is not None
            if now - self._dead_since.setdefault(node, now) > FORGET_NODE_SECONDS:
                gone.append(node)
                del self._dead_since[node]
        if gone:
            client.srem(keys.nodes, *gone)
        self._texts = texts
        return beats
