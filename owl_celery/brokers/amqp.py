"""Queues of RabbitMQ, and of any transport of kombu that can count and fetch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from kombu.connection import Connection

from owl_celery.brokers.base import Contents, Owner, Permit, Place, Seen
from owl_celery.brokers.messages import DELIVERY_COUNT, copy_of, movable_header
from owl_celery.errors import BrokerError
from owl_celery.redis_trouble import reason_of
from owl_celery.wire import header_in

HEARTBEAT_SECONDS: Final = 10
"""After twice that without a word RabbitMQ gives back what a controller holds that hangs."""

ANSWER_SECONDS: Final = 2.0
"""RabbitMQ answers a commit once it has written it to disk."""

MOVING_SECONDS: Final = 2.0
"""Time for emptying queues in one round of the controller, which has a lease to renew."""

MOVED_AT_ONCE: Final = 50
MOVED_BYTES: Final = 1024 * 1024
FETCHED: Final = 32
"""Most movable messages that one peek holds."""

NOT_MOVED: Final = 2
"""Messages which may not be moved that one peek looks past in a queue; the rest is not seen."""


class AmqpBroker:
    """Looks into queues by passive declarations, and moves messages in AMQP's transactions.

    A message that is fetched belongs to this connection until it is acknowledged or given back, or
    the connection is gone. So a controller that has lost its lease moves nothing that another has
    moved, and no fencing number has to be kept.

    Parameters
    ----------
    connect
        Makes an unconnected connection of the application.
    clock
        Monotonic seconds.

    """

    def __init__(
        self, connect: Callable[[], Connection], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._connect = connect
        self._clock = clock
        self._connection: Any = None
        self._asking: Any = None
        self._moving: Any = None
        self._used_at = 0.0
        self._began_at = float("-inf")
        self._held: dict[tuple[str, str], Any] = {}
        self._kept: list[Any] = []
        self._not_in_order: set[str] = set()
        self.has_more = self.has_unseen = False
        self.trouble = ""
        self.peek_disturbs = True

    def depths(self, queues: Sequence[str]) -> dict[str, int]:
        """Count what waits in each queue, one round trip a queue; 0 for a missing one."""
        if not queues:
            return {}  # Without a word to RabbitMQ the connection would only seem to be used.
        with self._open():
            return {queue: self._depth(queue) or 0 for queue in queues}

    def contents(self, queue: str, most: int) -> Contents | None:
        """Read nothing: what is looked at would have to be taken and given back."""
        return None

    def peek(self, queues: Sequence[str], each: int, wanted: int) -> Mapping[str, Sequence[Seen]]:
        """Show the oldest few of what waits, and hold it until ``release``.

        Nothing is shown of a quorum queue, which puts behind all others what it gets back.
        """
        self.release()
        shown: dict[str, list[Seen]] = {}
        left = FETCHED
        with self._open():
            if not self._has_transactions:
                return {}
            for queue in queues:
                if queue not in self._not_in_order and left > 0:
                    shown[queue] = self._fetch(queue, min(each, wanted, left))
                    left -= len(shown[queue])
        return shown

    def take(
        self, source: str, seen: Seen, decision_id: str, destination: str, permit: Permit
    ) -> bool:
        """Move one message, as seen just now, to a queue in which nothing waits."""
        if (source, decision_id) not in self._held:
            return False
        with self._open():
            # RabbitMQ drops what it cannot route: the queue must exist.
            if self._depth(destination) != 0:
                return False
            self._copy(self._held.pop((source, decision_id)), destination)
            self._commit()
        return True

    def release(self) -> None:
        """Put back, each at its place, what the last peek has shown and nobody has taken."""
        held, self._held = [*self._held.values(), *self._kept], {}
        self._kept = []
        if held:
            with self._open():
                self._give_back(held)

    def move_all(self, source: str, destination: str) -> int:
        """Move what waits in one queue behind what waits in another, oldest first; count it.

        Some messages at a time, each time all of them or, if this process ends, none.
        """
        if source == destination:
            return 0
        return self._forward(source, lambda _: destination)

    def redirect(self, source: str, place: Place, limit: int, permit: Permit | None = None) -> int:
        """Move each waiting task of ours to where ``place`` says, oldest first; count them.

        As safe as ``move_all``. What stays is fetched and given back. It takes two seconds at
        most: a controller has a lease to renew.
        """

        def destination(headers: object) -> str | None:
            header = header_in(headers)
            queue = place(header) if header else None
            return None if queue == source else queue

        return self._forward(source, destination, limit, bounded=True)

    def _forward(
        self,
        source: str,
        destination_of: Callable[[object], str | None],
        limit: float = float("inf"),
        bounded: bool = False,
    ) -> int:
        """Move each message to where its headers say; None keeps it.

        Stops after a while when ``bounded``.
        """
        moved = copied = copied_bytes = 0
        is_late, until = False, self._until()
        kept: list[Any] = []
        exists: dict[str, bool] = {}
        with self._open():
            # No more than is there now: it ends even if publishers keep up with it.
            left = min(self._depth(source) or 0, limit)
            while moved + copied + len(kept) < left:
                if is_late := bounded and self._clock() > until:
                    break
                message = self._get(source)
                if message is None:
                    break
                destination = destination_of(message.headers)
                if destination is not None and destination not in exists:
                    # RabbitMQ drops what it cannot route.
                    exists[destination] = self._depth(destination) is not None
                if destination is None or not exists[destination]:
                    kept.append(message)
                    continue
                self._copy(message, destination)
                copied, copied_bytes = copied + 1, copied_bytes + len(message.body or b"")
                if copied == MOVED_AT_ONCE or copied_bytes >= MOVED_BYTES:
                    self._commit()
                    moved, copied, copied_bytes = moved + copied, 0, 0
            self._give_back(kept)
        # Where all that was seen stays, the next call would see the same again.
        self.has_unseen = is_late and moved + copied > 0
        return moved + copied

    def _until(self) -> float:
        """When to stop: calls in quick succession, for one queue after the other, share a time."""
        now = self._clock()
        if now - self._began_at > 1.5 * MOVING_SECONDS:
            self._began_at = now
        return max(self._began_at + MOVING_SECONDS, now + MOVING_SECONDS / 20)

    def _fetch(self, queue: str, wanted: int) -> list[Seen]:
        """Hold the oldest messages of a queue, until enough of them may be moved."""
        headers: list[tuple[str, int]] = []
        movable = 0
        while movable < wanted and len(headers) - movable < NOT_MOVED:
            message = self._get(queue)
            if message is None:
                break
            text = movable_header(message, queue)
            decision_id = header.decision_id if (header := header_in(message.headers)) else ""
            if text and (queue, decision_id) not in self._held:
                self._held[queue, decision_id] = message
                movable += 1
            else:
                text = ""
                self._kept.append(message)
            headers.append((text, int(message.delivery_info.get("message_count", 0))))
            if DELIVERY_COUNT in message.headers:
                self._not_in_order.add(queue)
                break
        behind = headers[-1][1] if headers else 0
        count = len(headers)
        return [
            Seen(0, index, index, count - 1 - index + behind, text)
            for index, (text, _) in enumerate(headers)
        ]

    def _get(self, queue: str) -> Any:
        fetched = self._moving.basic_get(queue)
        return None if fetched is None else self._moving.message_to_python(fetched)

    def _depth(self, queue: str) -> int | None:
        """Messages that wait in a queue; None when there is no such queue."""
        # On a channel of its own: a refused declaration closes it, and gives back what it holds.
        # The transport opens it again; another one would be one more that stays open.
        if self._asking is None:
            self._asking = self._connection.channel()
        try:
            return int(self._asking.queue_declare(queue, passive=True).message_count)
        except self._connection.channel_errors:
            return None

    @property
    def _has_transactions(self) -> bool:
        """Whether the transport has them: kombu's own in memory has not."""
        return hasattr(self._moving, "tx_select")

    def _commit(self) -> None:
        """Let all that was published, acknowledged and given back since the last time happen."""
        if self._has_transactions:
            self._moving.tx_commit()

    def _give_back(self, messages: Sequence[Any]) -> None:
        for message in reversed(messages):
            message.requeue()
        self._commit()

    def _copy(self, message: Any, queue: str) -> None:
        """Send a copy of a message to a queue and acknowledge it, both with the next commit."""
        copy = copy_of(message, self._moving)
        self._moving.basic_publish(copy, exchange="", routing_key=queue)
        message.ack()

    def restore(
        self,
        owners: Mapping[str, Owner],
        permit: Permit | None = None,
        max_losses: int = 0,
        orphans: Mapping[str, float] | None = None,
    ) -> int:
        """Hand back nothing: RabbitMQ does it as soon as a connection is lost."""
        return 0

    def close(self) -> None:
        """Close the connection, which gives back what is held; the next use opens another."""
        connection, self._connection = self._connection, None
        self._asking = self._moving = None
        self._held, self._kept = {}, []
        if connection is not None:
            connection.release()

    @contextmanager
    def _open(self) -> Iterator[None]:
        try:
            if self._connection is not None and self._clock() - self._used_at > HEARTBEAT_SECONDS:
                # RabbitMQ will have taken us for dead.
                self._drop()
            if self._connection is None:
                self._connection = self._connect()
                # Without pauses, which kombu makes by default: the caller tries again later.
                self._connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0)
            if self._moving is None:
                self._moving = self._connection.channel()
                if self._has_transactions:
                    self._moving.tx_select()
            yield
            self._used_at = self._clock()
        except Exception as error:
            # Whatever the transport raises: the next use starts from a new connection.
            self._drop()
            raise BrokerError(f"The broker cannot be used ({reason_of(error)}).") from error

    def _drop(self) -> None:
        try:
            self.close()
        except Exception:
            self._connection = None  # It was broken already.
