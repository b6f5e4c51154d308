"""Looking into queues: Redis with its priority lists, other transports by declaration."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from celery import Celery
from kombu.transport import memory
from redis import Redis

from owl_celery.brokers import open_broker, redis
from owl_celery.brokers.amqp import AmqpBroker
from owl_celery.brokers.base import BlindBroker, Broker, Contents, Permit
from owl_celery.brokers.redis import RedisBroker
from owl_celery.errors import BrokerError
from owl_celery.wire import TaskHeader
from tests.routed import send_routed

pytestmark = pytest.mark.integration

Make = Callable[..., Celery]


@pytest.fixture
def make_app(redis_url: str) -> Iterator[Make]:
    """Make applications whose broker is the real Redis, or another."""
    apps: list[Celery] = []

    def make(broker: str = redis_url, **conf: Any) -> Celery:
        app = Celery("proj", broker=broker, set_as_current=False)
        app.conf.update(conf)
        apps.append(app)
        return app

    yield make
    for app in apps:
        app.close()
    # The memory transport keeps its queues as long as the process lives.
    state: Any = memory.Transport.global_state
    state.clear()
    memory.Channel.queues.clear()


def send(app: Celery, queue: str, *arguments: Any, **options: Any) -> None:
    """Publish one message a value."""
    with app.connection_for_write() as connection, connection.channel() as channel:
        producer = app.amqp.Producer(channel)
        for argument in arguments:
            app.send_task("proj.work", (argument,), queue=queue, producer=producer, **options)


def received(app: Celery, queue: str) -> list[Any]:
    """First arguments of all messages, in the order in which a worker would get them."""
    found: list[Any] = []
    with app.connection_for_read() as connection, connection.SimpleQueue(queue) as waiting:
        while True:
            try:
                message = waiting.get(block=False)
            except waiting.Empty:
                return found
            found.append(message.payload[0][0])
            message.ack()


@pytest.fixture(params=["redis", "rabbitmq", "memory"])
def app(request: pytest.FixtureRequest, make_app: Make) -> Celery:
    """An application of each kind of broker."""
    if request.param == "rabbitmq":
        return make_app(request.getfixturevalue("rabbit_url"))
    return make_app() if request.param == "redis" else make_app("memory://")


@pytest.fixture
def broker(app: Celery) -> Iterator[Broker]:
    """The broker of that application."""
    broker = open_broker(app)
    yield broker
    broker.close()


def test_depths_count_what_waits(app: Celery, broker: Broker) -> None:
    send(app, "gpu.a.0", 1, 2, 3)
    send(app, "gpu.a.1", 4)
    assert broker.depths(["gpu.a.0", "gpu.a.1", "gpu.a.2"]) == {
        "gpu.a.0": 3,
        "gpu.a.1": 1,
        "gpu.a.2": 0,
    }
    assert broker.depths([]) == {}


def test_move_all_puts_the_oldest_first_behind_what_waits(app: Celery, broker: Broker) -> None:
    send(app, "gpu.a.0", 1, 2, 3)
    send(app, "gpu.a.1", 0)
    assert broker.move_all("gpu.a.0", "gpu.a.1") == 3
    assert broker.depths(["gpu.a.0", "gpu.a.1"]) == {"gpu.a.0": 0, "gpu.a.1": 4}
    assert received(app, "gpu.a.1") == [0, 1, 2, 3]


def test_moving_a_queue_to_itself_or_from_nothing_moves_nothing(
    app: Celery, broker: Broker
) -> None:
    send(app, "gpu.a.0", 1)
    assert broker.move_all("gpu.a.0", "gpu.a.0") == 0
    assert broker.move_all("gpu.a.9", "gpu.a.0") == 0
    assert received(app, "gpu.a.0") == [1]


def header(algorithm: str = "q_learning") -> dict[str, Any]:
    """Our header, as on a routed task."""
    return {"owl": TaskHeader("d1", "gpu.a.0", algorithm, "train", 1.7e9, size=3.0).encode()}


def test_redirect_moves_tasks_of_ours_each_to_its_place(app: Celery, broker: Broker) -> None:
    places = iter(["gpu.a.1", "gpu.a.2", "gpu.a.1", None, "gpu.a.0"])
    seen: list[TaskHeader] = []

    def place(found: TaskHeader) -> str | None:
        seen.append(found)
        return next(places)

    for name in ("gpu.a.1", "gpu.a.2"):
        send(app, name, f"first in {name}")
    send(app, "gpu.a.0", "plain")
    send(app, "gpu.a.0", 1, 2, 3, 4, 5, headers=header())

    assert broker.redirect("gpu.a.0", place, 100) == 3

    assert [found.size for found in seen] == [3.0] * 5
    assert received(app, "gpu.a.1") == ["first in gpu.a.1", 1, 3]
    assert received(app, "gpu.a.2") == ["first in gpu.a.2", 2]
    assert sorted(map(str, received(app, "gpu.a.0"))) == ["4", "5", "plain"]
    assert broker.redirect("gpu.a.0", place, 100) == 0


def test_redirect_keeps_order_where_tasks_stay(make_app: Make) -> None:
    app = make_app()
    send(app, "gpu.a.0", *range(450), headers=header())
    broker = open_broker(app)
    turn = itertools.cycle([None, "gpu.a.1", "gpu.a.2"])
    assert broker.redirect("gpu.a.0", lambda _: next(turn), 10_000) == 300
    broker.close()
    assert received(app, "gpu.a.0") == list(range(0, 450, 3))
    assert received(app, "gpu.a.1") == list(range(1, 450, 3))
    assert received(app, "gpu.a.2") == list(range(2, 450, 3))


def test_redirect_leaves_to_a_worker_what_it_has_taken(make_app: Make, redis_url: str) -> None:
    app = make_app()
    send(app, "gpu.a.0", 1, 2, 3, headers=header())
    broker = open_broker(app)
    taken: list[Any] = []

    def place(_: TaskHeader) -> str:
        with Redis.from_url(redis_url) as client:
            taken.append(client.rpop("gpu.a.0"))
        return "gpu.a.1"

    assert broker.redirect("gpu.a.0", place, 100) == 0
    assert broker.depths(["gpu.a.0", "gpu.a.1"]) == {"gpu.a.0": 0, "gpu.a.1": 0}
    assert len(set(taken)) == 3
    broker.close()


def test_redirect_looks_at_a_bounded_number(make_app: Make) -> None:
    app = make_app()
    send(app, "gpu.a.0", *range(450), headers=header())
    broker = open_broker(app)
    assert broker.redirect("gpu.a.0", lambda _: "gpu.a.1", 300) == 400
    broker.close()


def test_redirect_goes_on_behind_what_stays(make_app: Make) -> None:
    app = make_app()
    send(app, "gpu.a.0", *range(450))
    send(app, "gpu.a.0", "ours", headers=header(), priority=9)
    send(app, "gpu.a.0", "urgent", headers=header())
    broker = open_broker(app)
    moved = []
    for _ in range(3):
        moved.append((broker.redirect("gpu.a.0", lambda _: "gpu.a.1", 300), broker.has_unseen))
    assert moved == [(0, True), (2, False), (0, True)]
    broker.close()


def test_redirect_moves_nothing_for_a_controller_that_leads_no_more(
    make_app: Make, redis_url: str
) -> None:
    app = make_app()
    send(app, "gpu.a.0", "ours", headers=header())
    broker = open_broker(app)
    permit = Permit("owl:test:lease", "7:token", "owl:test:moves", 7)
    with Redis.from_url(redis_url) as client:
        client.set(permit.lease_key, "8:other")
        assert broker.redirect("gpu.a.0", lambda _: "gpu.a.1", 100, permit) == 0
        client.delete(permit.lease_key)
        client.set(permit.fence_key, 8)
        assert broker.redirect("gpu.a.0", lambda _: "gpu.a.1", 100, permit) == 0
        renewed = permit._replace(fence=9)
        assert broker.redirect("gpu.a.0", lambda _: "gpu.a.1", 100, renewed) == 1
    broker.close()


def test_large_messages_move_a_few_at_a_time(
    make_app: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis, "MOVED_BYTES", 3_000)
    app = make_app()
    texts = [f"{number} {'x' * 2_000}" for number in range(7)]
    send(app, "gpu.a.0", *texts, headers=header())
    send(app, "gpu.a.0", *"abc", headers=header())
    broker = open_broker(app)
    looked = itertools.count(1)
    turn = itertools.cycle([None, "gpu.a.1"])
    assert broker.redirect("gpu.a.0", lambda _: (next(looked), next(turn))[1], 4) == 2
    assert next(looked) == 5
    assert broker.redirect("gpu.a.0", lambda _: "gpu.a.1", 100) == 6
    assert broker.redirect("gpu.a.0", lambda _: "gpu.a.1", 100) == 2
    assert broker.move_all("gpu.a.1", "gpu.a.2") == 10
    broker.close()
    moved = [texts[1], texts[3], *texts[4:], *"abc", texts[0], texts[2]]
    assert received(app, "gpu.a.2") == moved


def test_redirect_passes_over_what_it_cannot_read(make_app: Make, redis_url: str) -> None:
    strange = [
        "", "no JSON", "3", '{"headers": 1}', '{"headers": {"id": 7, "owl": {"d": "1"}}}',
        '{"headers": {"id": "t", "owl": "x"}}', '{"headers": {"id": "t", "owl": {"d": 1}}}',
    ]  # fmt: skip
    broker = open_broker(make_app())
    with Redis.from_url(redis_url, decode_responses=True) as client:
        client.lpush("gpu.a.0", *strange)
        assert broker.redirect("gpu.a.0", lambda _: "gpu.a.1", 100) == 0
        assert client.lrange("gpu.a.0", 0, -1) == strange[::-1]
    broker.close()


def test_redirect_finds_a_header_that_another_library_nested(app: Celery, broker: Broker) -> None:
    send(app, "gpu.a.1", 0)  # So that it is there.
    send(app, "gpu.a.0", 1, headers={"headers": header()})
    assert broker.redirect("gpu.a.0", lambda _: "gpu.a.1", 100) == 1
    assert received(app, "gpu.a.1") == [0, 1]


def test_a_task_that_expires_moves_and_keeps_its_time(app: Celery, broker: Broker) -> None:
    for name in ("gpu.a.1", "gpu.a.2"):  # So that it is there.
        send(app, name, 0)
        received(app, name)
    send(app, "gpu.a.0", 1, expires=60, headers=header())
    assert broker.redirect("gpu.a.0", lambda _: "gpu.a.1", 100) == 1
    assert broker.move_all("gpu.a.1", "gpu.a.2") == 1
    with app.connection_for_read() as connection, connection.SimpleQueue("gpu.a.2") as waiting:
        message = waiting.get(block=False)
        message.ack()
    assert 50_000 <= int(message.properties["expiration"]) <= 60_000
    assert message.headers["expires"]


def test_a_closed_broker_opens_again(app: Celery, broker: Broker) -> None:
    send(app, "gpu.a.0", 1)
    broker.close()
    assert broker.depths(["gpu.a.0"]) == {"gpu.a.0": 1}


def test_a_moved_message_is_the_same_but_for_its_destination(
    make_app: Make, redis_url: str
) -> None:
    app = make_app()
    send(
        app,
        "gpu.a.0",
        2**70,
        headers={
            "big": 2**63 + 1,
            "none": [],
            "nested": {"delivery_info": {"exchange": "x", "routing_key": "gpu.a.0"}},
            "text": '"delivery_info": {"exchange": "", "routing_key": "gpu.a.0"}',
        },
    )
    with Redis.from_url(redis_url, decode_responses=True) as client:
        (before,) = client.lrange("gpu.a.0", 0, -1)
        broker = open_broker(app)
        assert broker.move_all("gpu.a.0", 'odd "queue"') == 1
        broker.close()
        (after,) = client.lrange('odd "queue"', 0, -1)
    expected = json.loads(before)
    expected["properties"]["delivery_info"] = {"exchange": "", "routing_key": 'odd "queue"'}
    assert json.loads(after) == expected
    assert str(2**63 + 1) in after


def test_a_moved_message_returns_to_its_new_queue_when_its_worker_is_lost(
    make_app: Make,
) -> None:
    app = make_app()
    send(app, "gpu.a.0", 1)
    broker = open_broker(app)
    broker.move_all("gpu.a.0", "gpu.a.1")
    with app.connection_for_read() as connection:
        channel = connection.default_channel
        message = channel.message_to_python(channel.basic_get("gpu.a.1"))
        message.requeue()
    assert broker.depths(["gpu.a.0", "gpu.a.1"]) == {"gpu.a.0": 0, "gpu.a.1": 1}
    broker.close()


def test_a_message_of_a_named_exchange_goes_to_the_new_queue_directly(
    make_app: Make, redis_url: str
) -> None:
    app = make_app(task_create_missing_queue_exchange_type="topic")
    send(app, "gpu.a.0", 1)
    broker = open_broker(app)
    assert broker.move_all("gpu.a.0", "gpu.a.1") == 1
    broker.close()
    with Redis.from_url(redis_url, decode_responses=True) as client:
        (text,) = client.lrange("gpu.a.1", 0, -1)
    info = json.loads(text)["properties"]["delivery_info"]
    assert info == {"exchange": "", "routing_key": "gpu.a.1"}


def test_text_that_is_no_message_of_celery_is_moved_as_it_is(
    make_app: Make, redis_url: str
) -> None:
    strange = ["", "no JSON", '{"a": 1}', '"delivery_info": {"routing_key": "gpu.a.0"']
    broker = open_broker(make_app())
    with Redis.from_url(redis_url, decode_responses=True) as client:
        client.lpush("gpu.a.0", *strange)
        assert broker.move_all("gpu.a.0", "gpu.a.1") == len(strange)
        assert client.lrange("gpu.a.1", 0, -1) == strange[::-1]
    broker.close()


def test_priorities_are_counted_together_and_kept(make_app: Make, redis_url: str) -> None:
    app = make_app(
        broker_transport_options={
            "priority_steps": [0, 5],
            "sep": ":",
            "queue_order_strategy": "priority",
        }
    )
    for priority in (0, 5, 9):
        send(app, "gpu.a.0", priority, priority=priority)
    broker = open_broker(app)
    assert broker.depths(["gpu.a.0"]) == {"gpu.a.0": 3}
    assert broker.move_all("gpu.a.0", "gpu.a.1") == 3
    assert broker.depths(["gpu.a.0", "gpu.a.1"]) == {"gpu.a.0": 0, "gpu.a.1": 3}
    with Redis.from_url(redis_url) as client:
        assert (client.llen("gpu.a.1"), client.llen("gpu.a.1:5")) == (1, 2)
    broker.close()


def test_the_key_prefix_of_the_transport_is_used(make_app: Make, redis_url: str) -> None:
    app = make_app(broker_transport_options={"global_keyprefix": "mine:"})
    send(app, "gpu.a.0", 1)
    broker = open_broker(app)
    assert broker.depths(["gpu.a.0"]) == {"gpu.a.0": 1}
    assert broker.move_all("gpu.a.0", "gpu.a.1") == 1
    broker.close()
    with Redis.from_url(redis_url) as client:
        assert client.llen("mine:gpu.a.1") == 1


def test_a_large_queue_moves_in_pieces(make_app: Make, redis_url: str) -> None:
    app = make_app()
    send(app, "gpu.a.0", *range(450))
    broker = open_broker(app)
    assert broker.move_all("gpu.a.0", "gpu.a.1") == 450
    broker.close()
    assert received(app, "gpu.a.1") == list(range(450))


@pytest.mark.parametrize("address", ["redis://127.0.0.1:1/0", "amqp://127.0.0.1:1//"])
def test_a_broker_that_is_away_is_an_error_in_a_sentence(make_app: Make, address: str) -> None:
    broker = open_broker(make_app(address))
    for _ in range(2):
        with pytest.raises(BrokerError, match="cannot be used"):
            broker.depths(["gpu.a.0"])
    broker.close()


def test_a_lost_connection_is_opened_anew(make_app: Make, redis_url: str) -> None:
    app = make_app()
    broker = open_broker(app)
    assert broker.depths(["gpu.a.0"]) == {"gpu.a.0": 0}
    with Redis.from_url(redis_url) as client:
        client.client_kill_filter(_type="normal", skipme=True)
    with suppress(BrokerError):  # redis-py may notice and reconnect by itself.
        broker.depths(["gpu.a.0"])
    assert broker.depths(["gpu.a.0"]) == {"gpu.a.0": 0}
    broker.close()


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("redis://h", RedisBroker),
        ("rediss://h", RedisBroker),
        ("redis+socket:///tmp/redis.sock", RedisBroker),
        ("sentinel://h:1;sentinel://i:2", RedisBroker),
        ("amqp://h", AmqpBroker),
        ("pyamqp://h", AmqpBroker),
        ("memory://", AmqpBroker),
        ("filesystem://", BlindBroker),
    ],
)
def test_the_address_decides(make_app: Make, address: str, kind: type) -> None:
    assert type(open_broker(make_app(address))) is kind


def test_contents_sums_up_the_predictions_for_this_queue(make_app: Make, redis_url: str) -> None:
    app = make_app()
    send_routed(app, "gpu.a.0", 1, 2)
    send_routed(app, "gpu.a.0", 3, header={"service_seconds": 1e-05}, priority=9)
    send_routed(app, "gpu.a.0", 4, header={"queue": "gpu.a.1"})  # moved here
    send_routed(app, "gpu.a.0", 5, header={"service_seconds": None})
    send_routed(app, "gpu.a.0", 6, header={"task_type": 'x", "s": 99, "y": "}'})
    send(app, "gpu.a.0", "without our header")
    broker = open_broker(app)
    # Of the sixth our parser sees a part only, and nothing in it that is not there.
    assert broker.contents("gpu.a.0", 100) == Contents(7, 3, 4.00001)
    assert broker.contents("gpu.a.0", 2) == Contents(2, 2, 4.0)
    assert broker.contents("gpu.empty.0", 2) == Contents(0, 0, 0.0)
    broker.close()


def test_contents_of_a_broker_that_cannot_be_read_are_unknown(make_app: Make) -> None:
    broker = open_broker(make_app("memory://"))
    assert broker.contents("gpu.a.0", 100) is None
    broker.close()
