"""Moving single messages on a real Redis: exactly that one, once, and only by the leader."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import pytest
from celery import Celery
from redis import Redis

from owl_celery.brokers.base import Permit, Seen
from owl_celery.brokers.redis import LONGEST_MOVED_BYTES, RedisBroker, open_redis_broker
from owl_celery.controller.stealing import header_of
from tests.routed import numbers_in, send_routed

pytestmark = pytest.mark.integration

FROM, TO = "gpu.a.0", "gpu.a.1"
FEW: Final = 100
PERMIT = Permit("owl:test:lease:controller", "7:token", "owl:test:moves", 7)


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
def client(redis_url: str) -> Iterator[Redis]:
    """The same Redis."""
    with Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


def seen_in(broker: RedisBroker, each: int = 10) -> dict[str, Seen]:
    """What may be moved from ``FROM``, by decision id."""
    found = {}
    for seen in broker.peek([FROM], each, each)[FROM]:
        header = header_of(seen.text)
        if header is not None:
            found[header.decision_id] = seen
    return found


def test_one_message_moves_and_goes_back_to_its_new_queue(
    app: Celery, broker: RedisBroker, client: Redis
) -> None:
    send_routed(app, FROM, 1, 2, 3)
    before: Any = client.lindex(FROM, 1)
    assert broker.take(FROM, seen_in(broker)["d2"], "d2", TO, PERMIT)
    assert numbers_in(client, FROM) == [1, 3]
    after: Any = client.lindex(TO, 0)
    expected = json.loads(before)
    expected["properties"]["delivery_info"] = {"exchange": "", "routing_key": TO}
    assert json.loads(after) == expected


def test_a_message_is_found_although_others_have_left_since(
    app: Celery, broker: RedisBroker, client: Redis
) -> None:
    send_routed(app, FROM, *range(6))
    seen = seen_in(broker)["d5"]
    client.rpop(FROM, 3)
    assert broker.take(FROM, seen, "d5", TO, PERMIT)
    assert (numbers_in(client, FROM), numbers_in(client, TO)) == ([3, 4], [5])
    assert not broker.take(FROM, seen, "d5", "gpu.a.2", PERMIT)
    assert not client.exists("gpu.a.2")


def test_a_message_keeps_its_priority(app: Celery, broker: RedisBroker, client: Redis) -> None:
    send_routed(app, FROM, 1, priority=0)
    send_routed(app, FROM, 2, priority=9)
    (first, last) = broker.peek([FROM], 10, 10)[FROM]
    assert (first.step, first.ahead, first.behind) == (0, 0, 1)
    assert (last.step, last.position, last.ahead, last.behind) == (3, 0, 1, 0)
    assert broker.take(FROM, last, "d2", TO, PERMIT)
    assert numbers_in(client, f"{TO}\x06\x169") == [2]


@pytest.mark.parametrize("priority", [0, 3])
def test_nothing_moves_where_something_waits(
    app: Celery, broker: RedisBroker, client: Redis, priority: int
) -> None:
    send_routed(app, FROM, 1)
    send_routed(app, TO, 2, priority=priority)
    assert not broker.take(FROM, seen_in(broker)["d1"], "d1", TO, PERMIT)
    assert numbers_in(client, FROM) == [1]


def test_only_what_we_have_routed_may_move(app: Celery, broker: RedisBroker, client: Redis) -> None:
    app.send_task("proj.work", (0,), queue=FROM)
    send_routed(app, FROM, 1, header={"algorithm": "user"})
    send_routed(app, FROM, 2, header={"algorithm": "celery"})
    send_routed(app, FROM, 3, countdown=60)
    send_routed(app, FROM, 4, shadow="x" * LONGEST_MOVED_BYTES)
    send_routed(app, FROM, 5)
    seen = broker.peek([FROM], 10, 10)[FROM]
    assert [header_of(one.text) is not None for one in seen] == [False] * 5 + [True]
    # Not even when somebody asks for it.
    for number, one in enumerate(seen[:4]):
        assert not broker.take(FROM, one, f"d{number}", TO, PERMIT)
    assert client.llen(FROM) == 6


def test_text_that_is_no_message_stays(broker: RedisBroker, client: Redis) -> None:
    strange = [
        "",
        "no JSON",
        '"eta": null "owl": {"d": "d0"}',
        '{"headers": {"eta": null, "owl": {"d": "d0", "a": "q_learning", "k": "train"}}}',
        '{"headers": {"eta": null, "owl": {"d": "d0", "a": "q_learning", "k": "train"}}, '
        '"delivery_info": {"exchange": "", "routing_key": "gpu.a.0"}}',
        '{"eta": null, "headers": 1, "owl": {"d": "d0", "a": "q_learning", "k": "train"}}',
    ]
    for text in strange:
        client.delete(FROM)
        client.lpush(FROM, text)
        (seen,) = broker.peek([FROM], 10, 10)[FROM]
        assert not broker.take(FROM, seen, "d0", TO, PERMIT)
        assert client.lrange(FROM, 0, -1) == [text]


def test_a_long_queue_shows_both_its_ends(app: Celery, broker: RedisBroker) -> None:
    send_routed(app, FROM, *range(9))
    seen = broker.peek([FROM, TO], 2, 2)
    assert seen[TO] == []
    assert [(one.position, one.behind) for one in seen[FROM]] == [(0, 8), (1, 7), (7, 1), (8, 0)]


def test_only_the_leader_moves(app: Celery, broker: RedisBroker, client: Redis) -> None:
    send_routed(app, FROM, 1, 2, 3)
    seen = seen_in(broker)
    # Where the lease is in the same Redis.
    client.set(PERMIT.lease_key, "8:other")
    assert not broker.take(FROM, seen["d1"], "d1", TO, PERMIT)
    client.set(PERMIT.lease_key, PERMIT.token)
    assert broker.take(FROM, seen["d1"], "d1", TO, PERMIT)
    # Where it is not, the one with a higher number has been here.
    client.delete(PERMIT.lease_key, TO)
    assert broker.take(FROM, seen["d2"], "d2", TO, PERMIT._replace(fence=8))
    client.delete(TO)
    assert not broker.take(FROM, seen["d3"], "d3", TO, PERMIT)
    assert numbers_in(client, FROM) == [3]


def test_a_mover_that_is_killed_at_any_moment_loses_and_doubles_nothing(
    app: Celery, client: Redis, redis_url: str
) -> None:
    count, kills = 600, 12
    send_routed(app, FROM, *range(count))
    command = [sys.executable, "-m", "tests.mover_process", redis_url, FROM, TO, str(kills)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        got: list[str] = []
        while process.poll() is None:
            # The consumer of the idle queue, and now and then that of the busy one.
            message: Any = client.brpop([TO], 0.05)
            if message:
                got.append(message[1])
            if len(got) % 4 == 3 and (text := client.rpop(FROM)):
                got.append(str(text))
            if client.llen(FROM) < FEW:
                # A fast machine moves all before the last mover has begun.
                send_routed(app, FROM, *range(count, count + FEW))
                count += FEW
        assert process.stdout is not None
        assert int(process.stdout.read()) == kills
    moved = Counter(json.loads(text)["properties"]["delivery_info"]["routing_key"] for text in got)
    for name in (TO, FROM):
        left: Any = client.lrange(name, 0, -1)
        got += left
    tags = Counter(json.loads(text)["properties"]["delivery_tag"] for text in got)
    assert len(tags) == count
    assert set(tags.values()) == {1}
    assert moved[TO] >= kills
