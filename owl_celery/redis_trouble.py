"""What is wrong with a Redis, in a sentence that shows neither its address nor a secret."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from typing import Final

from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterCrossSlotError,
    ClusterDownError,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    TimeoutError,
)
from redis.sentinel import MasterNotFoundError

from owl_celery.errors import SettingsError


class RedisClusterError(RedisError, SettingsError):
    """Redis Cluster is not supported: set REDIS_URL to a Redis without cluster mode."""

    def __init__(self) -> None:
        SettingsError.__init__(self)


ADVICE: Final = "Start it, or set REDIS_URL to where it runs."

OF_CLUSTERS: Final = (AskError, ClusterCrossSlotError, ClusterDownError, MovedError)

REASONS: Final[tuple[tuple[type[Exception], str], ...]] = (
    (RedisClusterError, "Redis Cluster is not supported"),
    (MasterNotFoundError, "no Sentinel that answers knows the master"),
    (AuthenticationError, "it refuses the user or the password"),
    (NoPermissionError, "its user may not do this; see docs/connections.md"),
    (BusyLoadingError, "it is loading its data"),
    (ReadOnlyError, "it is a replica, which takes no writes"),
    (OutOfMemoryError, "its memory is full"),
    (TimeoutError, "no answer in time"),
)
"""In words, where the message could hold an address or the values that were sent."""


def trouble_of(error: Exception, advice: str = "") -> str:
    """Say why Redis cannot be used, and what to do when it does not answer.

    Examples
    --------
    >>> trouble_of(RedisError("Error 111 connecting to redis.internal:6379."))
    'Redis does not answer (RedisError).'
    >>> trouble_of(MovedError("12539 redis.internal:6379"))
    'Redis Cluster is not supported: set REDIS_URL to a Redis without cluster mode.'

    """
    if isinstance(error, (*OF_CLUSTERS, RedisClusterError)):
        return str(RedisClusterError())
    if isinstance(error, AuthenticationError):
        return "Redis refuses the user or the password: correct REDIS_URL, or the broker's address."
    return " ".join(filter(None, (f"Redis does not answer ({reason_of(error)}).", advice)))


def reason_of(error: BaseException) -> str:
    """The same in a few words, for an error of any connection."""
    for kind, reason in REASONS:
        if isinstance(error, kind):
            return reason
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"TLS: {cause.verify_message}"
        if isinstance(cause, ssl.SSLError):
            return f"TLS: {cause.reason}"
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
    return type(error).__name__


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
