"""The thread of a worker's parent that says that the worker lives."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from redis.exceptions import RedisError

from owl_celery.breaker import Breaker
from owl_celery.claims import Claims
from owl_celery.counters import Teller
from owl_celery.gpus import GpuReader, GpuReadings
from owl_celery.redis_state import RedisState
from owl_celery.redis_trouble import reason_of
from owl_celery.settings import Settings
from owl_celery.wire import Heartbeat

log = logging.getLogger(__name__)

CHANGE_GAP_SECONDS: Final = 0.02
"""Least pause between two heartbeats: a burst of short tasks is one change."""

ROUND_SECONDS: Final = 0.25
JOIN_SECONDS: Final = 5.0


class Pulse(threading.Thread):
    """Sends the heartbeats of one worker until it is stopped.

    A heartbeat goes out every ``heartbeat_seconds``, with claims renewed and the GPU read, and
    after every change. One that Redis does not take is skipped: the worker works on.

    Parameters
    ----------
    state, settings
        Where to send, and how often.
    describe
        What the worker is and does now; readings are added here.
    claims
        What the worker owns.
    reader, gpu_uuid
        How to read its GPU; no reader without one.
    on_round
        Called in this thread some times a second.
    write_more
        Adds to the pipeline of each heartbeat.

    Attributes
    ----------
    skipped
        Heartbeats that Redis did not take.
    is_queue_drained
        Whether an operator has drained the queue of this worker, as of the last full heartbeat.

    """

    def __init__(
        self,
        state: RedisState,
        settings: Settings,
        describe: Callable[[], Heartbeat],
        claims: Claims,
        reader: GpuReader | None = None,
        gpu_uuid: str = "",
        on_round: Callable[[], None] = lambda: None,
        write_more: Callable[[Any], None] = lambda _: None,
    ) -> None:
        super().__init__(name="owl-heartbeat", daemon=True)
        self.skipped = 0
        self.is_queue_drained = False
        self._state = state
        self._settings = settings
        self._describe = describe
        self._claims = claims
        self._reader = reader
        self._gpu_uuid = gpu_uuid
        self._on_round = on_round
        self._write_more = write_more
        self._readings = GpuReadings()
        self._has_changed = threading.Event()
        self._is_stopping = threading.Event()
        self._problem = ""
        self._teller = Teller()
        self._redis = Breaker(
            "worker",
            "redis",
            "owl: Redis does not take the heartbeat ({reason}); the worker works on",
            "owl: heartbeats are back",
            logger=log,
        )

    def changed(self) -> None:
        """Ask for a heartbeat now; cheap, from any thread, but not from a signal handler."""
        self._has_changed.set()

    def run(self) -> None:
        """Beat until ``stop``."""
        next_full = time.monotonic()
        while not self._is_stopping.is_set():
            self._has_changed.clear()
            is_full = time.monotonic() >= next_full
            if is_full:
                next_full = time.monotonic() + self._settings.heartbeat_seconds
            self.beat(is_full)
            self._rounds_until(next_full)
            self._is_stopping.wait(CHANGE_GAP_SECONDS)

    def beat(self, is_full: bool = True) -> None:
        """Send one heartbeat; a full one renews the claims and reads the GPU, after it is sent."""
        try:
            self._send(is_full)
            self._say(self._renew() if is_full else self._problem)
            self._redis.works()
        except RedisError as error:
            self.skipped += 1
            self._redis.fails(reason_of(error))
        except Exception as error:
            # A fault of ours must not make a working worker look dead for good.
            self.skipped += 1
            self._say(f"the heartbeat failed: {error!r}")
        if is_full and self._reader is not None:
            before, self._readings = self._readings, self._reader.read(self._gpu_uuid)
            if before.memory_free_bytes is None and self._readings.memory_free_bytes is not None:
                self.changed()  # To be known before the first task takes some.

    def stop(self) -> None:
        """End the thread, then take back heartbeat and claims."""
        self._is_stopping.set()
        self._has_changed.set()
        if self.is_alive():
            self.join(JOIN_SECONDS)
        node = self._describe().node
        try:
            with self._state.client.pipeline(transaction=False) as pipe:
                pipe.delete(self._state.keys.heartbeat(node))
                pipe.srem(self._state.keys.nodes, node)
                pipe.execute()
            self._claims.release()
        except RedisError as error:
            self._say(f"Redis does not take the end of the heartbeat ({reason_of(error)})")

    def _rounds_until(self, deadline: float) -> None:
        while not self._has_changed.is_set():
            try:
                self._on_round()
            except Exception as error:
                self._say(f"the heartbeat failed: {error!r}")
            left = deadline - time.monotonic()
            if left <= 0.0 or self._has_changed.wait(min(left, ROUND_SECONDS)):
                return

    def _send(self, is_full: bool) -> None:
        read = self._readings
        heartbeat = replace(
            self._describe(),
            memory_total_bytes=read.memory_total_bytes,
            memory_free_bytes=read.memory_free_bytes,
            memory_own_bytes=read.memory_own_bytes,
            utilization_ratio=read.utilization_ratio,
            temperature_celsius=read.temperature_celsius,
            power_watts=read.power_watts,
        )
        ttl = int(self._settings.heartbeat_ttl_seconds * 1000)
        counted = self._teller.untold(self._totals()) if is_full else {}
        with self._state.client.pipeline(transaction=False) as pipe:
            self._teller.write(pipe, self._state.keys.counters, counted)
            pipe.set(self._state.keys.heartbeat(heartbeat.node), heartbeat.encode(), px=ttl)
            self._write_more(pipe)
            if is_full:
                pipe.sadd(self._state.keys.nodes, heartbeat.node)
                pipe.sismember(self._state.keys.drained, heartbeat.queue)
            replies = pipe.execute(raise_on_error=False)
        # A count that Redis refuses is tried again, and keeps no heartbeat back.
        self._teller.confirm(counted, replies[: len(counted)])
        for reply in replies[len(counted) :]:
            if isinstance(reply, Exception):
                raise reply
        if is_full:
            self.is_queue_drained = bool(replies[-1])

    def _totals(self) -> dict[str, float]:
        return {**self._redis.totals(), **(self._reader.totals() if self._reader else {})}

    def _renew(self) -> str:
        taken = self._claims.renew()
        return "; ".join(f"{name} is claimed by {owner}" for name, (owner, _) in taken.items())

    def _say(self, problem: str) -> None:
        """Log a problem when it begins and when it ends."""
        if problem == self._problem:
            return
        if problem:
            log.warning("owl: %s; the worker works on", problem)
        else:
            log.info("owl: all is well with the heartbeat again")
        self._problem = problem
