"""One active controller: a lease in Redis with a fencing number that grows with each holder."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Final, NamedTuple

from owl_celery.brokers.base import Permit
from owl_celery.redis_state import RedisState

SCRIPTS: Final = resources.files("owl_celery.controller") / "lua"


def lua(name: str) -> str:
    """Text of one of the controller's scripts."""
    return (SCRIPTS / f"{name}.lua").read_text(encoding="utf-8")


class Write(NamedTuple):
    """A value to write under the lease; it never expires when ``ttl_seconds`` is 0."""

    key: str
    value: str
    ttl_seconds: float = 0.0


class Lease:
    """The right to publish, held by one controller at a time.

    It lasts ``seconds`` unless renewed. Every write checks the lease in the same Redis script, so
    a controller that was asleep longer than that writes nothing when it wakes.

    Parameters
    ----------
    state
        Where the lease lives.
    seconds
        How long it lasts unrenewed.
    clock
        Monotonic seconds.

    Attributes
    ----------
    fence
        Fencing number of our latest lease; 0 before the first.

    """

    def __init__(
        self, state: RedisState, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.seconds = seconds
        self.fence = 0
        self._state = state
        self._clock = clock
        self._token = ""
        self._expires_at = 0.0
        self._acquire = lua("acquire")
        self._publish = lua("publish")
        self._release = lua("release")

    @property
    def is_held(self) -> bool:
        """Whether the lease is ours for all we know; never true once it may have expired."""
        return bool(self._token) and self._clock() < self._expires_at

    def permit(self) -> Permit:
        """What entitles us to move messages as long as the lease is ours."""
        keys = self._state.keys
        return Permit(keys.lease, self._token, keys.moves, self.fence)

    def acquire(self) -> bool:
        """Take the lease when nobody holds it; say whether it is ours.

        Raises
        ------
        redis.RedisError
            When Redis does not answer.

        """
        asked_at = self._clock()
        # A fencing number alone could come back after Redis has lost its data.
        part = secrets.token_hex(8)
        keys = self._state.keys
        fence = self._call(self._acquire, [keys.lease, keys.fencing], [part, self._milliseconds()])
        if not fence:
            return False
        self.fence = fence
        self._token = f"{fence}:{part}"
        self._expires_at = asked_at + self.seconds
        return True

    def publish(self, writes: Sequence[Write] = ()) -> bool:
        """Renew the lease and write, all or nothing; say whether the lease was still ours.

        Raises
        ------
        redis.RedisError
            When Redis does not answer; the writes may or may not have happened.

        """
        if not self._token:
            return False
        asked_at = self._clock()
        arguments: list[str | int] = [self._token, self._milliseconds()]
        for write in writes:
            arguments += [write.value, int(write.ttl_seconds * 1000)]
        keys = [self._state.keys.lease, *(write.key for write in writes)]
        if not self._call(self._publish, keys, arguments):
            self._token = ""
            return False
        self._expires_at = asked_at + self.seconds
        return True

    def release(self) -> None:
        """Give the lease back at once, if it is ours.

        Raises
        ------
        redis.RedisError
            When Redis does not answer; then the lease runs out by itself.

        """
        token, self._token = self._token, ""
        if token:
            self._call(self._release, [self._state.keys.lease], [token])

    def _milliseconds(self) -> int:
        return max(int(self.seconds * 1000), 1)

    def _call(self, script: str, keys: Sequence[str], arguments: Sequence[str | int]) -> int:
        # The client is asked for anew each time: after a fork it is another one.
        return int(self._state.client.register_script(script)(keys, arguments))
