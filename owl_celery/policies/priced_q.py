"""Q-learning with prices: the completion time of a task plus what it costs those that follow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, Self

import numpy as np

from owl_celery.errors import StateError
from owl_celery.fleet import Fleet, Floats
from owl_celery.policies.beliefs import MAX_LOAD_SECONDS, Layout, load_seconds
from owl_celery.policies.expected_completion import ExpectedCompletion
from owl_celery.policies.plan import MAX_TYPES, Planner, Prices
from owl_celery.policies.value import Slope, ValueFunction, trusted
from owl_celery.types import TaskView

if TYPE_CHECKING:
    from owl_celery.settings import Settings

BACKLOG_GAIN: Final = 1.5
"""Future cost of a second of work for each second of mean priced backlog."""

PLAN_ARRIVALS: Final = 20
"""Arrivals between two plans."""

EVALUATED_TYPES: Final = 64
"""Most frequent types whose response the value function is learned from."""

CLOSED_FACTOR: Final = 1e3
"""What a service time is multiplied by in the plan where no GPU of a model has enough memory."""


class PricedQ(ExpectedCompletion):
    """Send each task where wait, service and future cost together are predicted to be least.

    The future cost of a second of work is the price of the GPU model in a static plan for the
    present arrivals (``plan``), plus the backlog of the fleet weighted by those prices: the fuller
    the fleet, the less a task may waste what is scarce. Temporal differences correct it within a
    trust region (``value``).

    Parameters
    ----------
    exploration_rate
        Width of the noise on uncertain service times, 0-1.
    enable_reinforcement_learning
        False: no prices and no noise, as ``ExpectedCompletion`` without noise.
    learning_rate
        Step of the weights of the value function, in (0, 1].
    max_types
        Task types remembered; the one seen longest ago is forgotten first.
    seed
        Seed of the noise and of the choice among equals.

    Examples
    --------
    >>> policy = PricedQ(seed=1)
    >>> fleet = Fleet(["gpu.a.0", "gpu.a.1"], ["V100", "V100"])
    >>> fleet.waiting_count[0], fleet.waiting_seconds[0] = 1, 9.0
    >>> policy.choose(TaskView("train"), fleet, now=0.0).queue
    'gpu.a.1'

    """

    name: ClassVar[str] = "q_learning"
    fallback: ClassVar[str | None] = "expected_completion"

    def __init__(
        self,
        exploration_rate: float = 0.2,
        enable_reinforcement_learning: bool = True,
        learning_rate: float = 0.1,
        max_types: int = 10_000,
        seed: int | None = None,
    ) -> None:
        super().__init__(exploration_rate, enable_reinforcement_learning, max_types, seed)
        self.learning_rate = learning_rate
        self._value = ValueFunction(learning_rate)
        self._learned_slope: Slope | None = None
        self._slope: Slope | None = None
        self._planner = Planner()
        self._planned_prices: Prices | None = None
        self._prices: Prices | None = None
        self._columns: _PriceColumns | None = None
        self._pressed: _Pressed | None = None
        self._fleet: Fleet | None = None
        self._arrivals = 0
        self._planned_at: float | None = None

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        return cls(
            exploration_rate=settings.exploration_rate,
            enable_reinforcement_learning=settings.enable_reinforcement_learning,
            learning_rate=settings.learning_rate,
            seed=settings.seed,
        )

    @property
    def ready(self) -> bool:
        is_priced = self._prices is not None or not self.enable_reinforcement_learning
        return super().ready and is_priced

    @property
    def prices(self) -> Prices | None:
        """The prices chosen by; None before the first plan."""
        return self._prices

    def arrived(self, task: TaskView, now: float) -> None:
        self._planner.rates.add(task.task_type, now)
        self._arrivals += 1
        if self._arrivals >= PLAN_ARRIVALS and self._fleet is not None and now != self._planned_at:
            self._plan(self._fleet, now)

    def tick(self, fleet: Fleet, now: float) -> None:
        super().tick(fleet, now)
        self._fleet = fleet
        self._plan(fleet, now)
        self._evaluate(fleet, now)

    def _plan(self, fleet: Fleet, now: float) -> None:
        self._arrivals, self._planned_at = 0, now
        if not self.enable_reinforcement_learning or not len(fleet):
            return
        names, shares = self._planner.rates.mix(MAX_TYPES)
        layout, beliefs = Layout(self._learner.beliefs, fleet), self._learner.beliefs
        gpus: Floats = np.bincount(
            fleet.model_index,
            fleet.is_open * fleet.concurrency / layout.speeds,
            minlength=len(fleet.models),
        ).astype(np.float64)
        used = np.flatnonzero(gpus > 0.0)
        if not names or not len(used) or not self._planner.rates.rate:
            return
        models = [fleet.models[index] for index in used.tolist()]
        rows = np.array([beliefs.types.get(name, 0) for name in names])
        columns = np.array([beliefs.models.get(model, 0) for model in models])
        cells = np.ix_(rows, columns)
        seconds = self._learner.mean_sizes(rows)[:, None] * beliefs.service[cells]
        seconds = seconds / np.maximum(1.0 - beliefs.failure[cells], 0.01)
        free = np.zeros(len(fleet.models))
        np.maximum.at(free, fleet.model_index, np.nan_to_num(fleet.free_memory_bytes, nan=np.inf))
        closed = free[used] < beliefs.needed[cells]
        # What fits nowhere speaks for no model; as a thousand tasks it would make one look scarce.
        closed &= ~closed.all(axis=1, keepdims=True)
        seconds = np.where(closed, CLOSED_FACTOR * seconds, seconds)
        self._planned_prices = self._planner.prices(seconds, shares, models, gpus[used])
        if self._beliefs is beliefs:
            self._prices = self._planned_prices

    def _evaluate(self, fleet: Fleet, now: float) -> None:
        """Let the value function see the fleet, and what a task arriving now has to expect."""
        prices, beliefs = self._planned_prices, self._learner.beliefs
        names, shares = self._planner.rates.mix(EVALUATED_TYPES)
        if prices is None or not names:
            return
        layout, columns = Layout(beliefs, fleet), _PriceColumns(prices, fleet)
        residual, wait = load_seconds(fleet, now)
        base, slope = columns.pressure(fleet, residual)
        rows = np.array([beliefs.types.get(name, 0) for name in names])
        sizes = self._learner.mean_sizes(rows)[:, None]
        service = sizes * beliefs.service[rows][:, layout.columns] * layout.speeds
        score = wait + service * (1.0 + base + slope * service)
        chosen = np.where(fleet.is_open, score, np.inf).argmin(axis=1)
        response = wait[chosen] + service[np.arange(len(rows)), chosen]
        first = np.unique(fleet.model_index, return_index=True)[1]
        self._learned_slope = self._value.observe(
            fleet.models,
            _by_model(fleet, residual),
            len(fleet),
            float(shares @ response),
            self._planner.rates.rate,
            (columns.premium[first], math.sqrt(BACKLOG_GAIN) * columns.heavy_share[first]),
            now,
        )
        if self._beliefs is beliefs:
            self._slope = self._learned_slope

    def _cost(self, service: Floats, layout: Layout, fleet: Fleet, residual: Floats) -> Floats:
        base, slope = self._pressure(layout, fleet, residual)
        return service * (1.0 + base + slope * service)

    def _pressure(self, layout: Layout, fleet: Fleet, residual: Floats) -> tuple[Floats, Floats]:
        prices = self._prices
        if prices is None or not self.enable_reinforcement_learning:
            return super()._pressure(layout, fleet, residual)
        learned, pressed = self._slope, self._pressed
        if (
            pressed is not None
            and pressed.residual is residual
            and pressed.prices is prices
            and pressed.learned is learned
        ):
            # A settled fleet gives one residual for a few milliseconds, in which a producer can
            # send no more than a handful of tasks: the wait counts them, the pressure need not.
            return pressed.base, pressed.slope
        columns = self._columns
        if columns is None or columns.prices is not prices or columns.names is not fleet.names:
            columns = self._columns = _PriceColumns(prices, fleet)
        base, slope = columns.pressure(fleet, residual)
        if learned is not None and learned.models == fleet.models:
            by_model = learned.at(_by_model(fleet, residual))
            base = trusted(base, by_model[fleet.model_index])
        self._pressed = _Pressed(residual, prices, learned, base, slope)
        return base, slope

    def _listed_types(self, most: int) -> list[str]:
        """The most frequent types of those that have been tried."""
        known = self._learner.beliefs.types
        frequent = self._planner.rates.mix(most)[0] if most > 0 else []
        return [name for name in frequent if name in known] or super()._listed_types(most)

    def snapshot(self) -> Mapping[str, Any]:
        return {**super().snapshot(), **self._future()}

    def _future(self) -> dict[str, Any]:
        prices, slope = self._planned_prices, self._learned_slope
        return {
            "prices": None if prices is None else prices.encode(),
            "slope": None if slope is None else slope.encode(),
        }

    def apply_snapshot(self, snapshot: Mapping[str, Any]) -> None:
        prices, slope = _read_future(snapshot)
        super().apply_snapshot(snapshot)
        self._prices, self._slope = prices, slope

    def state(self) -> Mapping[str, Any]:
        return {
            **super().state(),
            **self._future(),
            "plan": self._planner.state(),
            "value": self._value.state(),
            "arrivals": [self._arrivals, self._planned_at],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        planner, value = Planner(), ValueFunction(self.learning_rate)
        try:
            planner.restore(state["plan"])
            value.restore(state["value"])
            arrivals, planned_at = state["arrivals"]
            prices, slope = _read_future(state)
        except (KeyError, TypeError, ValueError) as error:
            raise StateError("The saved policy state lacks a part.") from error
        super().restore(state)
        self._planner, self._value = planner, value
        self._arrivals, self._planned_at = int(arrivals), planned_at
        self._prices = self._planned_prices = prices
        self._slope = self._learned_slope = slope


def _read_future(encoded: Mapping[str, Any]) -> tuple[Prices | None, Slope | None]:
    prices, slope = encoded.get("prices"), encoded.get("slope")
    return (
        None if prices is None else Prices.decode(prices),
        None if slope is None else Slope.decode(slope),
    )


def _by_model(fleet: Fleet, residual: Floats) -> Floats:
    """Seconds of work on each GPU model, shape (C,)."""
    backlog = np.minimum(residual + fleet.waiting_seconds, MAX_LOAD_SECONDS)
    total = np.bincount(fleet.model_index, backlog, minlength=len(fleet.models))
    return total.astype(np.float64, copy=False)


class _Pressed(NamedTuple):
    """Future cost of one more second on each queue, and what it was worked out from."""

    residual: Floats
    prices: Prices
    learned: Slope | None
    base: Floats
    slope: Floats


class _PriceColumns:
    """Prices laid out over the queues of one fleet."""

    __slots__ = ("heavy_share", "names", "premium", "present_share", "prices")

    def __init__(self, prices: Prices, fleet: Fleet) -> None:
        self.prices, self.names = prices, fleet.names
        present, heavy = prices.columns(fleet)
        self.premium = present - 1.0
        self.present_share = present / present.sum()
        self.heavy_share = heavy / heavy.sum()

    def pressure(self, fleet: Fleet, residual: Floats) -> tuple[Floats, Floats]:
        """Future cost of one more second on each queue by the plan, ``base + slope * seconds``."""
        running = float(self.present_share @ residual)
        queued = min(float(self.heavy_share @ fleet.waiting_seconds), MAX_LOAD_SECONDS)
        backlog = running + queued
        if backlog > 0.0:
            share = (running / backlog) * self.present_share
            share += (queued / backlog) * self.heavy_share
        else:
            share = self.present_share
        weight = BACKLOG_GAIN * len(fleet) * share
        return self.premium + weight * backlog, 0.5 * weight * share
