from __future__ import annotations

import logging

import pytest

from owl_celery.breaker import DEPENDENCIES, Breaker
from owl_celery.controller.health import Troubles
from owl_celery.counters import Counters


class Clock:
    """Seconds that a test moves."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(
        *("producer", "redis", "away: {reason}", "back"),
        least_seconds=1.0,
        most_seconds=5.0,
        clock=clock,
    )


def test_a_change_is_said_once(breaker: Breaker, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        breaker.works()
    for reason in ("refused", "refused {x}", "timeout"):
        breaker.fails(reason)
    for _ in range(3):
        breaker.works()

    said = [record.getMessage() for record in caplog.records]
    assert said == ["away: refused", "back, after 0.0 s"]
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


def test_it_is_left_alone_for_longer_and_longer(breaker: Breaker, clock: Clock) -> None:
    assert breaker.may_try
    assert breaker.pause_seconds == 0.0
    pauses: list[float] = []
    for _ in range(5):
        breaker.fails("refused")
        assert not breaker.may_try
        pauses.append(breaker.pause_seconds)
        clock.seconds += breaker.pause_seconds
        assert breaker.may_try
    assert pauses == [1.0, 2.0, 4.0, 5.0, 5.0]
    breaker.works()
    breaker.fails("refused")
    assert breaker.pause_seconds == 1.0


def test_what_is_counted_can_be_read_again(breaker: Breaker, clock: Clock) -> None:
    assert breaker.totals() == {}
    for seconds in (2.0, 3.0):
        breaker.fails("refused")
        clock.seconds += seconds
        breaker.works()
        clock.seconds += 10.0
    breaker.fails("refused")
    clock.seconds += 0.5

    counters = Counters.read({name: str(value) for name, value in breaker.totals().items()})

    assert counters.opened == {("producer", "redis"): 3}
    assert counters.down_seconds == {("producer", "redis"): 5.5}


def test_what_nobody_depends_on_is_a_mistake_and_is_not_read() -> None:
    with pytest.raises(ValueError, match="producer does not depend on database"):
        Breaker("producer", "database", "{reason}", "")
    assert Counters.read({"opened|producer|database": "3", "opened|x": "1"}) == Counters()


def test_the_troubles_of_a_controller_are_counted() -> None:
    troubles = Troubles()
    for part in ("store", "broker", "store", "mode"):
        troubles.begin(part, "Away.")
        troubles.end(part)

    counters = Counters.read({name: str(value) for name, value in troubles.totals().items()})

    assert counters.opened == {("controller", "database"): 2, ("controller", "broker"): 1}
    assert set(counters.opened) <= {("controller", part) for part in DEPENDENCIES["controller"]}
