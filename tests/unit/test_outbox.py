"""The outbox: every event reaches the stream once Redis is there, and no task waits for it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import pytest

from owl_celery import outbox as outbox_module
from owl_celery.counters import Counters
from owl_celery.keys import Keys
from owl_celery.outbox import Outbox
from owl_celery.redis_address import RedisAddress
from owl_celery.redis_state import RedisState
from owl_celery.settings import Settings
from owl_celery.wire import Started, decode_event


def started(number: int) -> Started:
    return Started(str(number), "", 0, "train", "gpu.a.0", "gpu0@a", "V100")


def numbers_on_stream(state: RedisState) -> list[int]:
    entries: Any = state.client.xrange(state.keys.events)
    events = [decode_event(fields["e"]) for _, fields in entries]
    return [int(event.task_id) for event in events if event is not None]


def wait_until(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


@pytest.fixture
def state(redis_url: str) -> RedisState:
    return RedisState(redis_url, Keys("test"))


def test_events_arrive_in_order(state: RedisState) -> None:
    outbox = Outbox(state, Settings())
    for number in range(1_200):
        outbox.put(started(number))
    outbox.close()
    assert numbers_on_stream(state) == list(range(1_200))


def test_close_sends_what_is_left_and_a_later_event_starts_again(state: RedisState) -> None:
    outbox = Outbox(state, Settings())
    outbox.put(started(1))
    outbox.close()
    outbox.put(started(2))
    outbox.close()
    assert numbers_on_stream(state) == [1, 2]


def test_events_wait_while_redis_is_away(
    state: RedisState, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(outbox_module, "RETRY_SECONDS", 0.01)
    there = state.address
    state.address = RedisAddress.of_url("redis://127.0.0.1:1/0")
    outbox = Outbox(state, Settings())
    outbox.put(started(1))
    wait_until(lambda: len(caplog.records) == 1)
    outbox.put(started(2))
    state.address = there
    state.forget()
    wait_until(lambda: numbers_on_stream(state) == [1, 2])
    wait_until(lambda: "flow again" in caplog.text)
    outbox.close()
    assert outbox.dropped == 0
    outbox.put(started(3))
    outbox.close()
    told: Any = state.client.hgetall(state.keys.counters)
    assert Counters.read(told).opened == {("child", "redis"): 1}


def test_beyond_capacity_the_oldest_are_dropped_and_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outbox_module, "CAPACITY", 10)
    monkeypatch.setattr(outbox_module, "CLOSE_SECONDS", 0.2)
    outbox = Outbox(RedisState("redis://127.0.0.1:1/0", Keys("test")), Settings())
    for number in range(25):
        outbox.put(started(number))
    assert outbox.dropped == 15
    outbox.close()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_sends_only_its_own(state: RedisState) -> None:
    outbox = Outbox(state, Settings())
    outbox.put(started(1))
    pid = os.fork()
    if pid == 0:
        outbox.put(started(2))
        outbox.close()
        os._exit(0)
    os.waitpid(pid, 0)
    outbox.close()
    assert sorted(numbers_on_stream(state)) == [1, 2]
