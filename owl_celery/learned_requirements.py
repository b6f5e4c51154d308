"""The requirements of task types, from what a store keeps: for a process that does not lead."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from owl_celery.aggregates import Learned, ServiceStats
from owl_celery.learned_policy import policy_of
from owl_celery.prior import PairPrior
from owl_celery.requirements import Requirements, derive
from owl_celery.settings import Settings
from owl_celery.types import TaskView


class LearnedRequirements:
    """Answers for every task type from one ``Store.load()``; make it anew for the next.

    Says the same as ``TaskPerformanceTracker.requirements`` in the controller did at the last
    commit. Any number of threads may ask.

    Parameters
    ----------
    learned
        What the store keeps.
    settings
        Of the application: they build the policy.

    """

    def __init__(self, learned: Learned, settings: Settings) -> None:
        rows = learned.aggregates
        self._totals = {row.task_type: row for row in rows.task_types}
        self._services: dict[str, list[ServiceStats]] = defaultdict(list)
        self._pairs: dict[str, list[PairPrior]] = defaultdict(list)
        for service in rows.services:
            self._services[service.task_type].append(service)
        self._gpu_models = sorted({row.gpu_model for row in rows.services})
        found = policy_of(learned, settings)
        self._policy = found[0] if found else None
        for pair in found[1].pairs if found else ():
            self._pairs[pair.task_type].append(pair)

    def of(
        self,
        task_type: str,
        memory_bytes: Mapping[str, int] | None = None,
        free_bytes: Mapping[str, float] | None = None,
    ) -> Requirements:
        """Requirements of a task type; as ``derive`` for one that was never seen.

        Parameters
        ----------
        memory_bytes, free_bytes
            As in ``derive``.

        """
        policy, view = self._policy, TaskView(task_type)
        predicted = {
            gpu_model: policy.predict_seconds(view, gpu_model) if policy else None
            for gpu_model in self._gpu_models
        }
        return derive(
            task_type,
            self._totals.get(task_type),
            self._services.get(task_type, ()),
            predicted,
            self._pairs.get(task_type, ()),
            memory_bytes,
            free_bytes,
        )
