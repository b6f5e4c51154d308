"""The proxy by which the fault suite cuts, slows and swallows connections."""

from __future__ import annotations

import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from redis import ConnectionError, Redis, TimeoutError
from redis.backoff import NoBackoff
from redis.retry import Retry

from benchmarks.faults.proxy import Proxy


@pytest.fixture
def proxy(redis_url: str) -> Iterator[Proxy]:
    with Proxy("127.0.0.1", urlsplit(redis_url).port or 0) as proxy:
        yield proxy


@pytest.fixture
def client(redis_url: str, proxy: Proxy) -> Iterator[Redis]:
    url = redis_url.replace(f":{urlsplit(redis_url).port}/", f":{proxy.port}/")
    with Redis.from_url(url, protocol=2, socket_timeout=0.5, retry=Retry(NoBackoff(), 0)) as client:
        yield client


def test_it_passes_on_whatever_is_said(client: Redis) -> None:
    client.set("large", "x" * 1_000_000)
    assert len(client.get("large") or b"") == 1_000_000


def test_a_cut_closes_what_is_open_and_what_is_opened(client: Redis, proxy: Proxy) -> None:
    client.ping()
    proxy.cut()
    for _ in range(3):
        with pytest.raises(ConnectionError):
            client.ping()
    proxy.restore()
    assert client.ping()


def test_a_black_hole_answers_nothing_and_swallows_what_is_said(
    client: Redis, proxy: Proxy, redis_url: str
) -> None:
    client.ping()
    proxy.black_hole()
    for _ in range(2):
        with pytest.raises(TimeoutError):
            client.set("swallowed", 1)
    proxy.restore()
    assert client.ping()
    assert client.get("swallowed") is None


def test_a_delay_holds_back_each_word(client: Redis, proxy: Proxy) -> None:
    client.ping()
    proxy.delay(0.1)
    began = time.monotonic()
    client.ping()
    assert 0.2 <= time.monotonic() - began < 0.5
    proxy.restore()
    began = time.monotonic()
    client.ping()
    assert time.monotonic() - began < 0.2
