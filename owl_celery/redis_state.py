"""Connections to the Redis that holds load and learning state."""

from __future__ import annotations

import os
from typing import Final

from redis import Redis
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.retry import Retry

from owl_celery.errors import SettingsError
from owl_celery.settings import Settings
from owl_celery.wire import Keys

TIMEOUT_SECONDS: Final = 1.0
REDIS_SCHEMES: Final = ("redis://", "rediss://", "unix://")


class RedisState:
    """One client a process, made at first use, so that a fork never shares a socket.

    Parameters
    ----------
    url
        Address of the Redis server, ``redis://``, ``rediss://`` or ``unix://``.
    keys
        Names of the keys of this application.

    """

    def __init__(self, url: str, keys: Keys) -> None:
        if not url.startswith(REDIS_SCHEMES):
            raise SettingsError(
                "Setting REDIS_URL (or OWL_REDIS_URL) must start with redis://, rediss:// or "
                "unix://; it is needed when the broker is not Redis."
            )
        try:
            parse_url(url)  # type: ignore[no-untyped-call]
        except ValueError:
            # Its message may hold a part of the password.
            raise SettingsError(
                "Setting REDIS_URL (or OWL_REDIS_URL, or the broker's address) cannot be read; it "
                "looks like redis://user:password@host:port/0, with special characters of the "
                "password as %xx."
            ) from None
        self.url = url
        self.keys = keys
        # One value, so that no lock is needed, which a fork could leave locked for ever.
        self._owned: tuple[int, Redis] | None = None

    @property
    def client(self) -> Redis:
        """The client of this process: text replies, one-second timeouts, no retries, RESP2."""
        owned = self._owned
        if owned is None or owned[0] != os.getpid():
            # Two threads may come here at once; the client that is lost has not connected yet.
            owned = os.getpid(), self._make_client()
            self._owned = owned
        return owned[1]

    def forget(self) -> None:
        """Drop the client of this process; the next use connects anew."""
        self._owned = None

    def _make_client(self) -> Redis:
        return Redis.from_url(
            self.url,
            decode_responses=True,
            protocol=2,
            socket_timeout=TIMEOUT_SECONDS,
            socket_connect_timeout=TIMEOUT_SECONDS,
            retry=Retry(NoBackoff(), 0),
        )


def open_state(settings: Settings, broker_url: str, app_name: str) -> RedisState:
    """Find the state Redis: ``REDIS_URL`` when set, else the broker.

    Raises
    ------
    SettingsError
        When neither is a Redis address.

    """
    url = settings.redis_url.get_secret_value() if settings.redis_url else broker_url
    return RedisState(url, Keys(settings.namespace or app_name))
