"""What dead workers held of queues that others serve, as their heartbeats told."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from owl_celery.controller.orphans import Orphans
from owl_celery.wire import Heartbeat


class Watch:
    """Looks every second, as the controller does."""

    def __init__(self) -> None:
        self.orphans = Orphans()
        self.now = 100.0

    def look(self, *beats: Heartbeat) -> dict[str, float]:
        self.now += 1.0
        return self.orphans.due(beats, self.now)

    def silence(self, seconds: int, nodes: Collection[str] = ("gpu0@a",)) -> dict[str, float]:
        found: dict[str, float] = {}
        for _ in range(seconds):
            self.orphans.stay(nodes)
            found = self.look()
        return found


BEAT = Heartbeat("gpu0@a", active=("t1",), life="1")


def test_what_a_dead_worker_held_is_due_until_settled() -> None:
    watch = Watch()
    watch.look(BEAT)
    latest = watch.now + 1.0

    assert not watch.silence(14)
    assert watch.silence(1) == watch.silence(1) == {"t1": latest}
    watch.orphans.settled(["t1"], watch.now)
    assert not watch.silence(1)


def test_what_a_live_worker_holds_is_not() -> None:
    watch = Watch()
    watch.look(BEAT)
    for _ in range(20):
        found = watch.look(Heartbeat("gpu0@a", active=("t1",), life="2"))

    assert not found


def test_a_worker_that_took_leave_has_given_back_what_it_held() -> None:
    watch = Watch()
    watch.look(BEAT)
    watch.silence(1, nodes=())

    # A worker of that name is there again, and is killed before it holds anything.
    assert not watch.silence(30)


@pytest.mark.parametrize("pause", [10.0, 3600.0])
def test_nobody_is_dead_who_was_not_listened_to_and_what_was_delivered_since_stays(
    pause: float,
) -> None:
    watch = Watch()
    watch.look(BEAT)
    latest = watch.now + 1.0
    watch.now += pause

    assert not watch.silence(14)
    # It may have come to another worker in that pause.
    assert watch.silence(5) == {"t1": latest}
