"""Moving messages on a real RabbitMQ: in transactions, and what is only looked at stays."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, Final

import pytest
from celery import Celery

from owl_celery.brokers import open_broker
from owl_celery.brokers.amqp import (
    FETCHED,
    HEARTBEAT_SECONDS,
    MOVING_SECONDS,
    NOT_MOVED,
    AmqpBroker,
)
from owl_celery.brokers.base import Broker, Permit, Seen
from owl_celery.controller.stealing import header_of
from owl_celery.errors import BrokerError
from owl_celery.testing import wait_until
from owl_celery.wire import AGAIN_HEADER
from tests.routed import number_of, send_routed

pytestmark = pytest.mark.integration

FROM, TO = "gpu.a.0", "gpu.a.1"
FEW: Final = 100
PERMIT = Permit("owl:test:lease:controller", "7:token", "owl:test:moves", 7)


class World:
    """Two queues as a worker sees them, and the broker as a controller does."""

    def __init__(self, url: str, kind: str = "classic") -> None:
        self.app = Celery("proj", broker=url, set_as_current=False)
        self.app.conf.task_create_missing_queue_type = kind
        self.broker = self.another()
        self._connection = self.app.connection_for_read()
        self.channel: Any = self._connection.channel()
        for name in (FROM, TO):
            queue = self.app.amqp.queues[name]
            queue.bind(self.channel).declare()

    def another(self) -> Broker:
        """The broker as another controller sees it."""
        broker = open_broker(self.app)
        assert isinstance(broker, AmqpBroker)
        return broker

    def seen(self, wanted: int = 1) -> dict[str, Seen]:
        """What a peek shows that may be moved, by decision id."""
        headers = [(header_of(one.text), one) for one in self.peeked(wanted)]
        return {header.decision_id: one for header, one in headers if header is not None}

    def peeked(self, wanted: int = 1) -> Sequence[Seen]:
        return self.broker.peek([FROM], 16, wanted)[FROM]

    def get(self, name: str) -> int | None:
        """Take the next message; its number."""
        message = self.channel.basic_get(name)
        if message is None:
            return None
        self.channel.basic_ack(message.delivery_tag)
        return number_of(message.headers)

    def all(self, name: str) -> list[int]:
        """Take all messages; their numbers, in order."""
        return list(iter(lambda: self.get(name), None))

    def close(self) -> None:
        self.broker.close()
        self._connection.close()
        self.app.close()


@pytest.fixture
def world(rabbit_url: str) -> Iterator[World]:
    """Queues of the kind that Celery makes."""
    world = World(rabbit_url)
    yield world
    world.close()


def test_the_oldest_task_moves_and_the_others_stay_in_order(world: World) -> None:
    send_routed(world.app, FROM, 1, 2, 3)
    (seen,) = world.peeked()
    assert (seen.position, seen.ahead, seen.behind) == (0, 0, 2)
    assert world.broker.take(FROM, seen, "d1", TO, PERMIT)
    world.broker.release()
    assert (world.all(FROM), world.all(TO)) == ([2, 3], [1])


def test_what_is_only_looked_at_goes_back_to_its_place(world: World) -> None:
    send_routed(world.app, FROM, *range(6))
    assert list(world.seen(3)) == ["d0", "d1", "d2"]
    assert world.broker.depths([FROM]) == {FROM: 3}
    assert world.broker.take(FROM, world.peeked(3)[1], "d1", TO, PERMIT)
    world.broker.release()
    world.broker.release()  # Nothing is held any more.
    assert (world.all(FROM), world.all(TO)) == ([0, 2, 3, 4, 5], [1])


def test_a_moved_message_is_the_same(world: World) -> None:
    options = {"expires": 60, "priority": 3, "reply_to": "somewhere", "correlation_id": "c"}
    send_routed(world.app, FROM, 1, shadow="name", **options)
    before = world.channel.basic_get(FROM)
    world.channel.basic_reject(before.delivery_tag, requeue=True)
    # Only that it was delivered before, the copy itself cannot say.
    before.headers[AGAIN_HEADER] = True
    assert world.broker.take(FROM, world.seen()["d1"], "d1", TO, PERMIT)
    after = world.channel.basic_get(TO)
    world.channel.basic_ack(after.delivery_tag)
    assert after.body == before.body
    assert after.properties == before.properties
    assert after.delivery_info["redelivered"] is False


def test_a_foreign_message_moves_as_it_is(world: World) -> None:
    bodies = (b"\xff\x00", b"", b'{"a": 1}')
    for encoding in (None, "utf-8", "nonsense"):
        for body in bodies:
            message = world.channel.prepare_message(body, content_encoding=encoding)
            world.channel.basic_publish(message, exchange="", routing_key=FROM)
    assert world.broker.move_all(FROM, TO) == 9
    moved = [world.channel.basic_get(TO, no_ack=True) for _ in range(9)]
    # Texts are decoded where that is possible.
    found = [one.body.encode() if isinstance(one.body, str) else one.body for one in moved]
    assert found == [*bodies] * 3
    assert all("content_type" not in one.properties for one in moved)


def test_only_what_we_have_routed_may_move(world: World) -> None:
    world.app.send_task("proj.work", (0,), queue=FROM)
    send_routed(world.app, FROM, 1, header={"algorithm": "user"})
    send_routed(world.app, FROM, 2, header={"algorithm": "celery"})
    send_routed(world.app, FROM, 3, countdown=60)
    world.channel.exchange_declare("mine", "topic")
    world.channel.queue_bind(FROM, "mine", "any.*")
    send_routed(world.app, FROM, 4, exchange="mine", routing_key="any.key")
    for _ in range(5):
        shown = world.peeked(4)
        assert [one.text for one in shown] == [""] * min(NOT_MOVED, len(shown))
        for number in range(5):
            assert not world.broker.take(FROM, shown[0], f"d{number}", TO, PERMIT)
        world.broker.release()
        world.channel.basic_ack(world.channel.basic_get(FROM).delivery_tag)
    assert world.all(TO) == []


def test_a_few_that_may_not_move_do_not_hide_the_next(world: World) -> None:
    send_routed(world.app, FROM, *range(NOT_MOVED - 1), header={"algorithm": "user"})
    send_routed(world.app, FROM, 7, 8)
    assert world.broker.take(FROM, world.seen(2)["d8"], "d8", TO, PERMIT)
    world.broker.release()
    assert world.all(FROM) == [*range(NOT_MOVED - 1), 7]


def test_a_peek_holds_a_bounded_number(world: World) -> None:
    send_routed(world.app, FROM, *range(2 * FETCHED))
    assert len(world.broker.peek([FROM], 1_000, 1_000)[FROM]) == FETCHED
    world.broker.release()
    assert world.all(FROM) == [*range(2 * FETCHED)]


def test_nothing_moves_where_something_waits_or_to_no_queue(world: World) -> None:
    send_routed(world.app, FROM, 1)
    send_routed(world.app, TO, 2)
    seen = world.seen()["d1"]
    assert not world.broker.take(FROM, seen, "d1", TO, PERMIT)
    assert not world.broker.take(FROM, seen, "d1", "gpu.a.9", PERMIT)
    world.broker.release()
    assert (world.all(FROM), world.all(TO)) == ([1], [2])


def test_queues_that_are_gone_leave_no_channels_open(world: World) -> None:
    connection = world.app.connection_for_write()
    broker = AmqpBroker(lambda: connection)
    gone = [f"gone.{number}" for number in range(20)]
    assert broker.depths([*gone, FROM]) == dict.fromkeys([*gone, FROM], 0)
    assert len(connection.connection.channels) <= 3
    send_routed(world.app, FROM, 1)
    assert broker.depths([FROM]) == {FROM: 1}
    broker.close()


def test_what_one_controller_holds_no_other_can_move(world: World) -> None:
    send_routed(world.app, FROM, 1)
    seen, second = world.seen()["d1"], world.another()
    assert second.peek([FROM], 1, 1) == {FROM: []}
    world.broker.close()  # As when it is killed.
    wait_until(lambda: second.depths([FROM]) == {FROM: 1}, "the message to be back")
    assert second.peek([FROM], 1, 1)[FROM] == [seen]
    assert second.take(FROM, seen, "d1", TO, PERMIT)
    assert not world.broker.take(FROM, seen, "d1", "gpu.a.2", PERMIT)
    second.close()
    assert (world.all(FROM), world.all(TO)) == ([], [1])


def test_a_task_stays_where_its_place_does_not_exist(world: World) -> None:
    send_routed(world.app, FROM, *range(6))
    places = iter([TO, "gpu.a.9", None] * 2)
    assert world.broker.redirect(FROM, lambda _: next(places), 100) == 2
    assert (world.all(FROM), world.all(TO)) == ([1, 2, 4, 5], [0, 3])


def test_a_round_ends_before_the_lease_and_goes_on_in_the_next(world: World) -> None:
    send_routed(world.app, FROM, *range(9))
    # Half a second passes with each message.
    seconds = itertools.count(step=0.5)
    broker = AmqpBroker(world.app.connection_for_write, lambda: next(seconds))
    moved: list[int] = []
    while not moved or broker.has_unseen:
        moved.append(broker.redirect(FROM, lambda _: TO, 100))
    assert sum(moved) == 9
    assert len(moved) > 1 and max(moved) <= 2 * MOVING_SECONDS
    # What stays would only be seen again.
    assert broker.redirect(TO, lambda _: None, 100) == 0
    assert not broker.has_unseen
    broker.close()
    assert world.all(TO) == [*range(9)]


def test_a_connection_that_rested_is_made_anew(world: World) -> None:
    # RabbitMQ may have closed it for want of a heartbeat, and that is no trouble of the broker's.
    seconds = [0.0]
    made: list[Any] = []

    def connect() -> Any:
        made.append(world.app.connection_for_write())
        return made[-1]

    broker = AmqpBroker(connect, lambda: seconds[0])
    for pause, connections in ((0.0, 1), (HEARTBEAT_SECONDS, 1), (HEARTBEAT_SECONDS + 1.0, 2)):
        seconds[0] += pause
        assert broker.depths([]) == {}
        assert broker.depths([FROM]) == {FROM: 0}
        assert len(made) == connections
    made[-1].transport.close_connection(made[-1].connection)
    with suppress(BrokerError):
        broker.depths([FROM])
    assert broker.depths([FROM]) == {FROM: 0}
    broker.close()


def test_a_quorum_queue_is_not_disturbed(rabbit_url: str) -> None:
    # It puts behind all others what it gets back, and counts how often that was.
    world = World(rabbit_url, "quorum")
    send_routed(world.app, FROM, *range(3))
    assert list(world.seen(3)) == ["d0"]
    world.broker.release()
    assert world.broker.peek([FROM], 16, 3) == {}
    assert world.broker.redirect(FROM, lambda _: TO, 100) == 3
    assert sorted(world.all(TO)) == [0, 1, 2]
    world.close()


@pytest.mark.parametrize(
    ("how", "kind"), [("move", "classic"), ("empty", "classic"), ("empty", "quorum")]
)
def test_a_mover_that_is_killed_at_any_moment_loses_and_doubles_nothing(
    rabbit_url: str, how: str, kind: str
) -> None:
    world = World(rabbit_url, kind)
    kills = 8
    count = FEW
    send_routed(world.app, FROM, *range(count))
    command = [sys.executable, "-m", "tests.mover_process", rabbit_url, FROM, TO, str(kills), how]
    got: list[int] = []
    moved = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            # The consumer of the idle queue, and now and then that of the busy one.
            number = world.get(TO)
            if number is not None:
                got.append(number)
                moved += 1
            if number is None or len(got) % 8 == 0:
                if world.broker.depths([FROM])[FROM] < FEW // 2:
                    send_routed(world.app, FROM, *range(count, count + FEW))
                    count += FEW
                elif (number := world.get(FROM)) is not None:
                    got.append(number)
        assert process.stdout is not None
        assert int(process.stdout.read()) == kills

    def rest() -> bool:
        got.extend(world.all(TO) + world.all(FROM))
        return len(got) >= count

    wait_until(rest, "all messages")
    assert not rest() or len(got) == count
    assert set(Counter(got).values()) == {1}
    assert moved >= kills
    world.close()
