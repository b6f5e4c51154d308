"""The broker of a test, Redis or RabbitMQ, as its workers see it.

Integration tests take the fixture ``message_broker``, which is Redis; those in which it matters
who carries the tasks are marked by ``on_both`` and run on RabbitMQ, too. State and results are in
Redis in either case.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from celery import Celery
from redis import Redis

from benchmarks.rabbitmq import RabbitServer
from tests.routed import number_of, numbers_in

on_both = pytest.mark.parametrize("message_broker", ["redis", "rabbitmq"], indirect=True)


@dataclass(frozen=True)
class MessageBroker:
    """A real, empty broker.

    Parameters
    ----------
    redis_url
        Of state and results; also of the broker unless there is a ``rabbit``.
    url
        Of the broker.
    rabbit
        The server, if it is one.

    """

    redis_url: str
    url: str
    rabbit: RabbitServer | None = None

    @property
    def is_redis(self) -> bool:
        """Whether the broker is Redis, too."""
        return self.rabbit is None

    def environment(self) -> dict[str, str]:
        """What an application is told by its environment."""
        found = {"TEST_BROKER_URL": self.url, "TEST_REDIS_URL": self.redis_url}
        # Where the broker is a Redis it is the state's, too, without a word.
        return found if self.rabbit is None else {**found, "REDIS_URL": self.redis_url}

    def declare(self, *queues: str) -> None:
        """Make queues, as their workers do; without effect on Redis."""
        if self.rabbit is not None:
            with self._app() as app, app.connection_for_write() as connection:
                for name in queues:
                    app.amqp.queues[name].bind(connection.default_channel).declare()

    def waiting(self, queue: str) -> int:
        """Messages that wait in a queue."""
        if self.rabbit is not None:
            return int(self._queue(queue).get("messages_ready", 0))
        with Redis.from_url(self.redis_url) as client:
            return int(client.llen(queue))

    def held(self) -> int:
        """Messages that workers have and have not acknowledged."""
        if self.rabbit is not None:
            found = self.rabbit.queues(self.url).values()
            return sum(int(queue.get("messages_unacknowledged", 0)) for queue in found)
        with Redis.from_url(self.redis_url) as client:
            return int(client.hlen("unacked"))

    def numbers(self, queue: str) -> list[int]:
        """Numbers of the messages that wait, see ``send_routed``, in order; they stay there."""
        if self.rabbit is None:
            with Redis.from_url(self.redis_url, decode_responses=True) as client:
                return numbers_in(client, queue)
        found: list[int] = []
        with self._app() as app, app.connection_for_read() as connection:
            channel: Any = connection.channel()
            for _ in range(self.waiting(queue)):
                message = channel.basic_get(queue)
                found.append(number_of(message.headers))
            if found:
                channel.basic_recover(requeue=True)
        return found

    def take(self, queue: str) -> None:
        """Take a message out, as a worker does that acknowledges it at once."""
        if self.rabbit is None:
            with Redis.from_url(self.redis_url) as client:
                client.rpop(queue)
            return
        with self._app() as app, app.connection_for_read() as connection:
            connection.default_channel.basic_get(queue, no_ack=True)

    def _app(self) -> Celery:
        return Celery("proj", broker=self.url, set_as_current=False)

    def _queue(self, name: str) -> dict[str, Any]:
        assert self.rabbit is not None
        return self.rabbit.queues(self.url).get(name, {})
