"""What an operator changes while everything runs: the kill switch, and queues to empty.

Both live in Redis, so they survive every process of ours. Called by the command line and the API.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from owl_celery.errors import UnknownModeError, UnknownQueueError
from owl_celery.records import FleetRecord, View, decode_record
from owl_celery.redis_state import RedisState
from owl_celery.wire import MODES, mode_of, unknown_mode

LISTED_QUEUES: Final = 20


class QueueLoad(NamedTuple):
    """Tasks that wait and run in a queue; none of both when it has no worker any more."""

    waiting_count: int = 0
    running_count: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not (self.waiting_count or self.running_count)


def read_mode(state: RedisState) -> tuple[str, str]:
    """The mode in effect, and a sentence when what is in Redis is none; else empty.

    Raises
    ------
    redis.RedisError
        When Redis does not answer.

    """
    text: Any = state.client.get(state.keys.mode)
    return mode_of(text), unknown_mode(text)


def set_mode(state: RedisState, mode: str) -> str:
    """Set the kill switch for all processes; returns the mode that was in effect.

    Producers and controller read it with every sync, at least once a second.

    Parameters
    ----------
    state
        Redis of the application.
    mode
        ``on``, ``shadow`` (decide and learn while Celery routes) or ``off``.

    Raises
    ------
    UnknownModeError
        When it is none of these.
    redis.RedisError
        When Redis does not answer.

    """
    if mode not in MODES:
        raise UnknownModeError(f"There is no mode {mode!r}; it is one of {', '.join(MODES)}.")
    before: Any = state.client.set(state.keys.mode, mode, get=True)
    return mode_of(before)


def drained_queues(state: RedisState) -> list[str]:
    """Queues that an operator has drained, sorted.

    Raises
    ------
    redis.RedisError
        When Redis does not answer.

    """
    names: Any = state.client.smembers(state.keys.drained)
    return sorted(str(name) for name in names)


def known_queues(state: RedisState) -> list[str]:
    """Queues that live workers serve or that are drained, sorted.

    Raises
    ------
    redis.RedisError
        When Redis does not answer.

    """
    text: Any = state.client.get(state.keys.fleet)
    fleet = decode_record(FleetRecord, text) if text else None
    return sorted({*(fleet.names if fleet else ()), *drained_queues(state)})


def drain_queue(state: RedisState, queue: str) -> bool:
    """Send no more tasks to a queue and move elsewhere what we sent there; False if it was so.

    The controller acts on it at its next tick, and goes on until ``resume_queue``. Tasks whose
    sender named this queue stay, and its worker serves them and nothing else: neither the default
    queue nor what ``-Q`` names.

    Raises
    ------
    UnknownQueueError
        When no live worker serves such a queue, and nothing was sent there of late.
    redis.RedisError
        When Redis does not answer.

    """
    _check(state, queue)
    return bool(state.client.sadd(state.keys.drained, queue))


def resume_queue(state: RedisState, queue: str) -> bool:
    """Send tasks to a drained queue again; False if it was not drained.

    Raises
    ------
    UnknownQueueError
        When it is not drained, no live worker serves it, and nothing was sent there of late.
    redis.RedisError
        When Redis does not answer.

    """
    _check(state, queue)
    return bool(state.client.srem(state.keys.drained, queue))


def queue_load(state: RedisState, queue: str) -> QueueLoad:
    """What waits and runs in a queue by the controller's last view.

    Raises
    ------
    redis.RedisError
        When Redis does not answer.

    """
    texts: Any = state.client.mget([state.keys.fleet, state.keys.view])
    fleet = decode_record(FleetRecord, texts[0]) if texts[0] else None
    view = decode_record(View, texts[1]) if texts[1] else None
    if fleet is None or view is None or queue not in fleet.names:
        return QueueLoad()
    row = fleet.names.index(queue)
    running = sum(int(task[0]) == row for task in view.running)
    return QueueLoad(int(view.waiting_count[row]), running)


def has_controller(state: RedisState) -> bool:
    """Whether a controller is active.

    Raises
    ------
    redis.RedisError
        When Redis does not answer.

    """
    return bool(state.client.exists(state.keys.health))


def _check(state: RedisState, queue: str) -> None:
    known = known_queues(state)
    if queue in known or state.client.hexists(state.keys.assigned_count, queue):
        return
    if not known:
        raise UnknownQueueError(
            f"There is no queue {queue!r}: no worker of this application has been seen."
        )
    listed = ", ".join(known[:LISTED_QUEUES])
    more = f" and {len(known) - LISTED_QUEUES} more" if len(known) > LISTED_QUEUES else ""
    raise UnknownQueueError(f"There is no queue {queue!r}; known are {listed}{more}.")
