"""The end of a GPU worker: routers turn away, its queue runs empty, the rest goes elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from owl_celery.brokers.base import Broker
from owl_celery.errors import BrokerError

log = logging.getLogger(__name__)

SETTLE_SECONDS: Final = 1.5
"""Producers learn within a second that a queue is closed; what they send until then is served."""


class Draining:
    """A queue that its worker is about to leave.

    Runs in the heartbeat thread of the worker's parent.

    Parameters
    ----------
    broker
        Where the queue is.
    queue, default_queue
        The worker's own queue, and the one that every worker serves.
    timeout_seconds
        How long the worker goes on with what waits; 0 moves it at once.
    clock
        Monotonic seconds.

    """

    def __init__(
        self,
        broker: Broker,
        queue: str,
        default_queue: str,
        timeout_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._broker = broker
        self._queue = queue
        self._default_queue = default_queue
        self._timeout_seconds = timeout_seconds
        self._clock = clock
        self._since: float | None = None

    def is_done(self, is_idle: bool) -> bool:
        """Whether the worker may stop: idle with an empty queue, or out of time.

        Parameters
        ----------
        is_idle
            Whether the worker holds no task.

        """
        now = self._clock()
        if self._since is None:
            self._since = now
        elapsed = now - self._since
        if elapsed >= self._timeout_seconds:
            return True
        return elapsed >= SETTLE_SECONDS and is_idle and self._depth() == 0

    def leave(self) -> int:
        """Move what still waits to the default queue; count it. Called when nothing is consumed."""
        try:
            moved = self._broker.move_all(self._queue, self._default_queue)
            self._broker.close()
        except BrokerError as error:
            log.warning(
                "owl: what waits in queue %s stays there until a worker serves it: %s",
                self._queue,
                error,
            )
            return 0
        if moved:
            log.info("owl: moved %d tasks from %s to %s", moved, self._queue, self._default_queue)
        return moved

    def _depth(self) -> int:
        """Messages that wait; 0 where the broker does not tell."""
        try:
            return self._broker.depths([self._queue]).get(self._queue, 0)
        except BrokerError:
            return 0
