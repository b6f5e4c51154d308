"""Connections to the Redis that holds load and learning state."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

from redis import Redis

from owl_celery.errors import SettingsError
from owl_celery.keys import Keys
from owl_celery.redis_address import RedisAddress, is_redis
from owl_celery.settings import Settings

NOTHING: Final[Mapping[str, Any]] = {}


class RedisState:
    """One client a process, made at first use, so that a fork never shares a socket.

    Parameters
    ----------
    address
        Where the Redis server is.
    keys
        Names of the keys of this application.

    """

    def __init__(self, address: RedisAddress | str, keys: Keys) -> None:
        self.address = RedisAddress.of_url(address) if isinstance(address, str) else address
        self.keys = keys
        # One value, so that no lock is needed, which a fork could leave locked for ever.
        self._owned: tuple[int, Redis] | None = None

    @property
    def client(self) -> Redis:
        """The client of this process; see ``RedisAddress.connect``."""
        owned = self._owned
        if owned is None or owned[0] != os.getpid():
            # Two threads may come here at once; the client that is lost has not connected yet.
            owned = os.getpid(), self.address.connect()
            self._owned = owned
        return owned[1]

    def forget(self) -> None:
        """Drop the client of this process; the next use connects anew."""
        self._owned = None


def open_state(
    settings: Settings, broker_url: str, app_name: str, conf: Mapping[str, Any] = NOTHING
) -> RedisState:
    """Find the state Redis: ``REDIS_URL`` when set, else the broker.

    Parameters
    ----------
    settings
        Of the application.
    broker_url
        Its broker's address, with all that Celery may fail over to.
    app_name
        The namespace, unless the settings say another.
    conf
        Celery's configuration, for how to connect to the broker.

    Raises
    ------
    SettingsError
        When neither is a Redis address, or it cannot be read.

    """
    if settings.redis_url is not None:
        address = RedisAddress.of_url(settings.redis_url.get_secret_value())
    elif is_redis(broker_url):
        address = RedisAddress.of_broker(broker_url, conf)
    else:
        raise SettingsError(
            "The broker is not Redis: set REDIS_URL (or OWL_REDIS_URL) to a Redis for load and "
            "learning, such as redis://host:6379/0."
        )
    # Wherever they are: what moves messages looks for the keys beside the queues.
    prefix = (conf.get("broker_transport_options") or {}).get("global_keyprefix", "")
    return RedisState(address, Keys(settings.namespace or app_name, prefix))
