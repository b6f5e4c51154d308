"""Hashes that producers only add to stay bounded, and nothing added is lost, on a real Redis."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from owl_celery.controller.arrivals import MAX_IDLE_TYPES, Arrivals
from owl_celery.controller.idle import DROPPED_AT_ONCE, KEEP_IDLE_SECONDS, IdleFields
from owl_celery.keys import Keys
from owl_celery.redis_state import RedisState

pytestmark = pytest.mark.integration

HOUR = KEEP_IDLE_SECONDS


@pytest.fixture
def state(redis_url: str) -> RedisState:
    return RedisState(redis_url, Keys("test"))


def fields(state: RedisState, key: str) -> dict[str, str]:
    reply: Any = state.client.hgetall(key)
    return dict(reply)


def totals(state: RedisState, key: str) -> dict[str, int]:
    return {name: int(total) for name, total in fields(state, key).items()}


def test_idle_fields_go_after_an_hour_and_from_every_hash(state: RedisState) -> None:
    idle = IdleFields(state, ["count", "seconds"], max_idle=10)
    for key in ("count", "seconds"):
        state.client.hset(key, mapping={"used": 1, "unused": 1, "late": 1})
    assert idle.drop(totals(state, "count"), {"used", "late"}, 0.0) == set()
    assert idle.drop(totals(state, "count"), {"late"}, HOUR / 2) == set()
    assert idle.drop(totals(state, "count"), (), HOUR + 1.0) == {"used", "unused"}
    assert fields(state, "count") == fields(state, "seconds") == {"late": "1"}


def test_beyond_the_bound_the_longest_idle_and_then_the_least_used_go(state: RedisState) -> None:
    idle = IdleFields(state, ["count"], max_idle=2)
    state.client.hset("count", mapping={"a": 9, "b": 1, "c": 5, "d": 7})
    assert idle.drop(totals(state, "count"), {"a", "b", "c", "d"}, 0.0) == set()
    assert idle.drop(totals(state, "count"), {"b"}, 1.0) == {"c"}
    assert idle.drop(totals(state, "count"), (), 2.0) == {"d"}


def test_a_field_that_was_added_to_since_it_was_read_stays(state: RedisState) -> None:
    idle = IdleFields(state, ["count"], max_idle=0)
    state.client.hset("count", mapping={"a": 1, "b": 1})
    read = totals(state, "count")
    state.client.hincrby("count", "a", 1)
    assert idle.drop(read, (), 0.0) == {"b"}
    assert fields(state, "count") == {"a": "2"}


def test_a_flood_of_names_is_worked_off(state: RedisState) -> None:
    idle = IdleFields(state, ["count"], max_idle=100)
    state.client.hset("count", mapping={f"pod-{n}": 1 for n in range(3 * DROPPED_AT_ONCE)})
    for _ in range(4):
        idle.drop(totals(state, "count"), (), 0.0)
    assert len(fields(state, "count")) == 100


def test_ten_thousand_types_are_kept_for_an_hour(state: RedisState) -> None:
    key, arrivals = state.keys.arrivals, Arrivals(state)
    state.client.hset(key, mapping={f"type-{n}": n + 1 for n in range(MAX_IDLE_TYPES + 500)})
    assert arrivals.read(0.0) == []
    assert totals(state, key).keys() == {f"type-{n}" for n in range(500, MAX_IDLE_TYPES + 500)}, (
        "The least used go first."
    )
    state.client.hincrby(key, "type-700", 2)
    assert [name for name, _ in arrivals.read(HOUR - 1.0)] == ["type-700", "type-700"]
    for hours in range(1, MAX_IDLE_TYPES // DROPPED_AT_ONCE + 1):
        arrivals.read(HOUR + 100.0 * hours)
    assert totals(state, key) == {"type-700": 703}


def test_every_arrival_is_told_once_while_counters_start_over(
    state: RedisState, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop, rng = IdleFields.drop, random.Random(4)
    added: Counter[str] = Counter()
    told: Counter[str] = Counter()

    def add() -> None:
        for _ in range(rng.randrange(4)):
            name = f"type-{rng.randrange(30)}"
            state.client.hincrby(state.keys.arrivals, name, 1)
            added[name] += 1

    def drop_late(self: IdleFields, *arguments: Any) -> set[str]:
        add()  # Between reading and dropping.
        return drop(self, *arguments)

    monkeypatch.setattr(IdleFields, "drop", drop_late)
    monkeypatch.setattr("owl_celery.controller.arrivals.MAX_IDLE_TYPES", 3)
    arrivals = Arrivals(state)
    assert arrivals.read(0.0) == []
    for now in range(1, 200):
        add()
        told.update(name for name, _ in arrivals.read(float(now)))
    monkeypatch.undo()
    told.update(name for name, _ in arrivals.read(1_000.0))
    assert told == added
    assert len(fields(state, state.keys.arrivals)) < 12


def test_counters_that_redis_has_lost_count_from_nothing(state: RedisState) -> None:
    arrivals = Arrivals(state)
    state.client.hset(state.keys.arrivals, "train", 100)
    arrivals.read(0.0)
    state.client.delete(state.keys.arrivals)
    state.client.hincrby(state.keys.arrivals, "train", 2)
    assert [name for name, _ in arrivals.read(1.0)] == ["train", "train"]
