"""A TCP proxy that can be slow, cut, or a black hole."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Self

CHUNK_BYTES: Final = 65_536
BLACK_HOLE: Final = float("inf")


class Proxy:
    """Passes on what clients and a server say to each other, until told to be in the way.

    It runs in a thread of its own. Each verb takes effect at once, also for connections that
    are there already.

    Parameters
    ----------
    host, port
        The server.
    path
        Its Unix socket, instead of host and port.

    Attributes
    ----------
    port
        Where clients connect to, on loopback.

    Examples
    --------
    >>> with Proxy("127.0.0.1", 6379) as proxy:
    ...     proxy.delay(0.5)
    ...     proxy.restore()

    """

    def __init__(self, host: str = "", port: int = 0, path: str = "") -> None:
        self.port = 0
        self._server_address = (host, port, path)
        self._delay_seconds = 0.0
        self._is_cut = False
        self._connections: set[asyncio.StreamWriter] = set()
        self._changed = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._is_listening = threading.Event()
        self._thread = threading.Thread(target=self._run, name="faults-proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._is_listening.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def delay(self, seconds: float) -> None:
        """Hold back whatever is said, in either direction, for so long."""
        self._do(lambda: self._set(seconds, False))

    def black_hole(self) -> None:
        """Accept connections and swallow what is said; nothing is ever answered.

        At ``restore`` the connections of the hole are closed: what it swallowed never comes out.
        """
        self._do(lambda: self._set(BLACK_HOLE, False))

    def cut(self) -> None:
        """Close all connections, and every new one at once."""
        self._do(lambda: self._set(0.0, True))

    def restore(self) -> None:
        """Pass on everything again."""
        self._do(lambda: self._set(0.0, False))

    def _do(self, change: Callable[[], None]) -> None:
        has_changed = threading.Event()

        def run() -> None:
            change()
            has_changed.set()

        self._loop.call_soon_threadsafe(run)
        has_changed.wait()

    def _set(self, delay_seconds: float, is_cut: bool) -> None:
        was_hole, self._delay_seconds = self._delay_seconds == BLACK_HOLE, delay_seconds
        self._is_cut = is_cut
        if is_cut or was_hole:
            for writer in self._connections:
                # At once, and not after what is still to be sent.
                writer.transport.abort()
        self._changed.set()
        self._changed = asyncio.Event()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(
            asyncio.start_server(self._serve, "127.0.0.1", 0, limit=CHUNK_BYTES)
        )
        self.port = server.sockets[0].getsockname()[1]
        self._is_listening.set()
        self._loop.run_forever()
        server.close()
        for writer in self._connections:
            writer.transport.abort()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client."""
        if self._is_cut:
            writer.transport.abort()
            return
        try:
            there, back = await self._connect()
        except OSError:
            writer.transport.abort()  # As the server itself would refuse it.
            return
        both = {writer, back}
        self._connections |= both
        try:
            # Cancelled at the end of the proxy, which is no error.
            with suppress(asyncio.CancelledError):
                await asyncio.gather(self._pump(reader, back), self._pump(there, writer))
        finally:
            self._connections -= both
            for one in both:
                one.transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port, path = self._server_address
        if path:
            return await asyncio.open_unix_connection(path)
        return await asyncio.open_connection(host, port)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass on in one direction, until either end closes."""
        with suppress(ConnectionError):
            while chunk := await reader.read(CHUNK_BYTES):
                await self._hold_back()
                writer.write(chunk)
                await writer.drain()
        writer.transport.close()

    async def _hold_back(self) -> None:
        """Wait as long as the delay that is set now says; a black hole is waited for."""
        while self._delay_seconds == BLACK_HOLE:
            await self._changed.wait()
        if self._delay_seconds:
            await asyncio.sleep(self._delay_seconds)
