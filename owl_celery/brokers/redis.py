"""Queues of Celery on Redis: lists, one for each priority step."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

from kombu.connection import Connection
from redis import Redis

from owl_celery.brokers.base import TIMEOUT_SECONDS, Contents, Owner, Permit, Place, Seen
from owl_celery.brokers.poison import fail_task
from owl_celery.errors import BrokerError
from owl_celery.redis_trouble import reason_of
from owl_celery.wire import TaskHeader

if TYPE_CHECKING:
    from celery import Celery

SCRIPTS: Final = resources.files("owl_celery.brokers") / "lua"
MOVED_AT_ONCE: Final = 200
LOOKED_AT_ONCE: Final = 50
GIVE_UP_SECONDS: Final = 2.0
"""For all tasks that are given up in one round: it may not outlast the controller's lease."""

MOVED_BYTES: Final = 512 * 1024
"""Read by one script at most, and a message more."""

PEEKED_BYTES: Final = 256 * 1024
LONGEST_MOVED_BYTES: Final = 64 * 1024
"""Larger messages stay where they are: Redis serves nobody else while it reads them."""


def lua(*names: str) -> str:
    """Text of scripts of ours, the first ones defining what the last one uses."""
    return "\n".join((SCRIPTS / f"{name}.lua").read_text("utf-8") for name in names)


def open_redis_broker(app: Celery) -> RedisBroker:
    """Look into the queues of an application whose broker is Redis; connects later."""
    # The transport waits for ever by default, and the controller must not.
    options = {"socket_timeout": TIMEOUT_SECONDS, "socket_connect_timeout": TIMEOUT_SECONDS}
    return RedisBroker(
        partial(app.connection_for_read, transport_options=options), partial(fail_task, app)
    )


