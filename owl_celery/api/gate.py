"""Who is let in: checks of every request before anything else looks at it."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from ipaddress import ip_address
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from owl_celery.api.problems import Problem, answer

OPEN_PATHS: Final = frozenset({"/healthz", "/readyz"})
"""What health checks read: neither token nor rate."""

LOCAL_NAMES: Final = frozenset({"localhost", "127.0.0.1", "::1"})
MAX_CLIENTS: Final = 1_024

HEADERS: Final = (
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cross-origin-opener-policy", "same-origin"),
    (
        "content-security-policy",
        "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; "
        "form-action 'self'; frame-ancestors 'none'",
    ),
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client may ask for.

    Parameters
    ----------
    url_bytes, body_bytes
        Longest path with query, and longest body.
    requests_per_second, burst
        Rate of one address in the long run, and how many at once.
    live_clients
        Readers of live events at a time, from all addresses.

    """

    url_bytes: int = 8_192
    body_bytes: int = 16_384
    requests_per_second: float = 50.0
    burst: int = 200
    live_clients: int = 50


Check = Callable[[Scope, Headers], Problem | None]


class Gate:
    """Asks every check in order; the first problem is the answer.

    Parameters
    ----------
    app
        What is behind.
    checks
        Each gives a problem, or None to let the request pass.
    body_bytes
        Longest body.

    """

    def __init__(self, app: ASGIApp, checks: Sequence[Check], body_bytes: int) -> None:
        self.app = app
        self._checks = checks
        self._body_bytes = body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS:
                    headers.setdefault(name, value)
                if scope["path"].startswith("/api/"):
                    headers.setdefault("cache-control", "no-store")
            await send(message)

        found = Headers(scope=scope)
        for check in self._checks:
            problem = check(scope, found)
            if problem is not None:
                await answer(problem, scope["path"])(scope, receive, send_with_headers)
                return
        await self.app(scope, self._bounded(receive), send_with_headers)

    def _bounded(self, receive: Receive) -> Receive:
        """Refuse a body that turns out longer than it was said to be."""
        left = self._body_bytes

        async def receive_bounded() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise HTTPException(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE, _too_long(self._body_bytes)
                )
            return message

        return receive_bounded


def check_host(scope: Scope, headers: Headers) -> Problem | None:
    """Refuse names that are not of this machine.

    A page of somebody else's, whose name is made to point here, could otherwise read everything
    through the browser of whoever visits it (DNS rebinding).
    """
    host = headers.get("host", "")
    name = host.rpartition(":")[0] if _has_port(host) else host
    if name.strip("[]").lower() in LOCAL_NAMES:
        return None
    return Problem(
        HTTPStatus.MISDIRECTED_REQUEST,
        "Without OWL_API_TOKEN this server answers to localhost and 127.0.0.1 only.",
    )


def _has_port(host: str) -> bool:
    """Whether a host header names a port; an IPv6 address has colons of its own."""
    return host.rpartition(":")[2].isdigit() and (host.count(":") == 1 or "]:" in host)


def check_size(limits: Limits) -> Check:
    """Refuse what is too long to be meant for us."""

    def check(scope: Scope, headers: Headers) -> Problem | None:
        length = len(scope.get("raw_path") or b"") + len(scope["query_string"])
        if length > limits.url_bytes:
            return Problem(
                HTTPStatus.REQUEST_URI_TOO_LONG,
                f"The path with its query is longer than {limits.url_bytes} bytes.",
            )
        declared = headers.get("content-length", "0")
        if not declared.isdigit() or int(declared[:20]) > limits.body_bytes:
            return Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, _too_long(limits.body_bytes))
        return None

    return check


def _too_long(body_bytes: int) -> str:
    return f"The body is longer than {body_bytes} bytes."


class CheckRate:
    """Refuse an address that asks too often: a bucket of tokens for each of the latest 1,024.

    Parameters
    ----------
    limits
        Rate and burst.
    clock
        Monotonic seconds.

    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __call__(self, scope: Scope, headers: Headers) -> Problem | None:
        """Take a token of the client's."""
        if scope["path"] in OPEN_PATHS:
            return None
        client = scope.get("client")
        address = str(client[0]) if client else ""
        now, limits = self._clock(), self._limits
        tokens, at = self._buckets.pop(address, (float(limits.burst), now))
        tokens = min(tokens + (now - at) * limits.requests_per_second, float(limits.burst))
        is_allowed = tokens >= 1.0
        self._buckets[address] = tokens - 1.0 if is_allowed else tokens, now
        if len(self._buckets) > MAX_CLIENTS:
            self._buckets.popitem(last=False)
        if is_allowed:
            return None
        return Problem(
            HTTPStatus.TOO_MANY_REQUESTS,
            f"More than {limits.requests_per_second:g} requests a second came from this address.",
            {"Retry-After": "1"},
        )


class CheckToken:
    """Refuse requests without the bearer token; without one set, refuse writes.

    Parameters
    ----------
    token
        The secret; empty for none.
    open_paths
        What is read without it: the console's page, which asks for the token.

    """

    def __init__(self, token: str, open_paths: frozenset[str]) -> None:
        self._token = token.encode()
        self._open_paths = open_paths

    def __call__(self, scope: Scope, headers: Headers) -> Problem | None:
        """Compare in constant time."""
        is_read = scope["method"] in ("GET", "HEAD")
        if is_read and scope["path"] in self._open_paths:
            return None
        if not self._token:
            if is_read or scope["method"] == "OPTIONS":
                return None
            return Problem(
                HTTPStatus.FORBIDDEN,
                "Changes need a bearer token, and OWL_API_TOKEN is not set where the server runs.",
            )
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and secrets.compare_digest(
            given.strip().encode("utf-8", "surrogateescape"), self._token
        ):
            return None
        return Problem(
            HTTPStatus.UNAUTHORIZED,
            "Send the header Authorization: Bearer with the value of OWL_API_TOKEN.",
            {"WWW-Authenticate": "Bearer"},
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to an address.

    Examples
    --------
    >>> [is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "a.example")]
    [True, True, True, False, False]

    """
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
