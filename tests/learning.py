"""A stream of outcomes and a policy that learns from it, for tests of the tracker and the store."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, ClassVar

from owl_celery.errors import NoOpenQueueError, StateError
from owl_celery.fleet import Fleet
from owl_celery.policies.base import Policy
from owl_celery.types import Decision, Outcome, TaskView, TryState

GPU_MODELS = ("K80", "P100", "V100")
STARTED_AT = 1_750_000_000.0


def outcome(number: int = 0, **values: Any) -> Outcome:
    """One successful try, the ``number``-th of a stream; ``values`` say what is different."""
    usual: dict[str, Any] = {
        "task_id": f"task-{number}",
        "decision_id": "d",
        "attempt": 0,
        "task_type": "train",
        "size": 1.0,
        "queue": "gpu.a.0",
        "worker_id": "gpu0@a",
        "gpu_model": "V100",
        "state": TryState.SUCCESS,
        "service_seconds": 2.0,
        "finished_at": STARTED_AT + number,
    }
    return Outcome(**usual | values)


def stream(count: int, seed: int = 0, task_types: int = 7) -> list[Outcome]:
    """Outcomes of a busy site, the same for the same seed: every field varies."""
    rng = random.Random(seed)
    found = []
    for number in range(count):
        gpu = rng.randrange(12)
        state = rng.choices(list(TryState), weights=(20, 2, 2, 1, 1))[0]
        out_of_memory = state is TryState.RETRY and rng.random() < 0.5
        found.append(
            outcome(
                number,
                task_id=f"{rng.getrandbits(64):016x}",
                decision_id=f"{number:x}",
                attempt=rng.randrange(3),
                task_type=f"type-{rng.randrange(task_types)}",
                size=rng.lognormvariate(0.0, 0.3),
                queue=f"gpu.a.{gpu}",
                worker_id=f"gpu{gpu}@a",
                gpu_model=GPU_MODELS[gpu % 3],
                state=state,
                service_seconds=rng.expovariate(0.7),
                wait_seconds=None if rng.random() < 0.1 else rng.expovariate(1.3),
                predicted_seconds=None if rng.random() < 0.2 else rng.expovariate(0.7),
                algorithm=rng.choice(("counting", "celery", "user")),
                explored=rng.random() < 0.2,
                error="OutOfMemoryError" if out_of_memory else None,
                out_of_memory=out_of_memory,
                peak_memory_bytes=rng.randrange(2**40) if rng.random() < 0.5 else None,
                model="llama" if rng.random() < 0.3 else None,
            )
        )
    return found


class CountingPolicy(Policy):
    """Counts outcomes and sums noise: its state tells how often and in which order it learned."""

    name: ClassVar[str] = "counting"

    def __init__(self, seed: int = 3) -> None:
        self._random = random.Random(seed)
        self.counts: dict[str, int] = {}
        self.noise = 0.0
        self.last_now = 0.0

    def choose(self, task: TaskView, fleet: Fleet, now: float) -> Decision:
        raise NoOpenQueueError

    def predict_seconds(self, task: TaskView, gpu_model: str) -> float | None:
        return 0.5 if gpu_model == "V100" else None

    def learn_one(self, outcome: Outcome, now: float) -> None:
        self.counts[outcome.task_type] = self.counts.get(outcome.task_type, 0) + 1
        self.noise += self._random.gauss(0.0, outcome.service_seconds)
        self.last_now = now

    def state(self) -> Mapping[str, Any]:
        version, internal, gauss = self._random.getstate()
        return {
            "format": 2,
            "counts": dict(self.counts),
            "noise": self.noise,
            "random": [version, list(internal), gauss],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        if state["format"] != 2:
            raise StateError("Only format 2 can be read.")
        version, internal, gauss = state["random"]
        self._random.setstate((version, tuple(internal), gauss))
        self.counts = dict(state["counts"])
        self.noise = state["noise"]
