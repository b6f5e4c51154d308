"""Live events: one reader of the stream for all clients, and a bounded line for each of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Final, NamedTuple

from anyio import to_thread
from redis.exceptions import RedisError

from owl_celery.api.present import decision_body, fleet_body
from owl_celery.overview import OverviewReader
from owl_celery.overview.decisions import explain
from owl_celery.overview.tail import EventTail
from owl_celery.redis_state import RedisState

log = logging.getLogger(__name__)

POLL_SECONDS: Final = 0.1
FLEET_SECONDS: Final = 1.0
RETRY_SECONDS: Final = 1.0
MAX_QUEUED: Final = 100
MAX_OUTCOMES_A_POLL: Final = 20
"""Outcomes of a tenth of a second that are told: nobody reads more than 200 lines a second."""


class LiveEvent(NamedTuple):
    """One server-sent event: its kind, and a body of JSON."""

    kind: str
    body: str


class Feed:
    """Tells every subscriber of the fleet each second, and of outcomes as they come.

    Used in the event loop of the server only. It reads while there are subscribers. One that
    reads too slowly misses events rather than holding up the others.

    Parameters
    ----------
    reader
        What is told of the fleet.
    state
        Where the stream is.

    """

    def __init__(self, reader: OverviewReader, state: RedisState) -> None:
        self._reader = reader
        self._state = state
        self._lines: set[asyncio.Queue[LiveEvent | None]] = set()
        self._task: asyncio.Task[None] | None = None
        self._is_closed = False
        self._fleet: LiveEvent | None = None

    @property
    def client_count(self) -> int:
        """Subscribers at present."""
        return len(self._lines)

    def subscribe(self) -> asyncio.Queue[LiveEvent | None]:
        """Begin to receive events; the last one is None."""
        line: asyncio.Queue[LiveEvent | None] = asyncio.Queue(MAX_QUEUED)
        if self._is_closed:
            line.put_nowait(None)
            return line
        self._lines.add(line)
        if self._fleet is not None:
            line.put_nowait(self._fleet)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())
        return line

    def unsubscribe(self, line: asyncio.Queue[LiveEvent | None]) -> None:
        """Receive no more."""
        self._lines.discard(line)

    def close(self) -> None:
        """End every subscription, so that the server can stop."""
        self._is_closed = True
        for line in self._lines:
            _put(line, None)
        self._lines.clear()

    async def follow(self, line: asyncio.Queue[LiveEvent | None]) -> AsyncIterator[LiveEvent]:
        """Give the events of a subscription until it ends."""
        while (event := await line.get()) is not None:
            yield event

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        tail, next_fleet, has_failed = EventTail(self._state), loop.time(), False
        while self._lines:
            try:
                # First, so that whoever has heard of the fleet hears of all that ends later.
                for event in await to_thread.run_sync(self._read_outcomes, tail):
                    self._tell(event)
                if loop.time() >= next_fleet:
                    next_fleet = loop.time() + FLEET_SECONDS
                    self._fleet = await to_thread.run_sync(self._read_fleet)
                    self._tell(self._fleet)
                has_failed = False
            except Exception:
                if not has_failed:
                    has_failed = True
                    log.exception("owl: live events failed")
                await asyncio.sleep(RETRY_SECONDS)
            await asyncio.sleep(POLL_SECONDS)
        self._fleet = None

    def _read_fleet(self) -> LiveEvent:
        return LiveEvent("fleet", fleet_body(self._reader.read()).model_dump_json())

    def _read_outcomes(self, tail: EventTail) -> list[LiveEvent]:
        try:
            outcomes = tail.poll()[-MAX_OUTCOMES_A_POLL:]
        except (RedisError, OSError):
            return []  # The event ``fleet`` says so.
        if not outcomes:
            return []
        overview = self._reader.read()
        return [
            LiveEvent("outcome", decision_body(explain(outcome, overview)).model_dump_json())
            for outcome in outcomes
        ]

    def _tell(self, event: LiveEvent) -> None:
        for line in self._lines:
            _put(line, event)


def _put(line: asyncio.Queue[LiveEvent | None], event: LiveEvent | None) -> None:
    if line.full():
        line.get_nowait()
    line.put_nowait(event)
