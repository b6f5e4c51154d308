"""The HTTP server of ``owl serve``: in a thread, beside the controller."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import threading
from typing import Final

import uvicorn
from fastapi import FastAPI

from owl_celery.api.app import create_app
from owl_celery.api.gate import is_loopback
from owl_celery.api.parts import ApiParts
from owl_celery.errors import SettingsError
from owl_celery.overview import OverviewReader
from owl_celery.redis_state import RedisState
from owl_celery.settings import Settings

log = logging.getLogger(__name__)

BACKLOG: Final = 128
GRACE_SECONDS: Final = 2
JOIN_SECONDS: Final = 5.0


class ApiServer:
    """Answers HTTP from a thread of its own until it is stopped.

    Parameters
    ----------
    app
        Made by ``create_app``.
    host, port
        Where; port 0 for any that is free.

    Raises
    ------
    SettingsError
        When that address cannot be taken.

    """

    def __init__(self, app: FastAPI, host: str, port: int) -> None:
        # Taken here, so that a busy port is said by the caller and not by a thread.
        self._socket = listen(host, port)
        self._parts: ApiParts = app.state.parts
        self.host, self.port = host, int(self._socket.getsockname()[1])
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                loop="asyncio",
                lifespan="off",
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=GRACE_SECONDS,
            )
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="owl-api", daemon=True)

    @property
    def url(self) -> str:
        """Where a browser on this machine finds it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host and '[' not in host else host}:{self.port}"

    def start(self) -> None:
        """Begin to answer; connections made from now on are served."""
        self._thread.start()

    def stop(self) -> None:
        """End live events, finish what is being answered for two seconds at most, and close."""
        self._server.should_exit = True
        loop = self._loop
        if loop is not None and not loop.is_closed():
            try:
                loop.call_soon_threadsafe(self._parts.feed.close)
            except RuntimeError:
                log.debug("owl: the API has stopped already")
        if self._thread.is_alive():
            self._thread.join(JOIN_SECONDS)
        self._socket.close()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception:
            log.exception("owl: the API has stopped")

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self._server.serve(sockets=[self._socket])


def open_server(settings: Settings, state: RedisState, reader: OverviewReader) -> ApiServer:
    """Take the address that the settings name; nothing is answered before ``start``.

    Raises
    ------
    SettingsError
        When it cannot be taken, or may not be without a token.

    """
    if settings.api_token is None and not is_loopback(settings.api_host):
        raise SettingsError(
            f"Setting OWL_API_HOST is {settings.api_host}, where other machines can connect: set "
            "OWL_API_TOKEN to 16 characters or more that nobody can guess, or OWL_API_HOST to "
            "127.0.0.1."
        )
    return ApiServer(create_app(settings, state, reader), settings.api_host, settings.api_port)


def listen(host: str, port: int) -> socket.socket:
    """Take an address to listen at.

    Raises
    ------
    SettingsError
        When it is taken, forbidden, or not of this machine.

    """
    name = host.strip("[]")
    try:
        family, _, _, _, address = socket.getaddrinfo(
            name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # With the protocol named, without which asyncio leaves Nagle's algorithm on: 40 ms each.
        found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    except OSError as error:
        raise SettingsError(f"Setting OWL_API_HOST: {host} cannot be found ({error}).") from error
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(BACKLOG)
    except OSError as error:
        found.close()
        if error.errno == errno.EADDRINUSE:
            raise SettingsError(
                f"Setting OWL_API_PORT: port {port} of {host} is taken by another program; stop "
                "it, or name another port."
            ) from error
        raise SettingsError(
            f"Setting OWL_API_HOST or OWL_API_PORT: cannot listen at {host}:{port} "
            f"({error.strerror})."
        ) from error
    return found
