"""Where the Redis of load and learning is, and how to connect there, as Celery or as a URL has it.

``REDIS_URL`` is read as redis-py reads it, the broker's address as kombu does, so that what lets
Celery in lets us in too: user, password, TLS, database, Unix socket, Sentinel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self
from urllib.parse import urlsplit

from kombu.connection import Connection
from kombu.utils.imports import symbol_by_name
from redis import ConnectionPool, Redis, SSLConnection
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry
from redis.sentinel import Sentinel

from owl_celery.errors import SettingsError
from owl_celery.redis_trouble import RedisClusterError

TIMEOUT_SECONDS: Final = 1.0
SENTINEL: Final = "sentinel://"
SENTINEL_PORT: Final = 26379
SOCKETS: Final = ("unix://", "socket://", "redis+socket://")
SCHEMES: Final = ("redis://", "rediss://", SENTINEL, *SOCKETS)


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """An address with all that it takes to be let in.

    Parameters
    ----------
    options
        Of a connection of redis-py to the server that holds the data.
    sentinels
        Host and port of each Sentinel; empty when the server is named itself.
    master_name
        Which of the masters that the Sentinels watch.
    sentinel_options
        As ``options``, for the Sentinels.

    """

    options: Mapping[str, Any] = field(repr=False)
    sentinels: tuple[tuple[str, int], ...] = ()
    master_name: str = ""
    sentinel_options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of_url(cls, url: str) -> Self:
        """Read ``REDIS_URL``.

        Several Sentinels are separated by commas, or as Celery has them. Options of the query
        that begin with ``sentinel_`` are for them, the rest for the server.

        Raises
        ------
        SettingsError
            When it cannot be read; what it says is kept out of the message.

        Examples
        --------
        >>> address = RedisAddress.of_url("sentinel://a,b:26380/3?master_name=mymaster")
        >>> address.sentinels, address.options["db"]
        ((('a', 26379), ('b', 26380)), 3)

        """
        if not url.startswith(SCHEMES):
            raise SettingsError(
                "Setting REDIS_URL (or OWL_REDIS_URL) must start with redis://, rediss://, unix:// "
                "or sentinel://."
            )
        try:
            address = cls._of_sentinels(url) if url.startswith(SENTINEL) else cls(_parse(url))
            address._check()
        except (ValueError, TypeError, ImportError, AttributeError, RedisError):
            # The message may hold a part of the password.
            raise SettingsError(
                "Setting REDIS_URL (or OWL_REDIS_URL, or the broker's address) cannot be read; it "
                "looks like redis://user:password@host:port/0, with special characters of the "
                "password as %xx; see docs/connections.md."
            ) from None
        return address

    @classmethod
    def of_broker(cls, url: str, conf: Mapping[str, Any]) -> Self:
        """Read the address of a Redis that is Celery's broker.

        Parameters
        ----------
        url
            The broker's, with all that Celery may fail over to; the first one is taken, and all
            of them where they are Sentinels.
        conf
            Celery's configuration.

        Raises
        ------
        SettingsError
            As ``of_url``.

        """
        try:
            address = cls._of_connection(
                Connection(  # type: ignore[no-untyped-call]
                    url,
                    userid=conf.get("broker_user"),
                    password=conf.get("broker_password"),
                    virtual_host=conf.get("broker_vhost"),
                    port=conf.get("broker_port"),
                    ssl=conf.get("broker_use_ssl") or False,
                    transport_options=conf.get("broker_transport_options") or {},
                )
            )
            address._check()
        except (ValueError, TypeError, KeyError, ImportError, AttributeError, RedisError):
            raise SettingsError(
                "The broker's address, broker_use_ssl or broker_transport_options cannot be read; "
                "see docs/connections.md."
            ) from None
        return address

    def connect(self) -> Redis:
        """Make a client: text replies, one-second timeouts, no retries, RESP2; connects later."""
        usual = {
            "socket_timeout": TIMEOUT_SECONDS,
            "socket_connect_timeout": TIMEOUT_SECONDS,
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
        }
        options = {
            **usual,
            "decode_responses": True,
            "redis_connect_func": refuse_cluster,
            **self.options,
        }
        if not self.sentinels:
            is_secure = options.pop("ssl", False)
            options |= {"connection_class": SSLConnection} if is_secure else {}
            # Not by ``from_pool``: a client that is dropped leaves another thread its connection.
            return Redis(connection_pool=ConnectionPool(**options))
        manager = Sentinel(  # type: ignore[no-untyped-call]
            self.sentinels, sentinel_kwargs={**usual, **self.sentinel_options}, **options
        )
        client: Redis = manager.master_for(self.master_name)  # type: ignore[no-untyped-call]
        return client

    def _check(self) -> None:
        """Raise for options that no connection takes; connects to nothing."""
        if self.sentinels and not self.master_name:
            raise SettingsError(
                "Sentinels are named, but not the master that they watch: add "
                "?master_name=mymaster to REDIS_URL, or master_name to broker_transport_options."
            )
        client = self.connect()
        client.connection_pool.make_connection()
        client.close()

    @classmethod
    def _of_sentinels(cls, url: str) -> Self:
        sentinels: list[tuple[str, int]] = []
        found: dict[str, Any] = {}
        for part in url.split(";"):
            user, at, hosts = urlsplit(part).netloc.rpartition("@")
            for host in hosts.split(","):
                named = urlsplit(f"//{host}")
                sentinels.append((named.hostname or "localhost", named.port or SENTINEL_PORT))
            rest = part.removeprefix(f"{SENTINEL}{user}{at}{hosts}")
            found |= _parse(f"redis://{user}{at}any{rest}")
        del found["host"]
        master_name = found.pop("master_name", "")
        of_sentinels = {
            name.removeprefix("sentinel_"): found.pop(name)
            for name in list(found)
            if name.startswith("sentinel_")
        }
        return cls(found, tuple(sentinels), master_name, of_sentinels)

    @classmethod
    def _of_connection(cls, broker: Connection) -> Self:
        wanted: Mapping[str, Any] = broker.transport_options or {}
        host = broker.hostname or "127.0.0.1"
        if "://" in host:
            return cls(_parse(host))
        options: dict[str, Any] = {
            "db": int(str(broker.virtual_host).strip("/") or 0),
            **_credentials(broker.userid, broker.password, broker.credential_provider),
        }
        # Anything else that is true, kombu passes over.
        if isinstance(broker.ssl, Mapping):
            options |= {**broker.ssl, "ssl": True}
        if broker.transport_cls != "sentinel":
            return cls({"host": host, "port": broker.port or 6379, **options})
        named = [urlsplit(url) for url in broker.alt if url.startswith(SENTINEL)]
        sentinels = [(url.hostname, url.port or 6379) for url in named]
        return cls(
            options,
            tuple(sentinels) or ((host, broker.port or 6379),),
            wanted.get("master_name", ""),
            wanted.get("sentinel_kwargs") or {},
        )


def is_redis(url: str) -> bool:
    """Whether an address, of a broker or not, is one of a Redis.

    Examples
    --------
    >>> is_redis("rediss://host"), is_redis("amqp://host")
    (True, False)

    """
    return url.startswith(SCHEMES)


def refuse_cluster(connection: Any) -> None:
    """Greet the server at the other end of a new connection.

    Raises
    ------
    RedisClusterError
        When it is a node of a cluster, which has no place for keys that are used together.

    """
    try:
        connection.on_connect()
    except ResponseError as error:
        if "cluster mode" in str(error):
            raise RedisClusterError from error  # It has no other databases.
        raise
    connection.send_command("INFO", "cluster")
    try:
        told = str(connection.read_response())
    except ResponseError:
        return  # Its user may not ask.
    if "cluster_enabled:1" in told:
        raise RedisClusterError


def _parse(url: str) -> dict[str, Any]:
    """Read the address of a single server; may raise many an error."""
    if url.startswith(SOCKETS):
        url = f"unix://{url.partition('://')[2]}"
    options: dict[str, Any] = parse_url(url)  # type: ignore[no-untyped-call]
    if options.get("connection_class") is SSLConnection:
        del options["connection_class"]
        options["ssl"] = "true"
    if "virtual_host" in options:  # As Celery calls it for a socket.
        options["db"] = int(options.pop("virtual_host").strip("/") or 0)
    for name in ("ssl", "sentinel_ssl"):
        if name in options:
            options[name] = options[name].lower() in ("true", "1", "yes")
    for name in ("ssl_cert_reqs", "sentinel_ssl_cert_reqs"):
        if name in options:
            options[name] = options[name].removeprefix("CERT_").lower()
    provider = options.pop("credential_provider", None)
    if provider is not None:
        options |= _credentials(None, None, provider)
    return options


def _credentials(user: str | None, password: str | None, provider: Any) -> dict[str, Any]:
    if provider is None:
        return {"username": user, "password": password}
    if isinstance(provider, str):
        provider = symbol_by_name(provider)()  # type: ignore[no-untyped-call]
    return {"credential_provider": provider}
