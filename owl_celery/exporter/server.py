"""Serves what was written last over HTTP, so that a scrape costs next to nothing."""

from __future__ import annotations

import socket
import threading
import time
import zlib
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, ClassVar, Final, NamedTuple

from owl_celery.exporter.families import single
from owl_celery.exporter.text import CONTENT_TYPE, exposition

FIRST_SECONDS: Final = 5.0
CLIENT_SECONDS: Final = 10.0
GZIP_LEVEL: Final = 1
GZIP_BITS: Final = 31


class _Written(NamedTuple):
    text: bytes
    packed: bytes
    packer: zlib._Compress
    as_of: float


class Page:
    """The latest exposition, written by one thread and read by many.

    Parameters
    ----------
    clock
        Monotonic seconds.

    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._there = threading.Event()
        self._written: _Written | None = None

    def write(self, text: bytes, as_of: float) -> None:
        """Replace what is served, by what was known at a time of our clock."""
        packer = zlib.compressobj(GZIP_LEVEL, wbits=GZIP_BITS)
        packed = packer.compress(text) + packer.flush(zlib.Z_SYNC_FLUSH)
        self._written = _Written(text, packed, packer, as_of)
        self._there.set()

    def read(self, compressed: bool) -> bytes:
        """What is served, with its age; waits a little for the first, and is empty without it."""
        self._there.wait(FIRST_SECONDS)
        written = self._written
        if written is None:
            return b""
        age = exposition([single("owl_exporter_age_seconds", self._clock() - written.as_of)])
        if not compressed:
            return written.text + age
        # Goes on where the packed text ends, so that each answer packs one line only.
        packer = written.packer.copy()
        return written.packed + packer.compress(age) + packer.flush()


class Handler(BaseHTTPRequestHandler):
    """Answers ``GET /metrics``."""

    page: ClassVar[Page]
    timeout = CLIENT_SECONDS
    server_version = "owl"
    sys_version = ""

    def do_GET(self) -> None:
        """Give the metrics."""
        if self.path.partition("?")[0] not in ("/", "/metrics"):
            self._answer(HTTPStatus.NOT_FOUND, b"Metrics are at /metrics.\n")
            return
        compressed = "gzip" in self.headers.get("Accept-Encoding", "")
        body = self.page.read(compressed)
        if body:
            self._answer(HTTPStatus.OK, body, CONTENT_TYPE, compressed)
        else:
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, b"There are no metrics yet.\n")

    do_HEAD = do_GET

    def _answer(
        self,
        status: HTTPStatus,
        body: bytes,
        content_type: str = "text/plain; charset=utf-8",
        compressed: bool = False,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        if compressed:
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: somebody asks every few seconds."""


class MetricsServer(ThreadingHTTPServer):
    """Listens from the start; ``serve_forever`` answers.

    Parameters
    ----------
    host, port
        Where to listen, by IPv4 or IPv6; port 0 takes a free one.
    page
        What to serve.

    Raises
    ------
    OSError
        When nobody can listen there.

    """

    daemon_threads = True
    # A restart does not wait until the connections of the last run are forgotten.
    allow_reuse_address = True

    def __init__(self, host: str, port: int, page: Page) -> None:
        self.address_family = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0][0]
        handler = type("PageHandler", (Handler,), {"page": page})
        super().__init__((host, port), handler)

    def server_bind(self) -> None:
        """Bind without the name look-up of the base class, which can take seconds."""
        TCPServer.server_bind(self)
        host, port, *_ = self.socket.getsockname()
        self.server_name, self.server_port = host, port

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Pass over a client that has gone away."""
