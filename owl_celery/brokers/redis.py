"""Queues of Celery on Redis: lists, one for each priority step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from typing import Any, Final

from kombu.connection import Connection
from redis import Redis

from owl_celery.errors import BrokerError

MOVED_AT_ONCE: Final = 200


class RedisBroker:
    """Looks into the lists that Celery's Redis transport keeps.

    Host, password, TLS, Sentinel, key prefix and priority steps are the transport's own: they
    come from the application's connection.

    Parameters
    ----------
    connect
        Makes an unconnected connection of the application.

    """

    def __init__(self, connect: Callable[[], Connection]) -> None:
        self._connect = connect
        self._connection: Any = None
        self._channel: Any = None
        self._client: Any = None
        scripts = resources.files("owl_celery.brokers") / "lua"
        self._count = (scripts / "depths.lua").read_text("utf-8")
        self._move = (scripts / "move.lua").read_text("utf-8")

    def depths(self, queues: Sequence[str]) -> dict[str, int]:
        """Count what waits in each queue, all priorities together, in one round trip."""
        if not queues:
            return {}
        with self._open() as client:
            steps = len(self._channel.priority_steps)
            # A script: thousands of single replies cost more than all the rest of a tick.
            count = client.register_script(self._count)
            names = [name for queue in queues for name in self._lists(queue)]
            return dict(zip(queues, map(int, count(names, [steps])), strict=True))

    def move_all(self, source: str, destination: str) -> int:
        """Move what waits in one queue behind what waits in another, oldest first; count it.

        Priorities are kept. A message that cannot be redirected safely is moved as it is.
        """
        if source == destination:
            return 0
        total = 0
        with self._open() as client:
            move = client.register_script(self._move)
            for pair in zip(self._lists(source), self._lists(destination), strict=True):
                # In pieces: while a script runs Redis serves nobody else.
                while moved := int(move(pair, [destination, MOVED_AT_ONCE])):
                    total += moved
        return total

    def close(self) -> None:
        """Close the connection; the next use opens another."""
        connection, self._connection = self._connection, None
        self._channel = self._client = None
        if connection is not None:
            connection.release()

    def _lists(self, queue: str) -> list[str]:
        """Names of the lists of a queue, most urgent first."""
        name = f"{self._channel.global_keyprefix}{queue}"
        sep = self._channel.sep
        return [f"{name}{sep}{step}" if step else name for step in self._channel.priority_steps]

    @contextmanager
    def _open(self) -> Iterator[Any]:
        try:
            if self._client is None:
                self._connection = self._connect()
                # Without pauses, which kombu makes by default: the caller tries again later.
                self._connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0)
                self._channel = self._connection.default_channel
                # The transport's own client adds the key prefix to some commands only.
                self._client = Redis(connection_pool=self._channel.pool)
            yield self._client
        except Exception as error:
            # Whatever the transport raises: the next use starts from a new connection.
            self._drop()
            raise BrokerError(
                f"The Redis broker cannot be used ({type(error).__name__}: {error})."
            ) from error

    def _drop(self) -> None:
        try:
            self.close()
        except Exception:
            self._connection = None  # It was broken already.
