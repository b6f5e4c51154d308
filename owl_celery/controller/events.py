"""Read starts and outcomes from the stream; what comes from there is not trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

from redis.exceptions import ResponseError

from owl_celery.redis_state import RedisState
from owl_celery.sanity import sane
from owl_celery.types import Outcome, TryState
from owl_celery.wire import Discarded, Event, Started, decode_event

AHEAD_SECONDS: Final = 2.0
"""By which two clocks that are set right may differ."""


class Entry(NamedTuple):
    """One entry of the stream.

    Parameters
    ----------
    cursor
        Its stream id.
    at
        Redis clock when it was added, Unix seconds.
    event
        What it says; None when it makes no sense.

    """

    cursor: str
    at: float
    event: Event | None


def read_events(state: RedisState, cursor: str, limit: int) -> list[Entry]:
    """Read at most ``limit`` entries after ``cursor``, oldest first.

    Raises
    ------
    redis.RedisError
        When Redis does not answer.

    """
    # The client replies with text throughout, which its types do not say.
    reply: Any = state.client.xread({state.keys.events: cursor}, count=limit)
    return entries_of(reply[0][1]) if reply else []


def read_last_events(state: RedisState, limit: int) -> list[Entry]:
    """Read the newest ``limit`` entries, oldest first.

    Raises
    ------
    redis.RedisError
        When Redis does not answer.

    """
    reply: Any = state.client.xrevrange(state.keys.events, count=limit)
    return entries_of(reply[::-1])


def is_beyond(state: RedisState, cursor: str) -> bool:
    """Whether a cursor is past all that the stream ever held: Redis has lost its data.

    Raises
    ------
    redis.RedisError
        When Redis does not answer.

    """
    try:
        reply: Any = state.client.xinfo_stream(state.keys.events)
    except ResponseError:
        return False  # There is no stream yet.
    return position(reply["last-generated-id"]) < position(cursor)


def trim_events(state: RedisState, cursors: Sequence[str], keep_seconds: float) -> None:
    """Drop entries that are older, by ``keep_seconds``, than the first of the cursors.

    Raises
    ------
    redis.RedisError
        When Redis does not answer.

    """
    milliseconds, _ = min(position(cursor) for cursor in cursors)
    oldest = milliseconds - int(keep_seconds * 1000)
    if oldest > 0:
        state.client.xtrim(state.keys.events, minid=str(oldest))


def position(cursor: str) -> tuple[int, int]:
    """Make stream ids comparable.

    Examples
    --------
    >>> position("10-0") > position("9-1")
    True

    """
    milliseconds, _, sequence = cursor.partition("-")
    return int(milliseconds), int(sequence or 0)


def entries_of(reply: Sequence[tuple[str, dict[str, str] | None]]) -> list[Entry]:
    """Decode what Redis replied, entry by entry."""
    entries = []
    for cursor, body in reply:
        text = (body or {}).get("e", "")
        at = int(cursor.partition("-")[0]) / 1000.0
        entries.append(Entry(cursor, at, dated(checked(decode_event(text)), at)))
    return entries


def dated(event: Event | None, at: float) -> Event | None:
    """The event, with the times of a worker whose clock is ahead put right.

    No outcome ends after it came to the stream, while it may have waited for Redis for long.

    Parameters
    ----------
    at
        Redis clock when it was added, Unix seconds.

    """
    if not isinstance(event, Outcome) or event.finished_at <= at + AHEAD_SECONDS:
        return event
    ahead, wait = event.finished_at - at, event.wait_seconds
    return replace(
        event,
        finished_at=at,
        wait_seconds=None if wait is None else max(wait - ahead, 0.0),
    )


def checked(event: Event | None) -> Event | None:
    """The event; None when one of its values is absurd.

    Examples
    --------
    >>> checked(Started("t", "d", 0, "train", "gpu.a.0", "gpu0@a", "V100", 1.5)) is None
    False
    >>> checked(Started("t", "d", 0, "train", "gpu.a.0", "gpu0@a", "V100", -1.5)) is None
    True

    """
    if isinstance(event, Outcome):
        return sane(event)
    # The others have the names, and by and large the numbers, of an outcome.
    if event is None or sane(_as_outcome(event)) is None:
        return None
    return event


def _as_outcome(event: Started | Discarded) -> Outcome:
    return Outcome(
        task_id=event.task_id,
        decision_id=event.decision_id,
        attempt=event.attempt,
        task_type=event.task_type,
        size=1.0,
        queue=event.queue,
        worker_id=event.worker_id,
        gpu_model=event.gpu_model,
        state=TryState.SUCCESS,
        service_seconds=0.0,
        finished_at=0.0,
        predicted_seconds=event.service_seconds,
    )
