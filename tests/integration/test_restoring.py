"""What a dead worker held goes back to its queue, once; what a live one holds stays."""

from __future__ import annotations

import base64
import json
import pickle
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from billiard.exceptions import WorkerLostError
from celery import Celery, signals
from kombu.transport.virtual import Message
from redis import Redis

from owl_celery.brokers import redis
from owl_celery.brokers.base import Owner, Permit
from owl_celery.brokers.poison import embedded_in, fail_task
from owl_celery.brokers.redis import RedisBroker, open_redis_broker
from tests.routed import numbers_in, send_routed

pytestmark = pytest.mark.integration

DEAD, LIVE = "gpu.a.0", "gpu.a.1"
CLAIM = "owl:test:claim:gpu.a.0"
NOBODYS = {DEAD: Owner(CLAIM)}


class Held:
    """Consumers that take messages and die, or live."""

    def __init__(self, app: Celery) -> None:
        self._connection = app.connection_for_read()
        self.channel = self._connection.default_channel

    def take(self, queue: str) -> Message:
        message: Message = self.channel.message_to_python(self.channel.basic_get(queue))
        # A consumer notes what it was given; basic_get does not.
        self.channel.qos.append(message, message.delivery_tag)
        return message

    def close(self) -> None:
        # Whoever closes hands its messages back; these are to look like those of the dead.
        self.channel.qos._delivered.clear()
        self._connection.release()


@pytest.fixture
def app(redis_url: str) -> Iterator[Celery]:
    """An application on the real Redis."""
    app = Celery("proj", broker=redis_url, set_as_current=False)
    yield app
    app.close()


@pytest.fixture
def broker(app: Celery) -> Iterator[RedisBroker]:
    """Its broker."""
    broker = open_redis_broker(app)
    yield broker
    broker.close()


@pytest.fixture
def held(app: Celery) -> Iterator[Held]:
    """Consumers of the same application."""
    held = Held(app)
    yield held
    held.close()


@pytest.fixture
def client(redis_url: str) -> Iterator[Redis]:
    """The same Redis."""
    with Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


def test_what_a_dead_worker_held_is_served_next_and_what_a_live_one_holds_stays(
    app: Celery, broker: RedisBroker, held: Held, client: Redis
) -> None:
    send_routed(app, DEAD, 1, 2, 3)
    send_routed(app, LIVE, 4)
    tag = held.take(DEAD).delivery_tag
    held.take(LIVE)
    assert client.hlen("unacked") == 2

    assert broker.restore(NOBODYS) == 1

    assert numbers_in(client, DEAD) == [1, 2, 3]
    assert client.hlen("unacked") == client.zcard("unacked_index") == 1
    message = json.loads(str(client.lindex(DEAD, -1)))
    assert message["properties"]["delivery_info"]["redelivered"] is True
    # A worker that was only cut off cannot acknowledge what another has now.
    again = held.take(DEAD)
    held.channel.qos._remove_from_indices(tag).execute()
    assert again.delivery_tag != tag
    assert client.hexists("unacked", again.delivery_tag)
    assert broker.restore(NOBODYS) == 1
    assert broker.restore(NOBODYS) == 0


def test_of_a_queue_that_others_serve_goes_back_what_a_dead_worker_held(
    app: Celery, broker: RedisBroker, held: Held, client: Redis
) -> None:
    send_routed(app, "celery", 1, 2, 3)
    ids = [held.take("celery").headers["id"] for _ in range(3)]
    delivered = dict(client.zscan_iter("unacked_index"))
    now = max(delivered.values())
    # The second is another worker's since, and the third's is not dead.
    orphans = {ids[0]: now + 1.0, ids[1]: now - 60.0, "t9": now}
    leads_no_more = Permit("owl:test:lease:controller", "7:token", "owl:test:moves", 7)
    client.set(leads_no_more.lease_key, "8:other")
    assert broker.restore({}, leads_no_more, orphans=orphans) == 0

    assert broker.restore({}, orphans=orphans) == 1

    assert numbers_in(client, "celery") == [1]
    assert client.hlen("unacked") == client.zcard("unacked_index") == 2
    assert held.take("celery").delivery_tag not in delivered


