"""CPU time of one decision, and of a numpy argmin over as many queues beside it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

import numpy as np

from owl_celery.fleet import Fleet
from owl_celery.policies.base import Policy
from owl_celery.simulate import Instance, gavel_table, make_contender
from owl_celery.types import Outcome, TaskView, TryState

DECISIONS: Final = 2_000
ROUNDS: Final = 5
SAMPLES: Final = 20


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU seconds; the best of several rounds, since what disturbs only adds."""

    queues: int
    decision_seconds: float
    argmin_seconds: float


def measure(name: str, queues: int, seed: int = 0) -> Cost:
    """Time a policy that knows every pair of Gavel's table, at a random backlog."""
    share = queues // 3
    gpus = {"k80": queues - 2 * share, "p100": share, "v100": share}
    instance = Instance.draw(gavel_table(), gpus, seed)
    policy = make_contender(name, instance, instance.capacity.rate, seed)
    if not isinstance(policy, Policy):
        raise TypeError(f"{name} takes no decision when a task arrives")
    rng = np.random.default_rng(seed)
    fleet = instance.fleet()
    now = _teach(policy, instance, fleet, rng)
    fleet.waiting_count[:] = rng.poisson(2.0, queues)
    fleet.waiting_seconds[:] = fleet.waiting_count * rng.uniform(0.5, 2.0, queues)
    fleet.running_seconds[:, 0] = rng.uniform(0.5, 2.0, queues)
    fleet.running_since[:, 0] = now - rng.uniform(0.0, 1.0, queues)
    policy.tick(fleet, now)
    tasks = [TaskView(str(name)) for name in rng.choice(instance.table.types, DECISIONS)]
    scores = rng.uniform(size=queues)
    decision, argmin = [], []
    for _ in range(ROUNDS):
        began = time.thread_time()
        for task in tasks:
            policy.choose(task, fleet, now)
        decision.append((time.thread_time() - began) / DECISIONS)
        began = time.thread_time()
        for _ in tasks:
            np.argmin(scores)
        argmin.append((time.thread_time() - began) / DECISIONS)
    return Cost(queues, min(decision), min(argmin))


def _teach(policy: Policy, instance: Instance, fleet: Fleet, rng: np.random.Generator) -> float:
    """Show the policy each type on each GPU model; returns the time this has taken."""
    queue_of = {fleet.gpu_model(row): name for row, name in enumerate(fleet.names)}
    now = 0.0
    for sample in range(SAMPLES):
        for kind, name in enumerate(instance.table.types):
            now += 1.0 / instance.capacity.rate
            policy.arrived(TaskView(name), now)
            for column, model in enumerate(instance.table.models):
                seconds = float(instance.table.seconds[kind, column] * rng.uniform(0.8, 1.2))
                outcome = Outcome(
                    task_id=f"{sample}.{kind}.{column}",
                    decision_id="",
                    attempt=0,
                    task_type=name,
                    size=1.0,
                    queue=queue_of[model],
                    worker_id=queue_of[model],
                    gpu_model=model,
                    state=TryState.SUCCESS,
                    service_seconds=seconds,
                    finished_at=now,
                )
                policy.learn_one(outcome, now)
        policy.tick(fleet, now)
    return now
