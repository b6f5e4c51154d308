"""Q-learning with prices: the completion time of a task plus what it costs those that follow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

import numpy as np

from owl_celery.fleet import Fleet, Floats
from owl_celery.policies.beliefs import MAX_LOAD_SECONDS, Layout
from owl_celery.policies.expected_completion import ExpectedCompletion
from owl_celery.policies.plan import MAX_TYPES, Planner, Prices
from owl_celery.types import TaskView

if TYPE_CHECKING:
    from owl_celery.settings import Settings

BACKLOG_GAIN: Final = 1.5
"""Future cost of a second of work for each second of mean priced backlog."""

PLAN_ARRIVALS: Final = 20
"""Arrivals between two plans."""

CLOSED_FACTOR: Final = 1e3
"""What a service time is multiplied by in the plan where no GPU of a model has enough memory."""


class PricedQ(ExpectedCompletion):
    """Send each task where wait, service and future cost together are predicted to be least.

    The future cost of a second of work is the price of the GPU model in a static plan for the
    present arrivals (``plan``), plus the backlog of the fleet weighted by those prices: the fuller
    the fleet, the less a task may waste what is scarce.

    Parameters
    ----------
    exploration_rate
        Width of the noise on uncertain service times, 0-1.
    enable_reinforcement_learning
        False: no prices and no noise, as ``ExpectedCompletion`` without noise.
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
        max_types: int = 10_000,
        seed: int | None = None,
    ) -> None:
        super().__init__(exploration_rate, enable_reinforcement_learning, max_types, seed)
        self._planner = Planner()
        self._planned_prices: Prices | None = None
        self._prices: Prices | None = None
        self._columns: _PriceColumns | None = None
        self._fleet: Fleet | None = None
        self._arrivals = 0
        self._planned_at: float | None = None

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        return cls(
            exploration_rate=settings.exploration_rate,
            enable_reinforcement_learning=settings.enable_reinforcement_learning,
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
        seconds = np.where(free[used] < beliefs.needed[cells], CLOSED_FACTOR * seconds, seconds)
        self._planned_prices = self._planner.prices(seconds, shares, models, gpus[used])
        if self._beliefs is beliefs:
            self._prices = self._planned_prices

    def _cost(self, service: Floats, layout: Layout, fleet: Fleet, residual: Floats) -> Floats:
        base, slope = self._pressure(layout, fleet, residual)
        return service * (1.0 + base + slope * service)

    def _pressure(self, layout: Layout, fleet: Fleet, residual: Floats) -> tuple[Floats, Floats]:
        prices = self._prices
        if prices is None or not self.enable_reinforcement_learning:
            return super()._pressure(layout, fleet, residual)
        columns = self._columns
        if columns is None or columns.prices is not prices or columns.names is not fleet.names:
            columns = self._columns = _PriceColumns(prices, fleet)
        running = float(columns.present_share @ residual)
        queued = min(float(columns.heavy_share @ fleet.waiting_seconds), MAX_LOAD_SECONDS)
        backlog = running + queued
        if backlog > 0.0:
            share = (running / backlog) * columns.present_share
            share += (queued / backlog) * columns.heavy_share
        else:
            share = columns.present_share
        weight = BACKLOG_GAIN * len(fleet) * share
        return columns.premium + weight * backlog, 0.5 * weight * share

    def snapshot(self) -> Mapping[str, Any]:
        prices = self._planned_prices
        return {**super().snapshot(), "prices": None if prices is None else prices.encode()}

    def apply_snapshot(self, snapshot: Mapping[str, Any]) -> None:
        encoded = snapshot.get("prices")
        prices = None if encoded is None else Prices.decode(encoded)
        super().apply_snapshot(snapshot)
        self._prices = prices

    def state(self) -> Mapping[str, Any]:
        prices = self._planned_prices
        return {
            **super().state(),
            "plan": self._planner.state(),
            "prices": None if prices is None else prices.encode(),
            "arrivals": [self._arrivals, self._planned_at],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        super().restore(state)
        self._planner.restore(state["plan"])
        encoded = state["prices"]
        self._planned_prices = None if encoded is None else Prices.decode(encoded)
        self._prices = self._planned_prices
        self._arrivals, self._planned_at = state["arrivals"]


class _PriceColumns:
    """Prices laid out over the queues of one fleet."""

    __slots__ = ("heavy_share", "names", "premium", "present_share", "prices")

    def __init__(self, prices: Prices, fleet: Fleet) -> None:
        self.prices, self.names = prices, fleet.names
        present, heavy = prices.columns(fleet)
        self.premium = present - 1.0
        self.present_share = present / present.sum()
        self.heavy_share = heavy / heavy.sum()
