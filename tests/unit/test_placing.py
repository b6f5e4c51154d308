"""Where the controller puts tasks that must leave their queue."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from owl_celery.brokers.base import BlindBroker, Permit, Place
from owl_celery.controller import placing
from owl_celery.controller.load import Load
from owl_celery.controller.placing import Emptying, Placer
from owl_celery.errors import BrokerError
from owl_celery.policies import make_policy
from owl_celery.policies.shortest_queue import ShortestQueue
from owl_celery.records import Knowledge
from owl_celery.settings import Settings
from owl_celery.types import Decision, Outcome, TryState
from owl_celery.wire import TaskHeader

SETTINGS = Settings.load(seed=1, exploration_rate=0.0)
PERMIT = Permit("lease", "7:token", "moves", 7)


def load(*gpu_models: str, closed: tuple[int, ...] = ()) -> Load:
    """Idle queues ``q0``, ``q1``, ... of these models."""
    count = len(gpu_models)
    return Load(
        names=[f"q{row}" for row in range(count)],
        gpu_models=list(gpu_models),
        concurrency=[1] * count,
        waiting_count=[0] * count,
        waiting_seconds=[0.0] * count,
        closed=list(closed),
        free_memory_bytes=[None] * count,
    )


def header(**values: Any) -> TaskHeader:
    return TaskHeader(
        "d1",
        "q9",
        **{"algorithm": "q_learning", "task_type": "train", "published_at": 0.0, **values},
    )


def knowledge() -> str:
    """A policy that knows V100 to be ten times as fast as K80."""
    policy = make_policy(SETTINGS)
    for number in range(40):
        for model, seconds in (("V100", 1.0), ("K80", 10.0)):
            policy.learn_one(
                Outcome(
                    f"t{number}", f"d{model}", 0, "train", 1.0, "q0", "gpu0@a", model,
                    TryState.SUCCESS, seconds, 0.0,
                ),
                float(number),
            )  # fmt: skip
    return Knowledge(1, policy.name, policy.snapshot()).encode()


def test_each_task_counts_for_the_next() -> None:
    placer = Placer(SETTINGS, "celery")
    placer.prepare(load("V100", "V100", "V100", closed=(1,)), knowledge(), 0.0)

    assert Counter(placer.place(header()) for _ in range(10)) == {"q0": 5, "q2": 5}


def test_the_faster_model_is_preferred() -> None:
    placer = Placer(SETTINGS, "celery")
    placer.prepare(load("K80", "V100"), knowledge(), 0.0)

    assert [placer.place(header()) for _ in range(5)] == ["q1"] * 5
    assert placer.place(header(tried=("V100",))) == "q0"


def test_without_knowledge_the_shortest_queue_takes_it() -> None:
    placer = Placer(SETTINGS, "celery")
    placer.prepare(load("K80", "K80"), "", 0.0)

    assert Counter(placer.place(header()) for _ in range(4)) == {"q0": 2, "q1": 2}
    placer.prepare(load("K80", "K80"), "senseless", 0.0)
    assert placer.place(header()) in ("q0", "q1")


def test_without_an_open_queue_it_is_the_default_queue() -> None:
    placer = Placer(SETTINGS, "default")
    placer.prepare(load("K80", closed=(0,)), "", 0.0)

    assert placer.place(header()) == "default"


@pytest.mark.parametrize("algorithm", ["user", "celery"])
def test_what_we_did_not_route_stays(algorithm: str) -> None:
    placer = Placer(SETTINGS, "celery")
    placer.prepare(load("K80"), "", 0.0)

    assert placer.place(header(algorithm=algorithm)) is None


def test_a_policy_that_fails_is_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    broken = Knowledge(1, "expected_completion", {"estimates": "senseless"}).encode()
    placer = Placer(SETTINGS, "celery")
    placer.prepare(load("K80"), broken, 0.0)

    assert placer.place(header()) == "q0"


@pytest.mark.parametrize(
    "decision",
    [
        Decision("gone", "K80", "own"),
        Decision("q1", "K80", "own"),
        Decision("q0", "K80", "own", service_seconds=float("nan")),
        Decision("q0", "K80", "own", service_seconds="2"),  # type: ignore[arg-type]
        None,
    ],
)
def test_a_decision_that_makes_no_sense_is_passed_over(
    decision: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    placer = Placer(SETTINGS, "celery")
    placer.prepare(load("K80", "K80", closed=(1,)), "", 0.0)
    monkeypatch.setattr(ShortestQueue, "choose", lambda *_: decision)

    assert [placer.place(header()) for _ in range(3)] == ["celery"] * 3
    assert len(caplog.records) == 1


def test_what_one_round_empties_is_bounded_and_every_queue_has_its_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(placing, "LOOKED_AT", 3)
    looked: list[tuple[str, int]] = []

    class Stuck(BlindBroker):
        """Holds only what its senders have put there."""

        def redirect(
            self, source: str, place: Place, limit: int, permit: Permit | None = None
        ) -> int:
            looked.append((source, limit))
            return 0

    emptying = Emptying(Stuck(), Placer(SETTINGS, "celery"), "drained")
    fleet = load("V100", "V100", "V100", closed=(0, 1, 2))
    fleet.waiting_count = [5, 2, 2]
    for now in (10.0, 20.0, 30.0):
        due = emptying.due(frozenset(fleet.names), fleet, now)
        emptying.empty(due, fleet, "", now, PERMIT)
    assert sorted({name for name, _ in looked}) == ["q0", "q1", "q2"]
    assert max(limit for _, limit in looked) == 3


def test_a_broker_that_fails_is_not_asked_in_every_round() -> None:
    class Failing(BlindBroker):
        """Does not answer."""

        def redirect(
            self, source: str, place: Place, limit: int, permit: Permit | None = None
        ) -> int:
            raise BrokerError("It does not answer.")

    emptying = Emptying(Failing(), Placer(SETTINGS, "celery"), "drained")
    fleet = load("V100", "V100", closed=(0, 1))
    fleet.waiting_count = [1, 1]
    drained = frozenset(fleet.names)
    due = emptying.due(drained, fleet, 10.0)
    assert sorted(due) == ["q0", "q1"]
    with pytest.raises(BrokerError):
        emptying.empty(due, fleet, "", 10.0, PERMIT)

    assert not emptying.due(drained, fleet, 10.5)
    assert sorted(emptying.due(drained, fleet, 11.5)) == ["q0", "q1"]


def test_a_queue_without_workers_is_emptied_and_where_more_waits_it_goes_on_soon() -> None:
    class Full(BlindBroker):
        """Holds more than one round looks at, none of it ours to move."""

        has_unseen = True

        def redirect(
            self, source: str, place: Place, limit: int, permit: Permit | None = None
        ) -> int:
            assert (source, permit) == ("gone", PERMIT)
            return 0

    emptying = Emptying(Full(), Placer(SETTINGS, "celery"), "drained")
    fleet, drained = load("V100"), frozenset({"gone"})
    assert emptying.due(drained, fleet, 10.0) == ["gone"]
    emptying.empty(["gone"], fleet, "", 10.0, PERMIT)
    assert emptying.due(drained, fleet, 10.1) == []
    assert emptying.due(drained, fleet, 10.5) == ["gone"]
