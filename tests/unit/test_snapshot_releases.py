"""What a controller publishes is read by producers of an older and of a newer release."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from benchmarks import scale
from owl_celery.fleet import Fleet
from owl_celery.keys import Keys
from owl_celery.policies.base import Policy
from owl_celery.policies.expected_completion import ExpectedCompletion
from owl_celery.policies.priced_q import PricedQ
from owl_celery.records import Knowledge
from owl_celery.redis_state import RedisState
from owl_celery.settings import Settings
from owl_celery.sync import ProducerSync
from owl_celery.types import Outcome, QueueView, TaskView, TryState
from tests.published import Publisher

KINDS = (ExpectedCompletion, PricedQ)
NEEDED = ("completed", "types", "models", "service", "count", "prices")
"""What every release since the first has written; all else may be missing."""

GPUS = {"gpu.a.0": "V100", "gpu.a.1": "K80", "gpu.a.2": "V100"}


def a_fleet() -> Fleet:
    return Fleet([*GPUS], [*GPUS.values()])


@cache
def snapshot_of(kind: type[ExpectedCompletion]) -> dict[str, Any]:
    """What a controller that has learned publishes, as it arrives."""
    policy, fleet = kind(seed=1), a_fleet()
    for number in range(120):
        queue = [*GPUS][number % 3]
        policy.learn_one(
            Outcome(
                task_id=str(number),
                decision_id="d",
                attempt=0,
                task_type=f"type-{number % 4}",
                size=1.0,
                queue=queue,
                worker_id="w@a",
                gpu_model=GPUS[queue],
                state=TryState.SUCCESS if number % 11 else TryState.FAILURE,
                service_seconds=(4.0 if GPUS[queue] == "K80" else 1.0) * (1 + number % 4),
                finished_at=0.0,
                peak_memory_bytes=10**9,
                model="llama" if number % 4 == 3 else None,
            ),
            float(number),
        )
        policy.arrived(TaskView(f"type-{number % 4}"), float(number))
        if number % 20 == 0:
            policy.tick(fleet, float(number))
    snapshot: dict[str, Any] = json.loads(json.dumps(policy.snapshot()))
    return snapshot


def predictions(policy: Policy) -> list[float | None]:
    return [
        policy.predict_seconds(TaskView(f"type-{kind}"), gpu_model)
        for kind in range(5)
        for gpu_model in ("V100", "K80", "unseen")
    ]


def reading(kind: type[ExpectedCompletion], snapshot: Mapping[str, Any]) -> ExpectedCompletion:
    policy = kind(exploration_rate=0.0, seed=1)
    policy.apply_snapshot(snapshot)
    return policy


@pytest.mark.parametrize("kind", KINDS)
def test_a_snapshot_of_an_older_release_lacks_what_was_added_since(
    kind: type[ExpectedCompletion],
) -> None:
    whole = snapshot_of(kind)
    expected = predictions(reading(kind, whole))
    optional = [key for key in whole if key not in NEEDED]
    assert optional
    for missing in (*([key] for key in optional), optional):
        older = {key: value for key, value in whole.items() if key not in missing}
        policy = reading(kind, older)
        assert policy.ready
        assert predictions(policy) == expected
        assert policy.choose(TaskView("type-1"), a_fleet(), 200.0).gpu_model == "V100"


@pytest.mark.parametrize("kind", KINDS)
def test_a_snapshot_of_a_newer_release_has_more_at_every_level(
    kind: type[ExpectedCompletion],
) -> None:
    whole = snapshot_of(kind)
    newer = {
        key: {**value, "added": {"more": [1, None]}}
        if key in ("prices", "slope", "warm") and isinstance(value, dict)
        else value
        for key, value in whole.items()
    }
    newer["added"] = [{"more": "still"}]
    read, plain = reading(kind, newer), reading(kind, whole)
    assert predictions(read) == predictions(plain)
    for number in range(20):
        task = TaskView(f"type-{number % 5}")
        assert read.choose(task, a_fleet(), 200.0) == plain.choose(task, a_fleet(), 200.0)


@pytest.fixture
def sync(redis_url: str) -> Iterator[ProducerSync]:
    """The part of a producer that reads what is published; its thread does not run."""
    settings = Settings.load(redis_url=redis_url, namespace="releases", seed=1)
    state = RedisState(redis_url, Keys("releases"))
    sync = ProducerSync(state, settings)
    yield sync
    sync.close()


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "no JSON",
        '{"version": -1}',
        '{"version": 99, "policy": "q_learning", "snapshot": {"types": []}}',
        '{"version": 99, "policy": "q_learning", "snapshot": {"service": [[-1]]}}',
        '{"version": 99, "policy": "q_learning", "snapshot": []}',
    ],
)
def test_a_producer_keeps_the_former_snapshot_when_a_damaged_one_is_published(
    sync: ProducerSync, redis_url: str, damage: str
) -> None:
    state = RedisState(redis_url, Keys("releases"))
    publisher = Publisher(state)
    queues = [QueueView(name, model) for name, model in GPUS.items()]
    publisher.publish(queues, "q_learning", snapshot_of(PricedQ))
    sync.flush()
    before = sync.snapshot()
    assert before is not None
    expected = predictions(before.policies[0])
    assert None not in expected
    publisher.publish(queues, "q_learning", {"completed": 1})
    state.client.set(state.keys.knowledge, damage)
    sync.flush()
    after = sync.snapshot()
    assert after is not None
    assert after.policies[0].ready
    assert predictions(after.policies[0]) == expected
    publisher.publish(queues, "q_learning", snapshot_of(PricedQ) | {"completed": 7})
    sync.flush()
    cured = sync.snapshot()
    assert cured is not None
    assert cured.policy_version != after.policy_version


def test_knowledge_is_one_text_whether_or_not_its_snapshot_was_text_before() -> None:
    knowledge = Knowledge(7, 'a "policy"', {"types": ["ä", "b"], "x": 1.5})
    assert json.loads(knowledge.encode()) == {
        "version": 7,
        "policy": 'a "policy"',
        "snapshot": {"types": ["ä", "b"], "x": 1.5},
    }


def test_the_measurement_of_sizes_runs_and_fills_its_page(tmp_path: Path) -> None:
    page = tmp_path / "scale.md"
    page.write_text(f"before\n{scale.MARKS[0]}\nold\n{scale.MARKS[1]}\nafter\n")
    row = scale.measure(4, 3, 2, repetitions=1)
    assert 0 < row.view_bytes < row.knowledge_bytes < row.state_bytes
    scale.fill(page, [row])
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| 4 queues, 3 types, 2 GPU models |" in text
