"""Service times by task type, pooled over the GPUs of one model and shared between models.

The logarithm of a service time is taken as an effect of the task type plus one of the GPU model,
and each (type, model) pair leaves that rule as far as its own samples say. So one run of a new
type on one GPU predicts it on all others, and many runs need no rule at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from owl_celery.errors import StateError
from owl_celery.fleet import Floats
from owl_celery.policies.cells import Cells

MEMORY: Final = 500
"""Samples over which the mean of a pair is taken, so that it follows slow change."""

POOL_WEIGHT: Final = 1.0
MAX_POOL_WEIGHT: Final = 20.0
USUAL_VARIANCE: Final = 0.12
"""Samples that the rule of the two effects is worth: up to this variance of the log service times
of one pair the least, beyond it in proportion."""

TYPE_RIDGE: Final = 0.1
MODEL_RIDGE: Final = 0.5
"""Samples' worth of pull of the effects towards the mean type and towards no effect."""

FULL_WEIGHT: Final = 5.0
"""Samples from which on a pair's mean weighs no more in the fit."""

SWEEPS: Final = 4
MIN_SECONDS: Final = 1e-12
MAX_SECONDS: Final = 10.0 * 365 * 86_400


class ServiceTimes:
    """Learned service times of tasks of size 1 on a GPU of normal speed.

    Parameters
    ----------
    cells
        Where the matrices ``count``, ``mean`` and ``service`` are kept; shared with others.

    Attributes
    ----------
    completed
        Samples learned.
    pool_weight
        Samples that the rule of the two effects is worth.

    """

    matrices: Final = ("count", "mean", "service")

    def __init__(self, cells: Cells) -> None:
        self._cells = cells
        self.completed = 0
        self.pool_weight = POOL_WEIGHT
        self._type_mean = 0.0
        self._model_effect: Floats = np.zeros(1)
        self._fit()

    def expect(self, variance: float) -> None:
        """Trust the rule the more, the more the log service times of one pair vary."""
        self.pool_weight = min(max(POOL_WEIGHT, variance / USUAL_VARIANCE), MAX_POOL_WEIGHT)

    def learn_one(self, row: int, column: int, seconds: float) -> None:
        """Learn one service time, already divided by the task's size and the GPU's speed factor."""
        cells = self._cells
        seconds = min(max(seconds, MIN_SECONDS), MAX_SECONDS)
        counts, means = cells["count"], cells["mean"]
        count = min(counts[row, column] + 1.0, MEMORY)
        counts[row, column] = count
        means[row, column] += (seconds - means[row, column]) / count
        self.completed += 1
        if self._is_fit_due():
            self._fit()
        else:
            self._fit_row(row)

    def refresh(self, row: int) -> None:
        """Predict for a row or column that has just been made or reused."""
        if len(self._model_effect) == self._cells.shape[1]:
            self._fit_row(row)
        else:
            self._fit()

    def refit(self) -> None:
        """Fit anew after the cells have been written to from outside."""
        self._fit()

    def _is_fit_due(self) -> bool:
        completed = self.completed
        if completed <= 64:
            return True
        if completed <= 2_000:
            return completed % 32 == 0
        return completed % 512 == 0

    def _fit(self) -> None:
        """Weighted ridge regression of log means on both effects, by alternating least squares."""
        cells = self._cells
        counts, means = cells["count"], cells["mean"]
        weights = np.minimum(counts, FULL_WEIGHT)
        logs = np.log(np.where(counts > 0.0, means, 1.0))
        by_type, by_model = weights.sum(axis=1), weights.sum(axis=0)
        seen = by_type > 0.0
        effect = self._model_effect
        model_effect = np.zeros(weights.shape[1])
        model_effect[: min(len(effect), len(model_effect))] = effect[: len(model_effect)]
        type_mean = self._type_mean
        type_effect = np.full(weights.shape[0], type_mean)
        if seen.any():
            type_mean = float((weights * logs).sum() / weights.sum())
            for _ in range(SWEEPS):
                pull = (weights * (logs - model_effect)).sum(axis=1)
                type_effect = (pull + TYPE_RIDGE * type_mean) / (by_type + TYPE_RIDGE)
                type_mean = float(type_effect[seen].mean())
                pull = (weights * (logs - type_effect[:, None])).sum(axis=0)
                model_effect = pull / (by_model + MODEL_RIDGE)
            type_effect = np.where(seen, type_effect, type_mean)
        self._type_mean, self._model_effect = type_mean, model_effect
        rule = np.exp(type_effect[:, None] + model_effect)
        weight = self.pool_weight
        cells["service"][:] = (weight * rule + counts * means) / (weight + counts)

    def _fit_row(self, row: int) -> None:
        """Refresh one type, the effects of the GPU models as they are."""
        cells = self._cells
        counts, means = cells["count"][row], cells["mean"][row]
        weight, pull = TYPE_RIDGE, TYPE_RIDGE * self._type_mean
        model_effect = self._model_effect
        for column in np.flatnonzero(counts).tolist():
            share = min(float(counts[column]), FULL_WEIGHT)
            weight += share
            pull += share * (math.log(means[column]) - float(model_effect[column]))
        rule = np.exp(pull / weight + model_effect)
        trust = self.pool_weight
        cells["service"][row] = (trust * rule + counts * means) / (trust + counts)

    def state(self) -> dict[str, Any]:
        """What is not in the cells."""
        return {
            "completed": self.completed,
            "pool_weight": self.pool_weight,
            "type_mean": self._type_mean,
            "model_effect": self._model_effect.tolist(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state()``, the cells being restored already.

        Raises
        ------
        StateError
            When it is damaged.

        """
        try:
            completed, type_mean = int(state["completed"]), float(state["type_mean"])
            pool_weight = float(state.get("pool_weight", POOL_WEIGHT))
            model_effect = np.array(state["model_effect"], dtype=np.float64)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StateError("The saved service times are damaged.") from error
        if model_effect.ndim != 1 or not np.isfinite(model_effect).all():
            raise StateError("The saved service times are damaged: effects of GPU models.")
        if not POOL_WEIGHT <= pool_weight <= MAX_POOL_WEIGHT:
            raise StateError("The saved service times are damaged: weight of the rule.")
        self.pool_weight = pool_weight
        self.completed, self._type_mean, self._model_effect = completed, type_mean, model_effect
