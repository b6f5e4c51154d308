"""A value function of the backlog, learned by temporal differences from states seen on the way.

``V(U) = sum_c v_c U_c + sum_{c<=d} M_cd U_c U_d / N`` with ``U_c`` the seconds of work on GPU model
``c`` and N queues: what the response times of later tasks add up to because of this work. Its slope
is the future cost of one more second. Differential least squares (LSTD(0)) on pairs of states,
held to the plan by a ridge, since rare states say little about the slope.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np

from owl_celery.errors import StateError
from owl_celery.fleet import Floats

MAX_MODELS: Final = 6
"""With more GPU models there are too many weights for the samples: the plan alone decides."""

RIDGE_SAMPLES: Final = 300.0
"""Samples that the plan is worth."""

MEMORY: Final = 4_000
"""Samples remembered."""

FIRST_SOLUTION: Final = 100
SOLVE_EVERY: Final = 10
"""Samples before the first solution, and between two."""

TRUST: Final = 1.15
"""The learned price of a second stays within this factor of the plan's."""

MAX_GAP_SERVICES: Final = 100.0
"""A state this many times the mean cost later says nothing about the one before."""


@dataclass(frozen=True, slots=True)
class Slope:
    """Future cost of one more second of work, as a function of the backlog.

    Parameters
    ----------
    models
        C GPU models.
    linear, quadratic
        Slope at no backlog, shape (C,), and what a second of backlog on model ``d`` adds to the
        slope on model ``c``, shape (C, C).

    """

    models: tuple[str, ...]
    linear: Floats
    quadratic: Floats

    def at(self, backlog: Floats) -> Floats:
        """Future cost of one more second on each model, shape (C,)."""
        slope: Floats = self.linear + self.quadratic @ backlog
        return slope

    def encode(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "models": list(self.models),
            "linear": self.linear.tolist(),
            "quadratic": self.quadratic.tolist(),
        }

    @classmethod
    def decode(cls, value: Mapping[str, Any]) -> Self:
        """Read from JSON.

        Raises
        ------
        StateError
            When it is damaged.

        """
        try:
            models = tuple(str(model) for model in value["models"])
            linear = np.array(value["linear"], dtype=np.float64)
            quadratic = np.array(value["quadratic"], dtype=np.float64)
        except (KeyError, TypeError, ValueError) as error:
            raise StateError("The value weights are damaged.") from error
        count = len(models)
        is_whole = linear.shape == (count,) and quadratic.shape == (count, count)
        if not is_whole or not (np.isfinite(linear).all() and np.isfinite(quadratic).all()):
            raise StateError("The value weights are damaged: numbers and models do not match.")
        return cls(models, linear, quadratic)


