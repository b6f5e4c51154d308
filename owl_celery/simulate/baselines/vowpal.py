"""Vowpal Wabbit's contextual bandit, as a peer from outside; it needs the extra ``vowpal``."""

from __future__ import annotations

from collections import defaultdict, deque
from typing import ClassVar, Final

import numpy as np

from owl_celery.errors import InputError
from owl_celery.fleet import Fleet
from owl_celery.policies.base import Policy
from owl_celery.policies.eligible import open_mask
from owl_celery.simulate.instance import Instance
from owl_celery.types import Decision, Outcome, TaskView

OPTIONS: Final = "--cb_explore_adf --squarecb -q tg -q gl --quiet --random_seed {seed}"
FAILURE_COST: Final = 10.0
"""Charged for a failing try beside its time, in mean services: a fast crash must not look good."""


class Vowpal(Policy):
    """A contextual bandit: the cost of a choice is the response time that followed.

    An action is a GPU model, of which the queue with the least wait is taken: it then need not
    learn that GPUs of one model are alike. Features are the task type and, of each action, the GPU
    model, the wait and the service time, which this class learns as a plain mean of each pair.
    """

    name: ClassVar[str] = "vowpal"

    def __init__(self, instance: Instance, rate: float, seed: int = 0) -> None:
        try:
            from vowpalwabbit import Workspace
        except ImportError as error:
            raise InputError(
                "The policy vowpal needs Vowpal Wabbit: pip install 'owl-celery[vowpal]'."
            ) from error
        self._bandit = Workspace(OPTIONS.format(seed=seed + 1))
        self._random = np.random.default_rng([seed, 5])
        self._kind = {name: kind for kind, name in enumerate(instance.table.types)}
        self._column = {name: column for column, name in enumerate(instance.table.models)}
        self._count = np.zeros(instance.table.seconds.shape)
        self._mean = np.ones(instance.table.seconds.shape)
        self._pending: defaultdict[tuple[str, str], deque[tuple[list[str], int, float]]]
        self._pending = defaultdict(deque)

    def choose(self, task: TaskView, fleet: Fleet, now: float) -> Decision:
        kind = self._kind[task.task_type]
        wait = np.where(open_mask(task, fleet), fleet.wait_seconds(now), np.inf)
        rows, example = [], [f"shared |t k{kind}"]
        for index, model in enumerate(fleet.models):
            queues = np.flatnonzero((fleet.model_index == index) & np.isfinite(wait))
            if len(queues):
                row = int(queues[wait[queues].argmin()])
                service = float(self._mean[kind, self._column[model]]) * task.size
                rows.append(row)
                example.append(f"|g m{index} |l wait:{wait[row]:.4g} service:{service:.4g}")
        chances = np.array(self._bandit.predict(example), dtype=np.float64)
        chances /= chances.sum()
        chosen = int(self._random.choice(len(rows), p=chances))
        row = rows[chosen]
        queue, model = fleet.names[row], fleet.gpu_model(row)
        self._pending[queue, task.task_type].append((example, chosen, float(chances[chosen])))
        return Decision(
            queue,
            model,
            self.name,
            service_seconds=float(self._mean[kind, self._column[model]]) * task.size,
            explored=chosen != int(chances.argmax()),
            propensity=float(chances[chosen]),
        )

    def learn_one(self, outcome: Outcome, now: float) -> None:
        # Tasks of one type leave a queue in the order in which they joined it.
        example, chosen, chance = self._pending[outcome.queue, outcome.task_type].popleft()
        cost = outcome.service_seconds + (outcome.wait_seconds or 0.0)
        if outcome.state.succeeded:
            cell = self._kind[outcome.task_type], self._column[outcome.gpu_model]
            self._count[cell] += 1.0
            sample = outcome.service_seconds / outcome.size
            self._mean[cell] += (sample - self._mean[cell]) / self._count[cell]
        else:
            cost += FAILURE_COST
        example[chosen + 1] = f"0:{cost:.6g}:{chance:.6g} {example[chosen + 1]}"
        self._bandit.learn(example)
