"""Finds tasks that wait where no live worker takes them: the load view knows no such queues."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from redis.exceptions import RedisError

from owl_celery.breaker import Breaker
from owl_celery.brokers.base import Broker
from owl_celery.errors import BrokerError
from owl_celery.metrics import MAX_QUEUES
from owl_celery.overview import Overview
from owl_celery.redis_state import RedisState
from owl_celery.redis_trouble import trouble_of

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 5.0


class UnservedQueues:
    """Looks into queues to which tasks were sent and which nobody serves; used by one thread.

    Parameters
    ----------
    state
        Knows to which queues tasks were sent within the last hour.
    broker
        Looks into queues.
    default_queue
        Celery's own, which every worker serves.
    clock
        Monotonic seconds.

    """

    def __init__(
        self,
        state: RedisState,
        broker: Broker,
        default_queue: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._state = state
        self._broker = broker
        self._default_queue = default_queue
        self._clock = clock
        self._look_at = float("-inf")
        self._counts: Mapping[str, int] = {}
        self._breaker = Breaker(
            "serve",
            "broker",
            "owl exporter: queues are not looked into: {reason}",
            "owl exporter: queues are looked into again",
            logger=log,
            clock=clock,
        )

    def counts(self, overview: Overview) -> Mapping[str, int]:
        """Tasks that wait by queue, a few seconds old at most; those without any are left out."""
        if overview.is_redis_down:
            return {}  # Nobody's heartbeat is known.
        if self._clock() >= self._look_at:
            self._look_at = self._clock() + LOOK_SECONDS
            try:
                self._counts = self._look(overview)
            except (BrokerError, RedisError, OSError) as error:
                sentence = str(error) if isinstance(error, BrokerError) else trouble_of(error)
                self._breaker.fails(sentence)
                self._counts = {}
            else:
                self._breaker.works()
        return self._counts

    def totals(self) -> dict[str, float]:
        """What is counted of failures, as ``Breaker.totals``."""
        return self._breaker.totals()

    def close(self) -> None:
        """Close the connection to the broker."""
        self._broker.close()

    def _look(self, overview: Overview) -> dict[str, int]:
        alive = [worker for worker in overview.workers if worker.is_alive]
        sent_to: Any = self._state.client.hkeys(self._state.keys.assigned_count)
        unserved = set(sent_to) - {worker.queue for worker in alive}
        if not alive:
            unserved.add(self._default_queue)
        depths = self._broker.depths(sorted(unserved)[:MAX_QUEUES])
        return {queue: count for queue, count in depths.items() if count > 0}