class ValueFunction:
    """Learns the weights of V.

    Parameters
    ----------
    learning_rate
        Share of the way to the newest solution that the weights move at a time, in (0, 1].

    """

    def __init__(self, learning_rate: float) -> None:
        self.learning_rate = learning_rate
        self._begin(())

    def _begin(self, models: tuple[str, ...]) -> None:
        count = len(models) * (len(models) + 3) // 2
        self._models = models
        self._samples = 0
        self._before: tuple[Floats, float, float] | None = None
        self._mean = np.zeros(count)
        self._variance = np.zeros(count)
        self._cost = 0.0
        self._rate = 0.0
        self._moments = np.zeros((count, count))
        self._targets = np.zeros(count)
        self._weights: Floats | None = None

    def observe(
        self,
        models: Sequence[str],
        backlog: Floats,
        queues: int,
        cost_seconds: float,
        rate: float,
        plan: tuple[Floats, Floats],
        now: float,
    ) -> Slope | None:
        """Learn from the state of the fleet; the slope by what is known, None before it is.

        Parameters
        ----------
        models, backlog
            C GPU models, and the seconds of work on each.
        queues
            Number of queues.
        cost_seconds
            Response time that a task arriving now is expected to have.
        rate
            Tasks that arrive per second.
        plan
            Premium of each GPU model, and its share of the priced backlog for one queue, by the
            plan: what the weights are held to. Both of shape (C,).

        """
        if len(models) > MAX_MODELS:
            return None
        if tuple(models) != self._models:
            self._begin(tuple(models))
        features = _features(backlog, queues)
        if self._before is not None:
            past, past_cost, past_time = self._before
            elapsed = now - past_time
            if 0.0 < elapsed <= MAX_GAP_SERVICES * past_cost:
                self._add(past, features, past_cost, rate, elapsed)
                if self._samples >= FIRST_SOLUTION and self._samples % SOLVE_EVERY == 0:
                    self._solve(plan, queues)
        self._before = features, cost_seconds, now
        return self._slope(queues)

    def _add(
        self, past: Floats, features: Floats, cost: float, rate: float, elapsed: float
    ) -> None:
        self._samples += 1
        step = 1.0 / min(self._samples, MEMORY)
        self._cost += step * (cost - self._cost)
        self._rate += step * (rate - self._rate)
        deviation = past - self._mean
        self._mean = self._mean + step * deviation
        self._variance = self._variance + step * (deviation * deviation - self._variance)
        kept = 1.0 - 1.0 / MEMORY
        later = self._rate * elapsed * (cost - self._cost)
        self._moments = kept * self._moments + np.outer(deviation, past - features)
        self._targets = kept * self._targets + deviation * later

    def _solve(self, plan: tuple[Floats, Floats], queues: int) -> None:
        prior = _plan_weights(*plan, queues)
        ridge = RIDGE_SAMPLES * self._variance + 1e-9
        try:
            solution = np.linalg.solve(
                self._moments + np.diag(ridge), self._targets + ridge * prior
            )
        except np.linalg.LinAlgError:
            return
        if not np.isfinite(solution).all():
            return
        weights = prior if self._weights is None else self._weights
        self._weights = weights + self.learning_rate * (solution - weights)

    def _slope(self, queues: int) -> Slope | None:
        if self._weights is None:
            return None
        count = len(self._models)
        half = np.zeros((count, count))
        half[np.triu_indices(count)] = self._weights[count:]
        return Slope(self._models, self._weights[:count].copy(), (half + half.T) / queues)

    def state(self) -> dict[str, Any]:
        """Everything, exactly, as JSON values."""
        before = self._before
        return {
            "models": list(self._models),
            "samples": self._samples,
            "before": None if before is None else [before[0].tolist(), before[1], before[2]],
            "mean": self._mean.tolist(),
            "variance": self._variance.tolist(),
            "cost": self._cost,
            "rate": self._rate,
            "moments": self._moments.tolist(),
            "targets": self._targets.tolist(),
            "weights": None if self._weights is None else self._weights.tolist(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state()``.

        Raises
        ------
        StateError
            When it is damaged.

        """
        fresh = ValueFunction(self.learning_rate)
        try:
            fresh._begin(tuple(str(model) for model in state["models"]))
            shapes = fresh._mean.shape, fresh._moments.shape
            fresh._samples = int(state["samples"])
            fresh._cost, fresh._rate = float(state["cost"]), float(state["rate"])
            fresh._mean, fresh._variance, fresh._targets = (
                np.array(state[name], dtype=np.float64).reshape(shapes[0])
                for name in ("mean", "variance", "targets")
            )
            fresh._moments = np.array(state["moments"], dtype=np.float64).reshape(shapes[1])
            if state["before"] is not None:
                features, cost, time = state["before"]
                fresh._before = np.array(features).reshape(shapes[0]), float(cost), float(time)
            if state["weights"] is not None:
                fresh._weights = np.array(state["weights"], dtype=np.float64).reshape(shapes[0])
        except (KeyError, TypeError, ValueError) as error:
            raise StateError("The saved value function is damaged.") from error
        numbers = (fresh._mean, fresh._variance, fresh._targets, fresh._moments)
        if not all(np.isfinite(array).all() for array in numbers) or not math.isfinite(fresh._cost):
            raise StateError("The saved value function is damaged: a number is not finite.")
        self.__dict__.update(fresh.__dict__)


def trusted(base: Floats, learned: Floats) -> Floats:
    """The learned future cost, within the trust region around the plan's."""
    price = 1.0 + base
    clipped: Floats = np.minimum(np.maximum(1.0 + learned, price / TRUST), price * TRUST) - 1.0
    return clipped


def _features(backlog: Floats, queues: int) -> Floats:
    rows, columns = np.triu_indices(len(backlog))
    return np.concatenate([backlog, backlog[rows] * backlog[columns] / queues])


def _plan_weights(premium: Floats, share: Floats, queues: int) -> Floats:
    """Weights at which V has the slope of the plan, ``premium + N * share * sum(share * U)``."""
    rows, columns = np.triu_indices(len(premium))
    products = share[rows] * share[columns] * queues * queues
    return np.concatenate([premium, np.where(rows == columns, 0.5, 1.0) * products])
