from __future__ import annotations

import gc
import multiprocessing
import threading
from multiprocessing.connection import Connection

import pytest
from pydantic import SecretStr

from owl_celery.errors import SettingsError
from owl_celery.redis_state import RedisState, open_state
from owl_celery.settings import Settings
from owl_celery.wire import Keys


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

    assert open_state(settings, "amqp://broker", "proj").url == "redis://state:1/0"


def test_the_broker_is_used_without_one() -> None:
    assert open_state(Settings(), "redis://broker:1/0", "proj").url == "redis://broker:1/0"


def test_the_namespace_is_the_setting_else_the_application() -> None:
    assert open_state(Settings(), "redis://b", "proj").keys == Keys("proj")
    assert open_state(Settings(namespace="mine"), "redis://b", "proj").keys == Keys("mine")


@pytest.mark.parametrize("url", ["amqp://user:hunter2@host", "", "memory://", "sentinel://host"])
def test_another_broker_needs_redis_url(url: str) -> None:
    with pytest.raises(SettingsError, match=r"REDIS_URL .* must start with redis://") as caught:
        open_state(Settings(), url, "proj")

    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("url", ["redis://:hunter2/x@host:6379/0", "redis://host?db=many"])
def test_an_address_that_cannot_be_read_is_an_error_that_keeps_the_password(url: str) -> None:
    with pytest.raises(SettingsError, match=r"REDIS_URL .* cannot be read") as caught:
        RedisState(url, Keys("test"))

    assert "hunter2" not in str(caught.value)
    assert caught.value.__suppress_context__
