"""Reading what waits, now and again, puts the ledger right."""

from __future__ import annotations

import pytest

from owl_celery.brokers.base import BlindBroker, Contents
from owl_celery.controller.audit import BLIND_SECONDS, PAUSE_SECONDS, Audit
from owl_celery.controller.ledger import Beat, LoadLedger
from owl_celery.errors import BrokerError
from owl_celery.wire import Heartbeat

QUEUES = ("gpu.a.0", "gpu.a.1")
TTL = 5.0


class Shelves(BlindBroker):
    """A broker that knows what its messages say, and counts how often it is asked."""

    def __init__(self) -> None:
        self.inside: dict[str, Contents | None] = {}
        self.asked: list[str] = []
        self.is_down = False

    def contents(self, queue: str, most: int) -> Contents | None:
        self.asked.append(queue)
        if self.is_down:
            raise BrokerError("The broker is away.")
        return self.inside.get(queue)


class World:
    """A ledger of two queues in which tasks wait that nobody told of, and their audit."""

    def __init__(self) -> None:
        self.now = 100.0
        self.broker = Shelves()
        self.ledger = LoadLedger(TTL)
        self.audit = Audit(self.broker, self.ledger, lambda: self.now)
        beats = [
            Beat(Heartbeat(f"gpu{number}@a", name, "V100"), self.now + TTL)
            for number, name in enumerate(QUEUES)
        ]
        self.ledger.hear(beats, self.now)
        self.look(4, 4)

    def look(self, *depths: int, after: float = 0.03) -> list[float]:
        """Count what waits; the seconds of it."""
        self.now += after
        self.ledger.count({}, {}, dict(zip(QUEUES, depths, strict=True)), self.now)
        return self.ledger.load(self.now).waiting_seconds


@pytest.fixture
def world() -> World:
    return World()


def test_what_the_messages_say_replaces_a_guess(world: World) -> None:
    assert world.look(4, 4) == [4.0, 4.0]
    world.broker.inside = {QUEUES[0]: Contents(4, 4, 30.0), QUEUES[1]: Contents(4, 4, 0.8)}
    world.audit.step(world.now)  # A new controller looks into all.
    assert world.look(4, 4) == pytest.approx([30.0, 0.8], rel=0.01)


def test_messages_without_a_prediction_count_as_usual_ones(world: World) -> None:
    world.broker.inside = {QUEUES[0]: Contents(4, 2, 9.0)}
    world.audit.step(world.now)
    assert world.look(4, 4)[0] == pytest.approx(9.0 + 2 * 1.0, rel=0.01)


def test_messages_that_were_not_read_are_as_was_thought(world: World) -> None:
    world.look(100, 4)
    world.broker.inside = {QUEUES[0]: Contents(40, 40, 200.0)}
    world.audit.step(world.now)
    assert world.look(100, 4)[0] == pytest.approx(200.0 + 60 * 1.0, rel=0.01)


def test_queues_take_turns_and_never_more_often_than_allowed(world: World) -> None:
    world.broker.inside = dict.fromkeys(QUEUES, Contents(4, 4, 4.0))
    for _ in range(40):
        world.audit.step(world.now)
        world.now += PAUSE_SECONDS / 10
    # Both at first, then one after the other.
    assert world.broker.asked == [*QUEUES, QUEUES[0], QUEUES[1], QUEUES[0]]


def test_nobody_is_asked_about_empty_queues(world: World) -> None:
    world.look(0, 0)
    world.audit.step(world.now)
    assert world.broker.asked == []


def test_a_broker_that_cannot_tell_is_rarely_asked_again(world: World) -> None:
    world.audit.step(world.now)
    world.now += BLIND_SECONDS / 2
    world.audit.step(world.now)
    assert len(world.broker.asked) == 1


def test_a_broker_that_is_away_is_left_alone_for_a_while(world: World) -> None:
    world.broker.is_down = True
    with pytest.raises(BrokerError):
        world.audit.step(world.now)
    world.now += PAUSE_SECONDS
    world.audit.step(world.now)
    assert len(world.broker.asked) == 1