def test_it_is_the_same_message_with_its_priority(
    app: Celery, broker: RedisBroker, held: Held, client: Redis
) -> None:
    text = '"delivery_info": {"exchange": "", "routing_key": "x"}, "delivery_tag": "y"'
    headers = {"big": 2**63 + 1, "none": [], "text": text, "delivery_info": {"nested": 1}}
    app.send_task("proj.work", (2**70,), queue=DEAD, headers=headers, priority=9)
    name = f"{DEAD}\x06\x169"
    before = json.loads(str(client.lindex(name, 0)))
    held.take(DEAD)
    assert broker.restore(NOBODYS) == 1
    after_text = str(client.lindex(name, 0))
    after = json.loads(after_text)
    assert str(2**63 + 1) in after_text
    tag = after["properties"].pop("delivery_tag")
    assert tag.startswith(before["properties"].pop("delivery_tag") + ".r1.")
    assert after["properties"]["delivery_info"].pop("redelivered")
    assert after == before


def deliveries(client: Redis, eta: datetime | None, held: Held, broker: RedisBroker) -> str:
    """The count in the tag of a task that two workers held when they died."""
    for _ in range(2):
        held.take(DEAD)
        assert broker.restore(NOBODYS) == 1
    message = json.loads(str(client.lindex(DEAD, 0)))
    return str(message["properties"]["delivery_tag"]).split(".")[1]


@pytest.mark.parametrize(("hours", "count"), [(None, "r2"), (-1, "r2"), (1, "r0")])
def test_the_tag_counts_the_tries_but_not_the_wait_for_an_eta(
    app: Celery, broker: RedisBroker, held: Held, client: Redis, hours: int | None, count: str
) -> None:
    eta = None if hours is None else datetime.now(UTC) + timedelta(hours=hours)
    send_routed(app, DEAD, 1, eta=eta)
    assert deliveries(client, eta, held, broker) == count


def test_a_claimed_queue_is_not_touched_but_by_its_owner(
    app: Celery, broker: RedisBroker, held: Held, client: Redis
) -> None:
    send_routed(app, DEAD, 1)
    held.take(DEAD)
    client.set(CLAIM, "gpu0@a owner")
    assert broker.restore(NOBODYS) == 0
    assert broker.restore({DEAD: Owner(CLAIM, "gpu0@a another")}) == 0
    assert broker.restore({DEAD: Owner(CLAIM, "gpu0@a owner")}) == 1


def test_a_controller_that_leads_no_more_hands_nothing_back(
    app: Celery, broker: RedisBroker, held: Held, client: Redis
) -> None:
    send_routed(app, DEAD, 1)
    held.take(DEAD)
    permit = Permit("owl:test:lease:controller", "7:token", "owl:test:moves", 7)
    client.set(permit.lease_key, "8:other")
    assert broker.restore(NOBODYS, permit) == 0
    client.delete(permit.lease_key)
    client.set(permit.fence_key, 8)
    assert broker.restore(NOBODYS, permit) == 0
    assert broker.restore(NOBODYS, permit._replace(fence=9)) == 1


def test_many_are_looked_through_and_strange_text_stays(
    app: Celery, broker: RedisBroker, held: Held, client: Redis
) -> None:
    send_routed(app, DEAD, *range(200))
    send_routed(app, LIVE, *range(200))
    for _ in range(200):
        held.take(DEAD)
        held.take(LIVE)
    strange = {
        "a": "",
        "b": "no JSON",
        "c": '[{}, "", "gpu.a.1"]',
        "d": ', "gpu.a.0"]',
        "e": '[no JSON, "", "gpu.a.0"]',
    }
    for tag, text in strange.items():
        client.hset("unacked", tag, text)
    assert broker.restore(NOBODYS) == 200
    assert numbers_in(client, DEAD) == list(range(200)) or client.llen(DEAD) == 200
    assert client.hmget("unacked", list(strange)) == list(strange.values())
    assert client.hlen("unacked") == 205
    # A message of some other kind goes back as it is.
    client.hset("unacked", "f", '[{"x": 1}, "", "gpu.a.0"]')
    assert broker.restore(NOBODYS) == 1
    assert client.lindex(DEAD, -1) == '{"x": 1}'


