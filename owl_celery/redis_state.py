"""Connections to the Redis that holds load and learning state."""

from __future__ import annotations

import os
import threading
from typing import Final

from redis import Redis
from redis.backoff import NoBackoff
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
        self.url = url
        self.keys = keys
        self._pid = 0
        self._client: Redis | None = None
        self._lock = threading.Lock()

    @property
    def client(self) -> Redis:
        """The client of this process: text replies, one-second timeouts, no retries, RESP2."""
        if self._client is None or self._pid != os.getpid():
            with self._lock:
                if self._client is None or self._pid != os.getpid():
                    self._client = Redis.from_url(
                        self.url,
                        decode_responses=True,
                        protocol=2,
                        socket_timeout=TIMEOUT_SECONDS,
                        socket_connect_timeout=TIMEOUT_SECONDS,
                        retry=Retry(NoBackoff(), 0),
                    )
                    self._pid = os.getpid()
        return self._client

    def forget(self) -> None:
        """Drop the client of this process; the next use connects anew."""
        self._client = None


def open_state(settings: Settings, broker_url: str, app_name: str) -> RedisState:
    """Find the state Redis: ``REDIS_URL`` when set, else the broker.

    Raises
    ------
    SettingsError
        When neither is a Redis address.

    """
    url = settings.redis_url.get_secret_value() if settings.redis_url else broker_url
    return RedisState(url, Keys(settings.namespace or app_name))
