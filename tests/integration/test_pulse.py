"""The heartbeat thread, on a real Redis."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from owl_celery.claims import Claims
from owl_celery.counters import Counters
from owl_celery.gpus import FakeGpus, GpuReadings, fake_gpu
from owl_celery.keys import Keys
from owl_celery.pulse import Pulse
from owl_celery.redis_address import RedisAddress
from owl_celery.redis_state import RedisState
from owl_celery.settings import Settings
from owl_celery.testing import wait_until
from owl_celery.wire import Heartbeat

pytestmark = pytest.mark.integration

NODE = "gpu0@a"
UUID = "SIM-a-0"


class Worker:
    """What the pulse is told of a worker, and the pulse itself."""

    def __init__(self, state: RedisState, heartbeat_seconds: float = 1.0) -> None:
        self.state = state
        self.active: tuple[str, ...] = ()
        self.gpus = FakeGpus([fake_gpu(0, "k80", "a")])
        self.rounds = threading.Event()
        self.pulse = Pulse(
            state,
            Settings.load(heartbeat_seconds=heartbeat_seconds),
            lambda: Heartbeat(NODE, "gpu.a.0", "k80", UUID, active=self.active),
            Claims(state, UUID, "gpu.a.0", NODE, "me", 5.0),
            self.gpus,
            UUID,
            self.rounds.set,
        )

    def beat(self) -> Heartbeat | None:
        text = self.state.client.get(self.state.keys.heartbeat(NODE))
        return None if text is None else Heartbeat.decode(str(text))


@pytest.fixture
def state(redis_url: str) -> Iterator[RedisState]:
    state = RedisState(redis_url, Keys("pulse"))
    yield state
    state.client.close()


def test_a_heartbeat_lives_for_its_time_and_names_its_node(state: RedisState) -> None:
    worker = Worker(state)

    worker.pulse.beat()

    beat = worker.beat()
    assert beat is not None
    assert (beat.node, beat.queue, beat.gpu_model) == (NODE, "gpu.a.0", "k80")
    assert 4_000 < state.client.pttl(state.keys.heartbeat(NODE)) <= 5_000
    assert state.client.smembers(state.keys.nodes) == {NODE}
    assert state.client.exists(state.keys.gpu_claim(UUID), state.keys.claim("gpu.a.0")) == 2


def test_readings_of_one_round_go_out_with_the_next(state: RedisState) -> None:
    worker = Worker(state)
    worker.gpus.set_readings(UUID, GpuReadings(100, 40, 0.5, 60.0, 150.0))

    worker.pulse.beat()
    worker.pulse.beat()

    beat = worker.beat()
    assert beat is not None
    assert (beat.memory_total_bytes, beat.memory_free_bytes) == (100, 40)
    assert (beat.utilization_ratio, beat.temperature_celsius, beat.power_watts) == (0.5, 60, 150)


def test_a_change_goes_out_at_once_and_the_end_takes_all_back(state: RedisState) -> None:
    worker = Worker(state, heartbeat_seconds=2.5)
    worker.pulse.start()
    wait_until(lambda: worker.beat() is not None, "the first heartbeat")

    for task in ("t1", "t2"):
        worker.active = (task,)
        worker.pulse.changed()
        wait_until(
            lambda: (beat := worker.beat()) is not None and beat.active == worker.active,
            "the change",
            2.0,
        )
    assert worker.rounds.wait(2.0)

    worker.pulse.stop()
    assert not worker.pulse.is_alive()
    assert state.client.keys("*") == []


def test_heartbeats_that_redis_does_not_take_are_counted_and_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = Worker(RedisState("redis://127.0.0.1:1/0", Keys("pulse")))

    with caplog.at_level(logging.INFO):
        for _ in range(3):
            worker.pulse.beat()
        worker.pulse.stop()

    assert worker.pulse.skipped == 3
    said = [record.message for record in caplog.records]
    assert len(said) == 2
    assert said[0].startswith("owl: Redis does not take the heartbeat (")
    assert said[0].endswith("; the worker works on")


def test_their_return_is_said(state: RedisState, caplog: pytest.LogCaptureFixture) -> None:
    worker = Worker(state)
    # A string where the set of nodes should be: Redis refuses.
    state.client.set(state.keys.nodes, "nonsense")
    worker.pulse.beat()
    state.client.delete(state.keys.nodes)

    with caplog.at_level(logging.INFO):
        worker.pulse.beat()

    assert "owl: heartbeats are back, after" in caplog.text


def test_a_gpu_that_another_worker_took_meanwhile_is_said(
    state: RedisState, caplog: pytest.LogCaptureFixture
) -> None:
    worker = Worker(state)
    state.client.set(state.keys.gpu_claim(UUID), "gpu9@b other")

    worker.pulse.beat()

    assert "owl: GPU SIM-a-0 is claimed by gpu9@b; the worker works on" in caplog.text
    assert worker.beat() is not None


def test_a_fault_of_ours_does_not_end_the_heartbeats(
    state: RedisState, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(state, heartbeat_seconds=0.05)
    monkeypatch.setattr(worker.pulse, "_describe", lambda: 1 / 0)
    worker.pulse.start()
    wait_until(lambda: worker.pulse.skipped >= 2, "two failures")

    monkeypatch.undo()

    wait_until(lambda: worker.beat() is not None, "a heartbeat")
    worker.pulse.stop()


def test_what_did_not_work_is_told_with_the_next_heartbeat(state: RedisState) -> None:
    worker = Worker(state)
    there = state.address
    state.address = RedisAddress.of_url("redis://127.0.0.1:1/0")
    state.forget()
    for _ in range(3):
        worker.pulse.beat()
    state.address = there
    state.forget()
    worker.pulse.beat()
    worker.pulse.beat()

    told: Any = state.client.hgetall(state.keys.counters)
    counters = Counters.read(told)
    assert counters.opened == {("worker", "redis"): 1}
    assert counters.down_seconds["worker", "redis"] > 0.0
