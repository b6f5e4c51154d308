from __future__ import annotations

import gc
import multiprocessing
import ssl
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import pytest
from pydantic import SecretStr
from redis.exceptions import AuthenticationError, MovedError, NoPermissionError, ResponseError
from redis.sentinel import MasterNotFoundError

from owl_celery.errors import SettingsError
from owl_celery.keys import Keys
from owl_celery.redis_address import RedisAddress
from owl_celery.redis_state import RedisState, open_state
from owl_celery.redis_trouble import trouble_of
from owl_celery.settings import Settings


@pytest.fixture
def state(redis_url: str) -> RedisState:
    return RedisState(redis_url, Keys("test"))


def test_it_speaks_text(state: RedisState) -> None:
    state.client.set("key", "value")

    assert state.client.get("key") == "value"


def test_a_process_has_one_client(state: RedisState) -> None:
    assert state.client is state.client


def test_threads_share_it(state: RedisState) -> None:
    first = state.client
    seen: list[object] = []
    threads = [threading.Thread(target=lambda: seen.append(state.client)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert all(client is first for client in seen)


def test_after_forget_it_connects_anew(state: RedisState) -> None:
    before = state.client.client_id()
    state.forget()

    assert state.client.client_id() != before


def test_making_it_connects_to_nothing() -> None:
    assert RedisState("redis://127.0.0.1:1/0", Keys("test")).client is not None


def _report_connection(state: RedisState, pipe: Connection) -> None:
    gc.collect()  # The parent's client goes first, with its sockets.
    pipe.send(state.client.client_id())
    pipe.recv()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_has_a_connection_of_its_own(state: RedisState) -> None:
    context = multiprocessing.get_context("fork")
    ours = state.client.client_id()
    here, there = context.Pipe()
    child = context.Process(target=_report_connection, args=(state, there))
    child.start()
    theirs = here.recv()

    assert theirs != ours
    assert state.client.client_id() == ours

    here.send("done")
    child.join()
    for end in (here, there):
        end.close()
    assert child.exitcode == 0
    assert state.client.client_id() == ours


def test_redis_url_wins_over_the_broker() -> None:
    settings = Settings(redis_url=SecretStr("redis://state:1/0"))

    for broker in ("amqp://broker", "redis://broker:2/0"):
        address = open_state(settings, broker, "proj").address
        assert address == RedisAddress.of_url("redis://state:1/0")


def test_the_broker_is_used_without_one() -> None:
    address = open_state(Settings(), "redis://broker:1/0", "proj").address

    assert address.options.items() >= {"host": "broker", "port": 1, "db": 0}.items()


def test_the_namespace_is_the_setting_else_the_application() -> None:
    assert open_state(Settings(), "redis://b", "proj").keys == Keys("proj")
    assert open_state(Settings(namespace="mine"), "redis://b", "proj").keys == Keys("mine")


@pytest.mark.parametrize("url", ["amqp://user:hunter2@host", "", "memory://", "http://host"])
def test_another_broker_needs_redis_url(url: str) -> None:
    with pytest.raises(SettingsError, match=r"The broker is not Redis: set REDIS_URL") as caught:
        open_state(Settings(), url, "proj")

    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("url", ["redis://:hunter2/x@host:6379/0", "redis://host?db=many"])
def test_an_address_that_cannot_be_read_is_an_error_that_keeps_the_password(url: str) -> None:
    with pytest.raises(SettingsError, match=r"REDIS_URL .* cannot be read") as caught:
        RedisState(url, Keys("test"))

    assert "hunter2" not in str(caught.value)
    assert caught.value.__suppress_context__


TLS = {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_ca_certs": "/ca.pem"}


@pytest.mark.parametrize(
    ("broker", "conf", "expected"),
    [
        ("redis://u:p%40@h:1/7", {}, {"username": "u", "password": "p@", "port": 1, "db": 7}),
        ("redis://h;redis://other:2/3", {}, {"host": "h", "port": 6379, "db": 0}),
        ("rediss://h/2", {"broker_use_ssl": TLS}, {"ssl": True, "db": 2, **TLS}),
        ("redis://h", {"broker_use_ssl": TLS}, {"ssl": True, **TLS}),
        ("rediss://h?ssl_cert_reqs=CERT_NONE", {}, {"ssl": True, "ssl_cert_reqs": ssl.CERT_NONE}),
        ("redis+socket://:w@/r.sock?virtual_host=3", {}, {"path": "/r.sock", "db": 3}),
        ("redis://h", {"broker_user": "u", "broker_password": "w"}, {"password": "w"}),
    ],
)
def test_the_broker_is_reached_as_celery_reaches_it(
    broker: str, conf: dict[str, Any], expected: dict[str, Any]
) -> None:
    address = open_state(Settings(), broker, "proj", conf).address

    assert address.options.items() >= expected.items()
    assert not address.sentinels


def test_sentinels_of_the_broker() -> None:
    conf = {"broker_transport_options": {"master_name": "m", "sentinel_kwargs": {"password": "w"}}}

    address = open_state(Settings(), "sentinel://:x@a:1/2;sentinel://b:3", "proj", conf).address

    assert address.sentinels == (("a", 1), ("b", 3))
    assert (address.master_name, address.sentinel_options) == ("m", {"password": "w"})
    assert address.options.items() >= {"db": 2, "password": "x"}.items()


@pytest.mark.parametrize("hosts", ["a,b:3", "a;sentinel://u:x@b:3"])
def test_sentinels_of_redis_url(hosts: str) -> None:
    query = "master_name=m&ssl=true&ssl_ca_certs=/ca.pem&sentinel_password=w&sentinel_ssl=true"

    address = RedisAddress.of_url(f"sentinel://u:x@{hosts}/2?{query}")

    assert address.sentinels == (("a", 26379), ("b", 3))
    assert (address.master_name, address.sentinel_options) == ("m", {"password": "w", "ssl": True})
    expected = {"username": "u", "password": "x", "ssl": True, "ssl_ca_certs": "/ca.pem", "db": 2}
    assert address.options == expected


@pytest.mark.parametrize(
    "open_it",
    [
        lambda: RedisAddress.of_url("sentinel://:hunter2@host"),
        lambda: open_state(Settings(), "sentinel://:hunter2@host", "proj"),
    ],
)
def test_sentinels_without_a_master_say_what_is_missing(open_it: Callable[[], object]) -> None:
    with pytest.raises(SettingsError, match="master_name") as caught:
        open_it()

    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "broker", ["redis://:hunter2@h/many", "redis://:hunter2/x@h", "redis://:hunter2@h?nothing=1"]
)
def test_a_broker_that_cannot_be_read_is_an_error_that_keeps_the_password(broker: str) -> None:
    with pytest.raises(SettingsError, match="The broker's address") as caught:
        open_state(Settings(), broker, "proj")

    assert "hunter2" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_keys_begin_as_those_of_the_queues() -> None:
    conf = {"broker_transport_options": {"global_keyprefix": "site:"}}
    elsewhere = Settings(redis_url=SecretStr("redis://state"))

    for settings in (Settings(), elsewhere):
        assert open_state(settings, "redis://b", "proj", conf).keys.view == "site:owl:proj:view"


def test_no_secret_is_shown() -> None:
    url = "sentinel://:hunter2@h?master_name=m&sentinel_password=hunter3"

    state = RedisState(url, Keys("test"))

    assert "hunter" not in f"{state.address!r} {state.client!r} {state.client.connection_pool!r}"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (AuthenticationError("invalid username-password pair hunter2"), "the user or the password"),
        (NoPermissionError("User hunter2 has no permissions"), "its user may not do this"),
        (MasterNotFoundError("No master found: hunter2"), "no Sentinel"),
        (ResponseError("unknown command 'hunter2'"), "ResponseError"),
        (OSError(111, "Connection refused", "hunter2"), "Connection refused"),
        (MovedError("12 hunter2:6379"), "Redis Cluster is not supported"),
    ],
)
def test_what_is_wrong_is_said_without_what_was_sent(error: Exception, reason: str) -> None:
    said = trouble_of(error)

    assert reason in said
    assert "hunter2" not in said
