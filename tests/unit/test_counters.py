"""Counters of producers and workers: every count reaches Redis once, whatever is away meanwhile."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any

import pytest

from owl_celery import outbox as outbox_module
from owl_celery.counters import MAX_NAMES, Counters, RoutingTally
from owl_celery.keys import Keys
from owl_celery.metrics import DECISION_SECONDS_BOUNDS
from owl_celery.outbox import Outbox
from owl_celery.redis_address import RedisAddress
from owl_celery.redis_state import RedisState
from owl_celery.router import LearningRouter
from owl_celery.settings import Settings
from owl_celery.sync import ProducerSync
from owl_celery.types import QueueView
from owl_celery.wire import Started
from tests.published import Publisher

NOWHERE = "redis://127.0.0.1:1/0"


class Producer:
    """A producer that routes, and syncs when the test says."""

    def __init__(self, url: str) -> None:
        self.state = RedisState(url, Keys("test"))
        settings = Settings(policy="shortest_queue", sync_idle_seconds=5.0)
        self.sync = ProducerSync(self.state, settings)
        self.router = LearningRouter(self.sync, settings)
        Publisher(self.state).publish([QueueView("gpu.a.0", "V100")])
        self.sync.flush()

    def route(self, count: int = 1) -> None:
        for _ in range(count):
            self.router("train", (), {}, {})

    def told(self) -> Counters:
        return told(self.state)


def told(state: RedisState) -> Counters:
    fields: Any = state.client.hgetall(state.keys.counters)
    return Counters.read(fields)


@pytest.fixture
def producer(redis_url: str) -> Iterator[Producer]:
    producer = Producer(redis_url)
    yield producer
    producer.sync.close()


def test_decisions_and_their_durations_are_told(producer: Producer) -> None:
    producer.route(3)
    producer.sync.flush()
    producer.route()
    producer.sync.flush()
    counters = producer.told()
    assert counters.decisions == {("shortest_queue", "on"): 4}
    assert sum(counters.decision_buckets) == 4
    assert 0.0 < counters.decision_seconds < 1.0


def test_fallbacks_and_decisions_of_shadow_mode_are_told_apart(producer: Producer) -> None:
    producer.state.client.set(producer.state.keys.mode, "shadow")
    producer.sync.flush()
    producer.route(2)
    producer.sync.flush()
    counters = producer.told()
    assert counters.decisions == {("shortest_queue", "shadow"): 2}
    assert counters.fallbacks == {"shadow": 2}


def test_explicit_destinations_are_no_decisions(producer: Producer) -> None:
    producer.router("train", (), {}, {"queue": "mine"})
    producer.sync.flush()
    assert producer.told() == Counters()


def test_nothing_is_lost_while_redis_is_away(producer: Producer) -> None:
    there = producer.state.address
    producer.route(2)
    producer.state.address = RedisAddress.of_url(NOWHERE)
    producer.state.forget()
    producer.sync.flush()
    producer.route(3)
    producer.sync.flush()
    producer.state.address = there
    producer.state.forget()
    producer.sync.flush()
    assert producer.sync.failures >= 2
    assert producer.told().decisions == {("shortest_queue", "on"): 5}


def test_closing_tells_what_is_left(producer: Producer) -> None:
    producer.route(2)
    producer.sync.close()
    assert producer.told().decisions == {("shortest_queue", "on"): 2}


def test_a_hash_that_refuses_a_count_keeps_nobody_from_the_view(producer: Producer) -> None:
    keys, client = producer.state.keys, producer.state.client
    client.hset(keys.counters, "decisions|shortest_queue|on", "nonsense")
    producer.route(2)
    producer.sync.flush()
    assert producer.sync.failures == 0
    assert sum(producer.told().decision_buckets) == 2
    client.hdel(keys.counters, "decisions|shortest_queue|on")
    producer.sync.flush()
    assert producer.told().decisions == {("shortest_queue", "on"): 2}
    assert sum(producer.told().decision_buckets) == 2


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_tells_only_its_own(producer: Producer) -> None:
    producer.route(2)
    pid = os.fork()
    if pid == 0:
        producer.sync.flush()
        producer.route(3)
        producer.sync.flush()
        os._exit(0)
    os.waitpid(pid, 0)
    producer.sync.flush()
    assert producer.told().decisions == {("shortest_queue", "on"): 5}


def test_dropped_outcomes_are_told_with_the_next_that_arrives(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "CAPACITY", 10)
    monkeypatch.setattr(outbox_module, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(outbox_module, "CLOSE_SECONDS", 10.0)
    state = RedisState(NOWHERE, Keys("test"))
    outbox = Outbox(state, Settings())
    for number in range(25):
        outbox.put(Started(str(number), "", 0, "train", "gpu.a.0", "gpu0@a", "V100"))
    state.address = RedisAddress.of_url(redis_url)
    state.forget()
    outbox.close()
    assert told(state).outcomes_dropped == 15


def test_what_did_not_work_is_told_when_it_is_back(producer: Producer) -> None:
    there = producer.state.address
    producer.state.address = RedisAddress.of_url(NOWHERE)
    producer.state.forget()
    for _ in range(3):
        producer.sync.flush()
    producer.state.address = there
    producer.state.forget()
    for _ in range(2):
        producer.sync.flush()

    told = producer.told()
    assert told.opened == {("producer", "redis"): 1}
    assert told.down_seconds.keys() == told.opened.keys()


def test_a_policy_of_many_names_makes_few_fields() -> None:
    tally = RoutingTally()
    for number in range(10 * MAX_NAMES):
        tally.decisions[f"mine-{number}"] += 1
    tally.decisions["with|bar\n"] += 1
    decisions = Counters.read({k: str(v) for k, v in tally.totals().items()}).decisions
    assert len(decisions) == MAX_NAMES + 1
    assert sum(decisions.values()) == 10 * MAX_NAMES + 1
    assert ("other", "on") in decisions


def test_durations_fall_in_the_bucket_whose_bound_is_not_below() -> None:
    tally = RoutingTally()
    for seconds in (0.0, DECISION_SECONDS_BOUNDS[0], 3600.0):
        tally.observe(seconds)
    assert tally.decision_buckets[0] == 2
    assert tally.decision_buckets[-1] == 1


def test_what_makes_no_sense_is_passed_over() -> None:
    assert (
        Counters.read(
            {
                "decisions|random": "1",
                "decisions|random|sideways": "1",
                "decisions|a\nb|on": "1",
                "decisions|random|on": "-1",
                "fallbacks|no_view": "nan",
                "fallbacks|no view": "1",
                "decision_seconds|soon": "1",
                "decision_seconds|sum": "1e400",
                "outcomes_dropped": "many",
                "": "1",
            }
        )
        == Counters()
    )


def test_bounds_of_another_release_count_where_they_fit() -> None:
    counters = Counters.read({"decision_seconds|0.0001": "2", "decision_seconds|0.00007": "3"})
    assert counters.decision_buckets[DECISION_SECONDS_BOUNDS.index(100e-6)] == 2
    assert counters.decision_buckets[DECISION_SECONDS_BOUNDS.index(75e-6)] == 3
    assert math.isinf(DECISION_SECONDS_BOUNDS[-1])
