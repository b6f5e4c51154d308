"""Queues of Celery on Redis: lists, one for each priority step."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from typing import Any, Final

from kombu.connection import Connection
from redis import Redis

from owl_celery.brokers.base import Place
from owl_celery.errors import BrokerError
from owl_celery.wire import TaskHeader

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
        self._peek = (scripts / "peek.lua").read_text("utf-8")
        redirected = (scripts / "redirected.lua").read_text("utf-8")
        self._move = redirected + (scripts / "move.lua").read_text("utf-8")
        self._pick = redirected + (scripts / "pick.lua").read_text("utf-8")

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

    def redirect(self, source: str, place: Place, limit: int) -> int:
        """Move each waiting task of ours to where ``place`` says, oldest first; count them.

        Priorities are kept. What is taken by a worker meanwhile is left to it.
        """
        moved = seen = 0
        with self._open() as client:
            peek, pick = client.register_script(self._peek), client.register_script(self._pick)
            for step, waiting in enumerate(self._lists(source)):
                kept = 0
                while seen < limit:
                    reply = peek([waiting], [kept, MOVED_AT_ONCE])
                    keys = [waiting]
                    arguments: list[str | int] = [kept + MOVED_AT_ONCE]
                    for task_id, text in zip(reply[::2], reply[1::2], strict=True):
                        header = TaskHeader.decode(json.loads(text)) if text else None
                        queue = place(header) if header else None
                        if queue is not None and queue != source:
                            keys.append(self._lists(queue)[step])
                            arguments += [task_id, queue]
                    picked = int(pick(keys, arguments)) if len(keys) > 1 else 0
                    moved += picked
                    seen += len(reply) // 2
                    kept += len(reply) // 2 - picked
                    if len(reply) // 2 < MOVED_AT_ONCE:
                        break
        return moved

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