class RedisBroker:
    """Looks into the lists that Celery's Redis transport keeps.

    Host, password, TLS, Sentinel, key prefix and priority steps are the transport's own: they
    come from the application's connection.

    Parameters
    ----------
    connect
        Makes an unconnected connection of the application.
    fail
        Stores as a task's result that its worker died so often; given its message and the number.

    """

    def __init__(self, connect: Callable[[], Connection], fail: Callable[[str, int], None]) -> None:
        self._connect = connect
        self._fail = fail
        self._connection: Any = None
        self._channel: Any = None
        self._client: Any = None
        self._late: tuple[bytes, threading.Thread, list[Exception | None]] | None = None
        self.has_more = self.has_unseen = False
        self._resume_at: dict[str, tuple[int, int]] = {}
        self.trouble = ""
        self.peek_disturbs = False
        self._count = lua("depths")
        self._contents = lua("contents")
        self._ends = lua("ends")
        self._take = lua("redirected", "permit", "take")
        self._move = lua("redirected", "move")
        self._restore = lua("permit", "restore")
        self._peek = lua("peek")
        self._pick = lua("redirected", "permit", "pick")

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

    def contents(self, queue: str, most: int) -> Contents | None:
        """Sum up the oldest ``most`` messages that wait in a queue, in one round trip."""
        with self._open() as client:
            script = client.register_script(self._contents)
            reply = script(self._lists(queue), [queue, most, PEEKED_BYTES])
            count, predicted, seconds = reply
            return Contents(int(count), int(predicted), float(seconds))

    def peek(self, queues: Sequence[str], each: int, wanted: int) -> Mapping[str, Sequence[Seen]]:
        """Show some of what waits, in the order in which it will leave, in one round trip."""
        if not queues:
            return {}
        with self._open() as client:
            steps = len(self._channel.priority_steps)
            names = [name for queue in queues for name in self._lists(queue)]
            script = client.register_script(self._ends)
            reply = script(names, [each, PEEKED_BYTES, LONGEST_MOVED_BYTES])
            return {
                queue: seen_in(reply[first : first + steps])
                for queue, first in zip(queues, range(0, len(reply), steps), strict=True)
            }

    def take(
        self, source: str, seen: Seen, decision_id: str, destination: str, permit: Permit
    ) -> bool:
        """Move one message, as seen just now, to a queue in which nothing waits."""
        with self._open() as client:
            lists = self._lists(destination)
            keys = [
                self._lists(source)[seen.step],
                lists[seen.step],
                permit.lease_key,
                permit.fence_key,
                *lists,
            ]
            arguments = [
                source,
                destination,
                decision_id,
                seen.position,
                permit.token,
                permit.fence,
            ]
            return bool(client.register_script(self._take)(keys, arguments))

    def release(self) -> None:
        """Do nothing: a peek leaves everything where it is."""

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
                while moved := int(move(pair, [destination, MOVED_AT_ONCE, MOVED_BYTES])):
                    total += moved
        return total

    def redirect(self, source: str, place: Place, limit: int, permit: Permit | None = None) -> int:
        """Move each waiting task of ours to where ``place`` says, oldest first; count them.

        Priorities are kept. What is taken by a worker meanwhile is left to it. Where it stops at
        the limit the next call goes on, so that many which stay hide none behind them.
        """
        right = permit or Permit("", "", "", 0)
        moved = seen = 0
        first, kept = self._resume_at.pop(source, (0, 0))
        self.has_unseen = False
        with self._open() as client:
            peek, pick = client.register_script(self._peek), client.register_script(self._pick)
            for step, waiting in list(enumerate(self._lists(source)))[first:]:
                is_end = False
                while not is_end:
                    if seen >= limit:
                        self._resume_at[source], self.has_unseen = (step, kept), True
                        return moved
                    is_end, *reply = peek([waiting], [kept, MOVED_AT_ONCE, MOVED_BYTES])
                    looked = len(reply) // 2
                    keys = [waiting, right.lease_key, right.fence_key]
                    # Twice, since a worker may have taken some meanwhile.
                    arguments: list[str | int] = [kept + looked, 2 * MOVED_BYTES]
                    arguments += [right.token, right.fence]
                    for task_id, text in zip(reply[::2], reply[1::2], strict=True):
                        header = TaskHeader.decode(json_in(text))
                        queue = place(header) if header else None
                        if queue is not None and queue != source:
                            keys.append(self._lists(queue)[step])
                            arguments += [task_id, queue]
                    picked = int(pick(keys, arguments)) if len(keys) > 3 else 0
                    if picked < 0:
                        return moved
                    moved += picked
                    seen += looked
                    kept += looked - picked
                kept = 0
        return moved

    def restore(
        self,
        owners: Mapping[str, Owner],
        permit: Permit | None = None,
        max_losses: int = 0,
        orphans: Mapping[str, float] | None = None,
    ) -> int:
        """Hand back to these queues what was delivered from them and never acknowledged.

        Looks through all that any worker of this broker holds, in pieces. Each message keeps its
        priority, is served next, and is marked as delivered before.
        """
        if not owners and not orphans:
            return 0
        right = permit or Permit("", "", "", 0)
        total, cursor = 0, "0"
        self.has_more, until = False, time.monotonic() + GIVE_UP_SECONDS
        with self._open() as client:
            channel, script = self._channel, client.register_script(self._restore)
            prefix, steps = channel.global_keyprefix, channel.priority_steps
            keys = [
                f"{prefix}{channel.unacked_key}",
                f"{prefix}{channel.unacked_index_key}",
                # None without a permit: a user of Redis may be kept from the empty key.
                *((right.lease_key, right.fence_key) if permit else ()),
            ]
            now = datetime.now(UTC).isoformat()
            arguments = [
                *(right.token, right.fence, now, max_losses, prefix, channel.sep, len(steps)),
                *steps,
                len(orphans or ()),
                *(part for orphan in (orphans or {}).items() for part in orphan),
                *(part for queue, owner in owners.items() for part in (queue, *owner)),
            ]
            while True:
                cursor, handed, deadly = script(keys, [cursor, LOOKED_AT_ONCE, *arguments])
                total += int(handed)
                for tag, message in zip(deadly[::2], deadly[1::2], strict=True):
                    self._give_up(client, keys, tag, message, max_losses, until)
                if int(cursor) == 0:
                    return total

    def _give_up(
        self,
        client: Any,
        keys: Sequence[str],
        tag: bytes,
        message: bytes,
        losses: int,
        until: float,
    ) -> None:
        """Let a task fail that has killed its workers; what is done twice ends the same way."""
        has_failed = self._has_failed(tag, message.decode("utf-8", "replace"), losses, until)
        if has_failed is None:
            self.has_more = True
            return
        if not has_failed:
            return
        unacked, index = keys[:2]
        with client.pipeline() as pipe:
            pipe.zrem(index, tag)
            pipe.hdel(unacked, tag)
            pipe.execute()

    def _has_failed(self, tag: bytes, message: str, losses: int, until: float) -> bool | None:
        """Whether the result was stored; None when that is not known before ``until``.

        A backend that hangs gets no other task until it is done with the one it has.
        """
        if self._late is not None:
            late, thread, errors = self._late
            if thread.is_alive():
                return None
            if late == tag:
                self._late = None
                return errors == [None]
        left = until - time.monotonic()
        if left <= 0:
            return None
        errors = []

        def fail() -> None:
            try:
                self._fail(message, losses)
            except Exception as error:
                self.trouble = (
                    f"The result backend takes no results ({reason_of(error)}): a task that kills "
                    "its workers comes back after the visibility timeout, to be given up then."
                )
                errors.append(error)
            else:
                self.trouble = ""
                errors.append(None)

        thread = threading.Thread(target=fail, name="owl-give-up", daemon=True)
        thread.start()
        thread.join(left)
        if thread.is_alive():
            self.trouble = "The result backend hangs: tasks that kill their workers wait for it."
            self._late = tag, thread, errors
            return None
        return errors == [None]

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
            raise BrokerError(f"The Redis broker cannot be used ({reason_of(error)}).") from error

    def _drop(self) -> None:
        try:
            self.close()
        except Exception:
            self._connection = None  # It was broken already.


def json_in(text: bytes) -> object:
    """What a script found in a message; None where somebody has put in what cannot be read."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def seen_in(lists: Sequence[tuple[int, Sequence[bytes], Sequence[bytes]]]) -> list[Seen]:
    """Put together what a peek shows of the lists of one queue.

    Examples
    --------
    >>> [(m.position, m.ahead, m.behind) for m in seen_in([(1, [b"a"], []), (9, [b"b"], [b"c"])])]
    [(0, 0, 9), (0, 1, 8), (8, 9, 0)]

    """
    total = sum(length for length, _, _ in lists)
    seen, before = [], 0
    for step, (length, oldest, newest) in enumerate(lists):
        positions = [*range(len(oldest)), *range(length - len(newest), length)]
        for position, text in zip(positions, [*oldest, *newest], strict=True):
            ahead = before + position
            behind = total - ahead - 1
            seen.append(Seen(step, position, ahead, behind, text.decode("utf-8", "replace")))
        before += length
    return seen
