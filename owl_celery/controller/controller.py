"""The one active controller: learns from outcomes, keeps the load, publishes both.

Hosted by ``celery owl serve`` or by any worker parent; whoever holds the lease is active, the
others wait. Routing goes on without it by the last snapshot, and by Celery when that is old.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Final

from redis.exceptions import RedisError

from owl_celery.brokers.base import Broker
from owl_celery.controller.health import Troubles
from owl_celery.controller.leader import Leader
from owl_celery.controller.lease import Lease
from owl_celery.policies import make_policy
from owl_celery.redis_state import RedisState
from owl_celery.redis_trouble import trouble_of
from owl_celery.settings import Settings
from owl_celery.store.base import Store

log = logging.getLogger(__name__)

STANDBY_SECONDS: Final = 0.5
RETRY_SECONDS: Final = 0.5
IDLE_TICK_SECONDS: Final = 0.2
TICK_SHARE: Final = 0.3


class Controller:
    """Waits for the lease, leads while it holds it, and waits again.

    Parameters
    ----------
    state
        Redis of load and learning state.
    broker
        Looks into the queues.
    settings
        Policy, pauses, lease.
    open_store
        Makes the store; called only by a controller that leads, and in a thread of its own.
        By default the store of the settings.
    name
        What health calls this process; host and pid by default.
    clock
        Monotonic seconds.
    default_queue
        The queue that every worker serves.

    Raises
    ------
    SettingsError
        When the policy cannot be made.

    """

    def __init__(
        self,
        state: RedisState,
        broker: Broker,
        settings: Settings,
        open_store: Callable[[], Store] | None = None,
        name: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        default_queue: str = "celery",
    ) -> None:
        make_policy(settings)  # Fails here rather than in a thread.
        self.troubles = Troubles()
        self.name = name or f"{socket.gethostname()}:{os.getpid()}"
        self._state = state
        self._broker = broker
        self._settings = settings
        self._open_store = open_store or self._store_of_settings
        self._clock = clock
        self._default_queue = default_queue
        self._lease = Lease(state, settings.lease_seconds, clock)
        self._leader: Leader | None = None

    @property
    def leader(self) -> Leader | None:
        """What this controller does while it is the active one; None while it waits."""
        return self._leader

    def tick(self) -> bool:
        """Take the lease if it is free and do one round; say whether we lead.

        Raises
        ------
        redis.RedisError
            When Redis does not answer.

        """
        if self._leader is None and not self._take_over():
            return False
        assert self._leader is not None
        if self._leader.tick():
            return True
        log.warning("owl controller: %s has lost its lease", self.name)
        self.step_down()
        return False

    def run(self, stop: threading.Event) -> None:
        """Lead whenever the lease is free, until told to stop; never raises."""
        while not stop.is_set():
            began = self._clock()
            try:
                leads = self.tick()
                self.troubles.end("redis")
                self.troubles.end("controller")
                if leads and self._leader is not None:
                    self._leader.start_learning()
                    pause = self._pause(self._leader, self._clock() - began)
                else:
                    pause = STANDBY_SECONDS
            except (RedisError, OSError) as error:
                self.troubles.begin("redis", trouble_of(error))
                pause = self._after_failure()
            except Exception:
                # Nothing that goes wrong here may hurt the worker that hosts it.
                if "controller" not in self.troubles.now():
                    log.exception("owl controller: a round failed")
                self.troubles.begin("controller", "A round failed; see the log.")
                pause = self._after_failure()
            stop.wait(pause)
        self.step_down()

    def step_down(self) -> None:
        """Stop leading: commit what is learned and give the lease back at once."""
        leader, self._leader = self._leader, None
        if leader is not None:
            leader.stop_learning()
        for release in (self._lease.release, self._broker.close):
            try:
                release()
            except Exception as error:
                log.info("owl controller: lease or broker is left to time out (%s)", error)

    def _take_over(self) -> bool:
        # It is ours already when an earlier attempt has failed half-way.
        if not self._lease.is_held and not self._lease.acquire():
            return False
        self._leader = Leader(
            self._state,
            self._broker,
            self._settings,
            self._open_store,
            self._lease,
            self.troubles,
            self.name,
            self._clock,
            self._default_queue,
        )
        log.info("owl controller: %s leads (fencing number %d)", self.name, self._lease.fence)
        return True

    def _after_failure(self) -> float:
        """Let another lead when the lease has run out; pause until the next attempt."""
        if self._leader is not None and not self._lease.is_held:
            self.step_down()
        return RETRY_SECONDS

    def _pause(self, leader: Leader, cost: float) -> float:
        """Pause until the next round: longer when idle, and when a round takes long."""
        if leader.is_idle:
            return IDLE_TICK_SECONDS
        return max(self._settings.tick_seconds - cost, cost * (1.0 / TICK_SHARE - 1.0))

    def _store_of_settings(self) -> Store:
        from owl_celery.store import open_store

        return open_store(self._settings, self._state.keys.namespace)
