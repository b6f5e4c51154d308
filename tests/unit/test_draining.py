"""Draining: a queue that is left runs empty, for a limited time."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from owl_celery.brokers.base import BlindBroker
from owl_celery.draining import SETTLE_SECONDS, Draining
from owl_celery.errors import BrokerError


class Clock:
    """A clock that moves when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class FakeBroker(BlindBroker):
    """Queues of counted messages."""

    def __init__(self, **depths: int) -> None:
        self.queues = depths
        self.is_down = False
        self.is_closed = False

    def depths(self, queues: Sequence[str]) -> dict[str, int]:
        if self.is_down:
            raise BrokerError("Redis is down.")
        return {queue: self.queues[queue] for queue in queues if queue in self.queues}

    def move_all(self, source: str, destination: str) -> int:
        if self.is_down:
            raise BrokerError("Redis is down.")
        moved = self.queues.get(source, 0)
        self.queues[source] = 0
        self.queues[destination] = self.queues.get(destination, 0) + moved
        return moved

    def close(self) -> None:
        self.is_closed = True


def draining(broker: FakeBroker, clock: Clock, timeout_seconds: float = 30.0) -> Draining:
    return Draining(broker, "own", "celery", timeout_seconds, clock)


def test_an_empty_queue_is_served_until_producers_know_that_it_is_closed() -> None:
    clock = Clock()
    leaving = draining(FakeBroker(own=0), clock)

    assert not leaving.is_done(is_idle=True)
    clock.now += SETTLE_SECONDS - 0.01
    assert not leaving.is_done(is_idle=True)
    clock.now += 0.02
    assert leaving.is_done(is_idle=True)


def test_what_waits_and_what_runs_is_finished_first() -> None:
    clock, broker = Clock(), FakeBroker(own=2)
    leaving = draining(broker, clock)
    leaving.is_done(is_idle=True)
    clock.now += 5.0

    assert not leaving.is_done(is_idle=True)
    broker.queues["own"] = 0
    assert not leaving.is_done(is_idle=False)
    assert leaving.is_done(is_idle=True)


def test_it_ends_when_the_time_is_up() -> None:
    clock = Clock()
    leaving = draining(FakeBroker(own=2), clock, timeout_seconds=3.0)
    leaving.is_done(is_idle=False)
    clock.now += 3.0

    assert leaving.is_done(is_idle=False)


def test_the_rest_moves_to_the_default_queue() -> None:
    broker = FakeBroker(own=2, celery=1)

    assert draining(broker, Clock()).leave() == 2
    assert broker.queues == {"own": 0, "celery": 3}
    assert broker.is_closed


def test_a_broker_that_is_down_delays_nothing_and_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker, clock = FakeBroker(own=2), Clock()
    broker.is_down = True
    leaving = draining(broker, clock)
    leaving.is_done(is_idle=True)
    clock.now += 2.0

    assert leaving.is_done(is_idle=True)
    assert leaving.leave() == 0
    assert [record.message for record in caplog.records] == [
        "owl: what waits in queue own stays there until a worker serves it: Redis is down."
    ]