def test_a_task_that_kills_three_workers_fails_with_a_reason(
    app: Celery, broker: RedisBroker, held: Held, client: Redis, redis_url: str
) -> None:
    app.conf.result_backend = redis_url

    @app.task(name="proj.deadly", shared=False)
    def deadly(_: int) -> None:
        """Run nowhere here."""

    told: list[str] = []

    def listen(sender: Any, task_id: str, einfo: Any, **_: Any) -> None:
        told.append(f"{sender.name} {task_id} {einfo.type.__name__}")

    signals.task_failure.connect(listen)
    errback = app.signature("proj.after", queue="errbacks")
    result = app.send_task("proj.deadly", (1,), queue=DEAD, link_error=errback)
    for _ in range(2):
        held.take(DEAD)
        assert broker.restore(NOBODYS, max_losses=3) == 1
    send_routed(app, DEAD, 2)
    held.take(DEAD)
    held.take(DEAD)

    assert broker.restore(NOBODYS, max_losses=3) == 1

    with pytest.raises(WorkerLostError, match="died 3 times"):
        result.get(timeout=5)
    assert numbers_in(client, DEAD) == [2]
    assert (client.hlen("unacked"), client.zcard("unacked_index")) == (0, 0)
    assert client.llen("errbacks") == 1
    assert told == [f"proj.deadly {result.id} WorkerLostError"]


@pytest.mark.parametrize("hangs", [False, True])
def test_where_its_result_cannot_be_stored_it_is_not_forgotten(
    app: Celery, held: Held, client: Redis, monkeypatch: pytest.MonkeyPatch, hangs: bool
) -> None:
    monkeypatch.setattr(redis, "GIVE_UP_SECONDS", 0.05)
    is_over = threading.Event()

    def fail(_: str, __: int) -> None:
        if not hangs:
            raise OSError("The result backend is away.")
        is_over.wait(10.0)

    broker = RedisBroker(app.connection_for_read, fail)
    send_routed(app, DEAD, 1)
    held.take(DEAD)
    assert broker.restore(NOBODYS, max_losses=1) == 0
    assert client.hlen("unacked") == client.zcard("unacked_index") == 1
    assert broker.trouble.startswith("The result backend hangs" if hangs else "The result backend")
    is_over.set()
    broker.close()


def test_a_hanging_backend_costs_one_round_its_time_and_loses_nothing(
    app: Celery, held: Held, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis, "GIVE_UP_SECONDS", 0.2)
    is_over = threading.Event()
    asked: list[str] = []

    def fail(text: str, __: int) -> None:
        asked.append(text)
        is_over.wait(10.0)

    broker = RedisBroker(app.connection_for_read, fail)
    send_routed(app, DEAD, 1, 2, 3)
    for _ in range(3):
        held.take(DEAD)
    for _ in range(2):
        assert broker.restore(NOBODYS, max_losses=1) == 0
        assert broker.has_more
    assert len(asked) == 1
    assert client.hlen("unacked") == 3

    (hanging,) = [t for t in threading.enumerate() if t.name == "owl-give-up"]
    is_over.set()
    hanging.join(10.0)
    monkeypatch.setattr(redis, "GIVE_UP_SECONDS", 10.0)
    broker.restore(NOBODYS, max_losses=1)
    assert not broker.has_more
    assert not broker.trouble
    assert len(asked) == len(set(asked)) == 3
    assert client.hlen("unacked") == client.zcard("unacked_index") == 0
    broker.close()


def test_a_byte_that_is_no_text_does_not_keep_the_others(
    app: Celery, held: Held, client: Redis
) -> None:
    given_up: list[str] = []
    broker = RedisBroker(app.connection_for_read, lambda text, _: given_up.append(text))
    send_routed(app, DEAD, 1)
    held.take(DEAD)
    entry = b'[{"headers": {"id": "t\xff"}}, "", "gpu.a.0"]'
    client.hset("unacked", "odd", entry)
    broker.restore(NOBODYS, max_losses=1)
    assert len(given_up) == 2
    assert client.hlen("unacked") == 0
    broker.close()


def test_what_is_no_json_is_not_read(app: Celery) -> None:
    class Deadly:
        def __reduce__(self) -> tuple[object, ...]:
            return pytest.fail, ("It was read.",)

    body = base64.b64encode(pickle.dumps(Deadly())).decode()
    message = {
        "body": body,
        "content-type": "application/x-python-serialize",
        "content-encoding": "binary",
        "headers": {"id": "t", "task": "proj.deadly"},
        "properties": {"body_encoding": "base64"},
    }
    assert embedded_in(message) == {}
    fail_task(app, json.dumps(message), 3)
