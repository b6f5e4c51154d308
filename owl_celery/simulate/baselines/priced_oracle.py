"""The priced rule with known rates: what learning could at best make of it."""

from __future__ import annotations

from typing import ClassVar, Final

import numpy as np
import numpy.typing as npt

from owl_celery.fleet import Fleet
from owl_celery.simulate.baselines.oracle import Oracle
from owl_celery.simulate.instance import Instance
from owl_celery.types import TaskView

Floats = npt.NDArray[np.float64]

STEPS: Final = 2000
LOAD_LIMIT: Final = 0.97
OVERLOAD_SLOPE: Final = 1000.0
MOST_LOAD: Final = 0.95
GAIN: Final = 1.5


class PricedOracle(Oracle):
    """Completion time plus what each second of work costs those that come later.

    The price of a GPU model has a static part, from a plan of the known arrival rates, and a part
    that grows with the work in the whole system. What waits is priced as in heavy traffic: it has
    to be worked off by all GPUs at their limit, however quiet it is now.
    """

    name: ClassVar[str] = "priced_oracle"

    def __init__(self, instance: Instance, rate: float, seed: int = 0) -> None:
        super().__init__(instance, rate, seed)
        index = instance.fleet().model_index
        self._static, self._present, self._heavy = (
            prices[index] for prices in rule_prices(instance, rate)
        )

    def scores(self, task: TaskView, service: Floats, fleet: Fleet, now: float) -> Floats:
        running = float(self._present @ fleet.residual_seconds(now))
        waiting = float(self._heavy @ fleet.waiting_seconds)
        work = running + waiting
        share = self._present
        if work > 0.0:
            share = (self._present * running + self._heavy * waiting) / work
        later = self._static + GAIN * len(fleet) * share * (work + 0.5 * share * service)
        priced: Floats = fleet.wait_seconds(now) + service + service * later
        return priced


def rule_prices(instance: Instance, rate: float) -> tuple[Floats, Floats, Floats]:
    """Prices of each GPU model, (C,) each.

    The price of a second above that of the cheapest model, and shares ``pi`` of the price of the
    whole fleet at the present rate and in heavy traffic; those sum to 1 over queues.
    """
    limit = MOST_LOAD * instance.capacity.rate
    present = plan_prices(instance, min(rate, limit))
    heavy = plan_prices(instance, limit)
    shares = [prices / float(instance.gpus @ prices) for prices in (present, heavy)]
    return present - 1.0, shares[0], shares[1]


def plan_prices(instance: Instance, rate: float) -> Floats:
    """Price of a second of each GPU model relative to the cheapest, by Frank-Wolfe.

    The plan minimises service plus the delay of as many servers as there are GPUs of a model.
    """
    gpus = instance.gpus.astype(np.float64)
    seconds = instance.table.seconds
    priced_seconds = np.where(np.isnan(seconds), np.inf, seconds)
    load = rate * instance.mix[:, None] * np.nan_to_num(seconds) / gpus
    rows = np.arange(len(seconds))
    best = np.argmin(priced_seconds, axis=1)
    total: Floats = np.bincount(best, load[rows, best], minlength=len(gpus)).astype(np.float64)
    for step in range(STEPS):
        best = np.argmin(priced_seconds * (1.0 + _delay(total, gpus)), axis=1)
        target = np.bincount(best, load[rows, best], minlength=len(gpus))
        total = total + 2.0 / (step + 3.0) * (target - total)
    delay = _delay(total, gpus)
    prices: Floats = (1.0 + delay) / (1.0 + float(delay.min()))
    return prices


def _delay(load: Floats, gpus: Floats) -> Floats:
    """Delay that one more second of work causes, by the square-root rule for many servers."""
    power = np.sqrt(2.0 * (gpus + 1.0))
    within = np.minimum(load, LOAD_LIMIT)
    free = 1.0 - within
    delay = power * within ** (power - 1.0) / free + within**power / free**2
    beyond: Floats = delay / gpus + OVERLOAD_SLOPE * np.maximum(load - LOAD_LIMIT, 0.0)
    return beyond
