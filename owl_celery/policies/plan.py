"""The plan price: what a second of work on a GPU model costs the tasks that come later.

Each type of task should run where its service time times the price of a second is least; the price
of a model rises with its load, and the load follows from where the types run. The prices at which
both agree are those of the best static plan. They are found twice: at the present arrival rate, and
at the rate that fills the busiest model, since a backlog has to be worked off at full load even in
a quiet phase.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np

from owl_celery.errors import StateError
from owl_celery.fleet import Fleet, Floats
from owl_celery.policies.arrivals import ArrivalRates

MAX_TYPES: Final = 500
"""Most frequent types that are planned for."""

DELAY_WEIGHT: Final = 0.15
"""Share of the static delay that the price counts; the rest is seen in the backlog as it is."""

SHARPNESS: Final = 20.0
"""A type is spread over models whose priced service times differ by about 1 / SHARPNESS."""

HEAVY_LOAD: Final = 0.95
HEAVY_TOLERANCE: Final = 0.005
HEAVY_ROUNDS: Final = 6
"""Load of the busiest model at which the second prices hold, and the search for it."""

DELAY_LOAD: Final = 0.97
"""From this load on the delay grows no faster, so that an overload still has finite prices."""

MAX_LOAD: Final = 10.0
MAX_STEPS: Final = 25
TOLERANCE: Final = 0.003


@dataclass(frozen=True, slots=True)
class Prices:
    """Relative prices of a second, the cheapest GPU model being 1.

    Parameters
    ----------
    present, heavy
        By GPU model: at the present arrival rate, and when the fleet is full.

    """

    present: Mapping[str, float]
    heavy: Mapping[str, float]

    def columns(self, fleet: Fleet) -> tuple[Floats, Floats]:
        """Both prices of each queue, shape (N,); a model without one gets the mean."""
        laid_out = []
        for prices in (self.present, self.heavy):
            usual = sum(prices.values()) / len(prices) if prices else 1.0
            by_model = np.array([prices.get(model, usual) for model in fleet.models])
            laid_out.append(by_model[fleet.model_index])
        return laid_out[0], laid_out[1]

    def encode(self) -> dict[str, dict[str, float]]:
        """JSON values."""
        return {"present": dict(self.present), "heavy": dict(self.heavy)}

    @classmethod
    def decode(cls, value: Mapping[str, Any]) -> Self:
        """Read prices from JSON.

        Raises
        ------
        StateError
            When they are damaged.

        """
        try:
            present, heavy = (
                {str(model): float(price) for model, price in value[name].items()}
                for name in ("present", "heavy")
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StateError("The plan prices are damaged.") from error
        if not all(1e-3 <= price <= 1e9 for price in (*present.values(), *heavy.values())):
            raise StateError("The plan prices are damaged: one is out of bounds.")
        return cls(present, heavy)


class Planner:
    """Finds the prices, each time from where it ended the last time.

    Attributes
    ----------
    rates
        Learned arrival rates.

    """

    def __init__(self) -> None:
        self.rates = ArrivalRates()
        self._heavy_rate: float | None = None
        self._load: dict[str, float] = {}
        self._heavy_load: dict[str, float] = {}

    def prices(self, seconds: Floats, shares: Floats, models: list[str], gpus: Floats) -> Prices:
        """Find the prices.

        Parameters
        ----------
        seconds
            Expected seconds of a task of each type on each GPU model, retries included, > 0,
            shape (K, C).
        shares
            Share of each type among arrivals, sums to 1, shape (K,).
        models
            C names.
        gpus
            GPUs of each model at normal speed, > 0, shape (C,).

        """
        start = np.array([self._heavy_load.get(model, 0.5) for model in models])
        rate = self._heavy_rate or float(gpus.sum() / (shares @ seconds.mean(axis=1)))
        for _ in range(HEAVY_ROUNDS):
            load, heavy = balance(rate * shares, seconds, gpus, start)
            start, busiest = load, float(load.max())
            if abs(busiest - HEAVY_LOAD) < HEAVY_TOLERANCE:
                break
            rate *= HEAVY_LOAD / busiest
        self._heavy_rate, self._heavy_load = rate, dict(zip(models, load.tolist(), strict=True))
        present = heavy
        if self.rates.rate < rate:
            start = np.array([self._load.get(model, 0.5) for model in models])
            load, present = balance(self.rates.rate * shares, seconds, gpus, start)
            self._load = dict(zip(models, load.tolist(), strict=True))
        return Prices(
            dict(zip(models, (present / present.min()).tolist(), strict=True)),
            dict(zip(models, (heavy / heavy.min()).tolist(), strict=True)),
        )

    def state(self) -> dict[str, Any]:
        """Everything, exactly, as JSON values."""
        return {
            "rates": self.rates.state(),
            "heavy_rate": self._heavy_rate,
            "load": self._load,
            "heavy_load": self._heavy_load,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state()``.

        Raises
        ------
        StateError
            When it is damaged.

        """
        try:
            heavy_rate = None if state["heavy_rate"] is None else float(state["heavy_rate"])
            load = {str(model): float(value) for model, value in state["load"].items()}
            heavy_load = {str(model): float(value) for model, value in state["heavy_load"].items()}
            self.rates.restore(state["rates"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StateError("The saved plan is damaged.") from error
        self._heavy_rate, self._load, self._heavy_load = heavy_rate, load, heavy_load


def balance(rates: Floats, seconds: Floats, gpus: Floats, start: Floats) -> tuple[Floats, Floats]:
    """Loads and prices that agree with each other, by Newton's method.

    Parameters
    ----------
    rates
        Tasks per second of each type, shape (K,).
    seconds, gpus
        As in ``Planner.prices``.
    start
        Loads to start from, shape (C,).

    Returns
    -------
    Load of each model, 1 being all its GPUs busy all the time, and price of a second, >= 1.

    """
    # Price = 1 + marginal delay; delay by Sakasegawa's approximation of a queue with n servers.
    exponent = np.sqrt(2.0 * (gpus + 1.0))
    work = rates[:, None] * seconds / gpus
    # A type takes a model in proportion to (seconds x price) ** -SHARPNESS. Neither factor can
    # underflow: loads are bounded, so that prices differ by less than 1e6.
    affinity = (seconds / seconds.min(axis=1, keepdims=True)) ** -SHARPNESS

    def respond(load: Floats) -> tuple[Floats, Floats, Floats, Floats, Floats]:
        price, slope = _price(load, gpus, exponent)
        split = affinity * (price / price.min()) ** -SHARPNESS
        split /= split.sum(axis=1, keepdims=True)
        sent = work * split
        return sent.sum(axis=0), sent, split, price, slope

    load = np.clip(start, 1e-6, MAX_LOAD)
    demand, sent, split, price, slope = respond(load)
    excess = demand - load
    error = float(np.abs(excess).max())
    identity = np.eye(len(gpus))
    for _ in range(MAX_STEPS):
        if error < TOLERANCE:
            break
        response = SHARPNESS * (sent.T @ split - np.diag(demand)) * (slope / price)
        step = np.linalg.solve(response - identity, -excess)
        for shortened in (1.0, 0.4, 0.16, 0.064, 0.025, 0.01):
            tried = np.clip(load + shortened * step, 1e-6, MAX_LOAD)
            demand, sent, split, price, slope = respond(tried)
            excess = demand - tried
            if float(np.abs(excess).max()) < error:
                break
        load, error = tried, float(np.abs(excess).max())
    return load, price


def _price(load: Floats, gpus: Floats, exponent: Floats) -> tuple[Floats, Floats]:
    """Price of a second at a load, and its derivative."""
    busy = np.minimum(np.maximum(load, 1e-6), DELAY_LOAD)
    per_free = 1.0 / (1.0 - busy)
    waiting = busy * per_free
    delay = DELAY_WEIGHT / gpus * busy ** (exponent - 2.0) * per_free
    growth = exponent + waiting
    slope = delay * (exponent * (exponent - 1.0) + 2.0 * waiting * growth)
    return 1.0 + delay * busy * growth + slope * np.maximum(load - DELAY_LOAD, 0.0), slope
