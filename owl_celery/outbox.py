"""Events on their way to the stream: appended by signal handlers, flushed by one thread."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections import deque
from typing import Final

from owl_celery.breaker import Breaker
from owl_celery.counters import OUTCOMES_DROPPED, Teller
from owl_celery.redis_state import RedisState
from owl_celery.redis_trouble import trouble_of
from owl_celery.settings import Settings
from owl_celery.wire import Event, encode_event

log = logging.getLogger(__name__)

CAPACITY: Final = 10_000
BATCH_LENGTH: Final = 500
RETRY_SECONDS: Final = 1.0
CLOSE_SECONDS: Final = 3.0


class Outbox:
    """Sends the events of one process; a task never waits for it.

    While Redis is away events wait here; beyond the capacity the oldest are dropped and counted.

    Parameters
    ----------
    state
        Where the stream is.
    settings
        Length of the stream.

    Attributes
    ----------
    dropped
        Events dropped since the start of the process.

    """

    def __init__(self, state: RedisState, settings: Settings) -> None:
        self._state = state
        self._settings = settings
        self._begin()
        forget = weakref.WeakMethod(self._begin)
        os.register_at_fork(after_in_child=lambda: (begin := forget()) and begin())

    def _begin(self) -> None:
        """Start from nothing: at the start, and in a child, whose parent sends its own events."""
        self.dropped = 0
        self._teller = Teller()
        self._events: deque[str] = deque()
        self._lock = threading.Lock()
        self._send_lock = threading.Lock()
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._redis = Breaker(
            *("child", "redis", "owl: outcomes wait: {reason}", "owl: outcomes flow again"),
            logger=log,
        )

    def put(self, event: Event) -> None:
        """Append an event and wake the thread, which is started by the first one."""
        text = encode_event(event)
        with self._lock:
            if len(self._events) >= CAPACITY:
                self._events.popleft()
                self.dropped += 1
            self._events.append(text)
            if self._thread is None:
                self._stop = threading.Event()
                self._thread = threading.Thread(target=self._run, name="owl-outbox", daemon=True)
                self._thread.start()
        self._wake.set()

    def close(self) -> None:
        """Send what is left, waiting a few seconds at most, and stop the thread."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._stop.set()
        self._wake.set()
        thread.join(timeout=CLOSE_SECONDS)

    def _run(self) -> None:
        stop = self._stop
        while True:
            self._wake.wait()
            self._wake.clear()
            # Asked before: what fails while it is told to stop is tried once more.
            is_last = stop.is_set()
            while self._events and self._send():
                pass
            if is_last:
                return
            if self._events:
                stop.wait(RETRY_SECONDS)
                self._wake.set()

    def _send(self) -> bool:
        """Send one batch; False when Redis is away, and the batch stays."""
        with self._lock:
            batch = [self._events[i] for i in range(min(BATCH_LENGTH, len(self._events)))]
            dropped_before = self.dropped
        pipe = self._state.client.pipeline(transaction=False)
        counted = self._teller.untold({OUTCOMES_DROPPED: dropped_before, **self._redis.totals()})
        self._teller.write(pipe, self._state.keys.counters, counted)
        for text in batch:
            pipe.xadd(
                self._state.keys.events,
                {"e": text},
                maxlen=self._settings.stream_max_length,
                approximate=True,
            )
        try:
            replies = pipe.execute(raise_on_error=False)
            self._teller.confirm(counted, replies[: len(counted)])
            for reply in replies[len(counted) :]:
                if isinstance(reply, Exception):
                    raise reply
        except Exception as error:
            # Whatever it is: a thread that ends here would drop every later outcome.
            self._redis.fails(trouble_of(error))
            return False
        self._redis.works()
        with self._lock:
            # What was dropped meanwhile came from the front of this very batch.
            for _ in range(len(batch) - (self.dropped - dropped_before)):
                self._events.popleft()
        return True
