"""Tabular Q-learning as one would first write it: a warning, not a rival."""

from __future__ import annotations

from collections import defaultdict, deque
from typing import ClassVar, Final

import numpy as np

from owl_celery.fleet import Fleet
from owl_celery.policies.base import Policy
from owl_celery.policies.eligible import open_mask, pick_least
from owl_celery.simulate.instance import Instance
from owl_celery.types import Decision, Outcome, TaskView

LEARNING_RATE: Final = 0.1
EXPLORATION_RATE: Final = 0.2
DISCOUNT: Final = 0.9
BUCKETS: Final = (0.5, 1.5, 3.0)
"""Bounds of the load buckets, in tasks per GPU."""


class NaiveQ(Policy):
    """State: task type and bucket of the total load; action: a queue; reward: -response time."""

    name: ClassVar[str] = "naive_q"

    def __init__(self, instance: Instance, rate: float, seed: int = 0) -> None:
        fleet = instance.fleet()
        self._random = np.random.default_rng([seed, 5])
        self._kind = {name: kind for kind, name in enumerate(instance.table.types)}
        self._row = {name: row for row, name in enumerate(fleet.names)}
        self._values = np.zeros((len(self._kind), len(BUCKETS) + 1, len(fleet)))
        self._bucket = 0
        self._pending: defaultdict[tuple[str, str], deque[tuple[int, float]]] = defaultdict(deque)

    def choose(self, task: TaskView, fleet: Fleet, now: float) -> Decision:
        mask = open_mask(task, fleet)
        load = float(fleet.waiting_count.sum() + fleet.running_count().sum()) / len(fleet)
        self._bucket = int(np.searchsorted(BUCKETS, load))
        explored = self._random.random() < EXPLORATION_RATE
        if explored:
            row = int(self._random.choice(np.flatnonzero(mask)))
        else:
            values = self._values[self._kind[task.task_type], self._bucket]
            row, _ = pick_least(np.where(mask, -values, np.inf), self._random)
        queue = fleet.names[row]
        self._pending[queue, task.task_type].append((self._bucket, now))
        return Decision(queue, fleet.gpu_model(row), self.name, explored=bool(explored))

    def learn_one(self, outcome: Outcome, now: float) -> None:
        # Tasks of one type leave a queue in the order in which they joined it.
        bucket, chosen_at = self._pending[outcome.queue, outcome.task_type].popleft()
        kind, row = self._kind[outcome.task_type], self._row[outcome.queue]
        following = float(self._values[kind, self._bucket].max())
        target = -(now - chosen_at) + DISCOUNT * following
        value = self._values[kind, bucket, row]
        self._values[kind, bucket, row] = value + LEARNING_RATE * (target - value)
