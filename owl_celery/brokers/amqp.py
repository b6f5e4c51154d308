"""Queues of RabbitMQ, and of any transport of kombu that can count and fetch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from kombu.connection import Connection

from owl_celery.brokers.base import Owner, Permit, Place, Seen
from owl_celery.errors import BrokerError
from owl_celery.wire import header_in

REBUILT_PROPERTIES: Final = {
    "application_headers",
    "body_encoding",
    "content_encoding",
    "content_type",
    "delivery_info",
    "delivery_tag",
    "headers",
}
"""Properties of a fetched message that publishing makes anew."""


class AmqpBroker:
    """Looks into queues by passive declarations.

    Parameters
    ----------
    connect
        Makes an unconnected connection of the application.

    """

    def __init__(self, connect: Callable[[], Connection]) -> None:
        self._connect = connect
        self._connection: Any = None
        self._channel: Any = None
        self.has_more = False

    def depths(self, queues: Sequence[str]) -> dict[str, int]:
        """Count what waits in each queue, one round trip a queue; 0 for a missing one."""
        counted = {}
        for queue in queues:
            with self._open() as channel:
                try:
                    counted[queue] = int(channel.queue_declare(queue, passive=True).message_count)
                except self._connection.channel_errors:
                    counted[queue] = 0
                    self._channel = None  # A refused declaration closes the channel.
        return counted

    def peek(self, queues: Sequence[str], each: int) -> Mapping[str, Sequence[Seen]]:
        """See nothing: to look at a message is to take it, and all before it."""
        return {}

    def take(
        self, source: str, seen: Seen, decision_id: str, destination: str, permit: Permit
    ) -> bool:
        """Move nothing: only the oldest message of a queue can be taken."""
        return False

    def move_all(self, source: str, destination: str) -> int:
        """Move what waits in one queue behind what waits in another, oldest first; count it.

        A message is acknowledged once the broker has confirmed its copy: a crash in between
        leaves it in both queues.
        """
        if source == destination:
            return 0
        return self._forward(source, lambda _: destination)

    def redirect(self, source: str, place: Place, limit: int) -> int:
        """Move each waiting task of ours to where ``place`` says, oldest first; count them.

        As safe as ``move_all``. What stays is fetched and given back.
        """

        def destination(headers: object) -> str | None:
            header = header_in(headers)
            queue = place(header) if header else None
            return None if queue == source else queue

        return self._forward(source, destination, limit)

    def _forward(
        self,
        source: str,
        destination_of: Callable[[object], str | None],
        limit: float = float("inf"),
    ) -> int:
        """Move each message to where its headers say; None keeps it."""
        # No more than is there now: it ends even if publishers keep up with it.
        left = min(self.depths([source])[source], limit)
        moved = 0
        kept: list[Any] = []
        declared: set[str] = set()
        with self._open() as channel:
            producer = self._connection.Producer(channel)
            while moved + len(kept) < left and (fetched := channel.basic_get(source)) is not None:
                message = channel.message_to_python(fetched)
                destination = destination_of(message.headers)
                if destination is None:
                    kept.append(message)
                    continue
                if destination not in declared:
                    # RabbitMQ confirms and drops what it cannot route: the queue must exist.
                    channel.queue_declare(destination, passive=True)
                    declared.add(destination)
                self._publish(producer, message, destination)
                message.ack()
                moved += 1
            for message in reversed(kept):
                message.requeue()
        return moved

    def _publish(self, producer: Any, message: Any, queue: str) -> None:
        """Send a copy of a message to a queue; returns once the broker has it."""
        properties = {
            name: value
            for name, value in message.properties.items()
            if name not in REBUILT_PROPERTIES
        }
        milliseconds = properties.pop("expiration", None)
        producer.publish(
            message.body,
            routing_key=queue,
            exchange="",
            content_type=message.content_type,
            content_encoding=message.content_encoding,
            headers=message.headers,
            # Publishing takes seconds, and the message carries milliseconds, as text.
            expiration=None if milliseconds is None else int(milliseconds) / 1000,
            **properties,
        )

    def restore(
        self, owners: Mapping[str, Owner], permit: Permit | None = None, max_losses: int = 0
    ) -> int:
        """Hand back nothing: RabbitMQ does it as soon as a connection is lost."""
        return 0

    def close(self) -> None:
        """Close the connection; the next use opens another."""
        connection, self._connection = self._connection, None
        self._channel = None
        if connection is not None:
            connection.release()

    @contextmanager
    def _open(self) -> Iterator[Any]:
        try:
            if self._connection is None:
                self._connection = self._connect()
                # Without pauses, which kombu makes by default: the caller tries again later.
                self._connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0)
            if self._channel is None:
                self._channel = self._connection.channel()
            yield self._channel
        except Exception as error:
            # Whatever the transport raises: the next use starts from a new connection.
            self._drop()
            raise BrokerError(
                f"The broker cannot be used ({type(error).__name__}: {error})."
            ) from error

    def _drop(self) -> None:
        try:
            self.close()
        except Exception:
            self._connection = None  # It was broken already.
