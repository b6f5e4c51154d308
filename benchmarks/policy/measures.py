"""What the policy must reach: one ``Measure`` for each row of the table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from benchmarks.policy.runs import Figures, Results, Spec

SEEDS: Final = (0, 1, 2, 3, 4)
SMALL: Final = "k80=4,p100=4,v100=4"
LARGE: Final = "k80=22,p100=21,v100=21"
STEAL: Final = 0.05

Pick = Callable[[Figures], float]


def _mean(figures: Figures) -> float:
    return float(figures["mean"])


def _p99(figures: Figures) -> float:
    return float(figures["p99"])


def _first(figures: Figures) -> float:
    return float(figures["mean_first_1k"])


def _second(figures: Figures) -> float:
    return float(figures["mean_1k_5k"])


def _failed(figures: Figures) -> float:
    return float(figures["failed_ratio"])


def _in_fault(figures: Figures) -> float:
    return float(figures["p99_in_fault"])


@dataclass(frozen=True, slots=True)
class Value:
    """Median over seeds, and the least and the most of them."""

    median: float
    least: float
    most: float


@dataclass(frozen=True)
class Number:
    """One figure of a row: of our runs, divided by those of another when there is one.

    Parameters
    ----------
    ours, other
        Runs of each seed; with several loads the worst median counts.
    pick
        Figure of a run.

    """

    ours: tuple[Spec, ...]
    other: tuple[Spec, ...] = ()
    pick: Pick = _mean

    def specs(self) -> tuple[Spec, ...]:
        """Every run that it needs."""
        return self.ours + self.other

    def value(self, results: Results) -> Value | None:
        """Work out the figure; None while a run is missing."""
        by_load: dict[tuple[float, str], list[float]] = {}
        for index, spec in enumerate(self.ours):
            ours = results.get(spec)
            other = results.get(self.other[index]) if self.other else None
            if ours is None or (self.other and other is None):
                return None
            value = self.pick(ours) / (self.pick(other) if other is not None else 1.0)
            by_load.setdefault((spec.load, spec.fleet), []).append(value)
        worst = max(by_load.values(), key=lambda values: float(np.median(values)))
        return Value(float(np.median(worst)), min(worst), max(worst))

    def unstable(self, results: Results) -> tuple[int, int]:
        """Seeds in which ours, and in which the other, could not keep up."""

        def count(specs: Sequence[Spec]) -> int:
            known = [results.get(spec) for spec in specs]
            return sum(1 for each in known if each is not None and not each["stable"])

        return count(self.ours), count(self.other)


@dataclass(frozen=True)
class Measure:
    """One row of the table.

    Parameters
    ----------
    scenario, load, metric
        What the reader is told.
    numbers
        The figures of the row.
    must, prototype
        What each must be at most, and what an earlier prototype reached.
    percent
        Whether the figures are shares, shown in percent.

    """

    scenario: str
    load: str
    metric: str
    numbers: tuple[Number, ...]
    must: tuple[float, ...]
    prototype: tuple[float, ...]
    percent: bool = False


@dataclass(frozen=True)
class WeakSpot:
    """One row of the table of what the policy is not good at.

    Parameters
    ----------
    scenario, load, metric, numbers, percent
        As in ``Measure``.
    prototype
        What an earlier prototype reached, as text, since it was not always one number.

    """

    scenario: str
    load: str
    metric: str
    numbers: tuple[Number, ...]
    prototype: str = "-"
    percent: bool = False


def weak_spots(policy: str, seeds: Sequence[int] = SEEDS) -> list[WeakSpot]:
    """Rows of the second table."""

    def runs(name: str, load: float, **changes: object) -> tuple[Spec, ...]:
        plain = [Spec(name, load, seed) for seed in seeds]
        return tuple(replace(spec, **changes) for spec in plain)  # type: ignore[arg-type]

    def against(other: str, load: float, pick: Pick = _mean, **changes: object) -> Number:
        return Number(runs(policy, load, **changes), runs(other, load, **changes), pick)

    noisy = {"fleet": "v100=8", "size_cv": 1.0, "steal": STEAL}
    short = {"tasks": 12_000, "warmup": 0}
    faulty = {"fleet": LARGE, "steal": STEAL, "misfits": 6, "slow_gpu": True}
    stale = {**faulty, "routers": 8, "view_age": 1.0}
    return [
        WeakSpot(
            "8 identical GPUs, size CV 1.0, stealing",
            "0.7 / 0.8 / 0.9",
            "p99 / shared FIFO",
            tuple(against("shared_fifo", load, _p99, **noisy) for load in (0.7, 0.8, 0.9)),
            "1.19",
        ),
        WeakSpot(
            "12 GPUs, bursty",
            "0.95",
            "mean / M/G/1 improvement known",
            (against("policy_improvement_oracle", 0.95, arrivals="mmpp"),),
            "1.02-1.08",
        ),
        WeakSpot(
            "12 GPUs, size CV 1.0",
            "0.95",
            "mean / late binding with known rates",
            (against("late_binding_oracle", 0.95, size_cv=1.0),),
        ),
        WeakSpot(
            "12 GPUs from zero knowledge; from a prior with 40 % error",
            "0.95",
            "tasks 0-1k / known rates",
            (
                against("priced_oracle", 0.95, _first),
                Number(
                    runs(policy, 0.95, prior_error=0.4, **short),
                    runs("priced_oracle", 0.95),
                    _first,
                ),
            ),
            "2.7; 1.3",
        ),
        WeakSpot(
            "64 GPUs, stealing: 8 routers, view 1 s old, 6 types out of memory on K80 and one V100 "
            "at quarter speed, all at once",
            "0.85",
            "mean / one router, fresh view, the same faults",
            (Number(runs(policy, 0.85, **stale), runs(policy, 0.85, **faulty)),),
            "not tried",
        ),
        WeakSpot(
            "the same",
            "0.85",
            "failed tries after warm-up",
            (Number(runs(policy, 0.85, **stale), pick=_failed),),
            "not tried",
            percent=True,
        ),
    ]


def measures(policy: str, seeds: Sequence[int] = SEEDS) -> list[Measure]:
    """Rows of the table for a policy."""

    def runs(name: str, *loads: float, **changes: object) -> tuple[Spec, ...]:
        plain = [Spec(name, load, seed) for load in loads for seed in seeds]
        return tuple(replace(spec, **changes) for spec in plain)  # type: ignore[arg-type]

    def against(other: str, *loads: float, pick: Pick = _mean, **changes: object) -> Number:
        return Number(runs(policy, *loads, **changes), runs(other, *loads, **changes), pick)

    def each(
        other: str, *loads: float, pick: Pick = _mean, **changes: object
    ) -> tuple[Number, ...]:
        return tuple(against(other, load, pick=pick, **changes) for load in loads)

    def plain(*loads: float, pick: Pick = _mean, **changes: object) -> tuple[Number, ...]:
        return tuple(Number(runs(policy, load, **changes), pick=pick) for load in loads)

    def versus_fresh(fleet: str, age: float, routers: int, steal: float | None) -> Number:
        old = runs(policy, 0.85, fleet=fleet, view_age=age, routers=routers, steal=steal)
        return Number(old, runs(policy, 0.85, fleet=fleet, steal=steal))

    small = "4 K80 + 4 P100 + 4 V100, Poisson"
    large = "22 + 21 + 21 GPUs"
    short = {"tasks": 12_000, "warmup": 0}
    return [
        Measure(
            small,
            "0.5 / 0.7",
            "mean / shared FIFO",
            each("shared_fifo", 0.5, 0.7),
            (0.65, 0.40),
            (0.61, 0.32),
        ),
        Measure(small, "0.85 / 0.95", "mean, s", plain(0.85, 0.95), (1.80, 3.6), (1.62, 3.14)),
        Measure(
            small,
            "0.7 / 0.85",
            "mean / JSED with known rates",
            each("jsed_oracle", 0.7, 0.85),
            (0.93, 0.78),
            (0.89, 0.71),
        ),
        Measure(
            small,
            "0.5 - 0.95",
            "mean / priced rule with known rates, worst load",
            (against("priced_oracle", 0.5, 0.7, 0.85, 0.95),),
            (1.05,),
            (1.02,),
        ),
        Measure(
            small,
            "0.7 / 0.85 / 0.95",
            "mean / late binding with known rates",
            each("late_binding_oracle", 0.7, 0.85, 0.95),
            (1.08, 1.08, 1.08),
            (1.01, 1.00, 1.00),
        ),
        Measure(small, "0.85", "p99, s", plain(0.85, pick=_p99), (6.3,), (5.4,)),
        Measure(
            small + ", from zero knowledge",
            "0.7",
            "tasks 0-1k, 1k-5k / known rates",
            (
                against("priced_oracle", 0.7, pick=_first),
                against("priced_oracle", 0.7, pick=_second),
            ),
            (1.45, 1.08),
            (1.28, 1.03),
        ),
        Measure(
            small + ", prior with 40 % error",
            "0.7 / 0.85",
            "tasks 0-1k / known rates",
            tuple(
                Number(
                    runs(policy, load, prior_error=0.4, **short),
                    runs("priced_oracle", load),
                    _first,
                )
                for load in (0.7, 0.85)
            ),
            (1.15, 1.35),
            (1.08, 1.20),
        ),
        Measure(
            large + ", Poisson",
            "0.7 / 0.85 / 0.95",
            "mean, s",
            plain(0.7, 0.85, 0.95, fleet=LARGE),
            (1.18, 1.33, 1.70),
            (1.09, 1.22, 1.47),
        ),
        Measure(
            "12 GPUs, bursty",
            "0.7 / 0.85",
            "mean / JSED with known rates",
            each("jsed_oracle", 0.7, 0.85, arrivals="mmpp"),
            (0.75, 0.60),
            (0.65, 0.51),
        ),
        Measure(
            "64 GPUs, bursty",
            "0.7",
            "mean / JSED known; / M/G/1 improvement known",
            (
                against("jsed_oracle", 0.7, fleet=LARGE, arrivals="mmpp"),
                against("policy_improvement_oracle", 0.7, fleet=LARGE, arrivals="mmpp"),
            ),
            (0.80, 1.00),
            (0.72, 0.94),
        ),
        Measure(
            "12 GPUs, size CV 1.0",
            "0.85",
            "mean / JSED with known rates",
            each("jsed_oracle", 0.85, size_cv=1.0),
            (0.68,),
            (0.60,),
        ),
        Measure(
            "one of four V100 at quarter speed",
            "0.7",
            "p99 in the fault / frozen JSED",
            each("jsed_oracle", 0.7, slow_gpu=True, pick=_in_fault),
            (0.55,),
            (0.41,),
        ),
        Measure(
            "6 of 26 types always out of memory on K80",
            "0.85",
            "failed tries after warm-up",
            plain(0.85, misfits=6, pick=_failed),
            (0.001,),
            (0.0002,),
            percent=True,
        ),
        Measure(
            "one router, view 1 s old",
            "0.85",
            "mean / fresh view, 12 and 64 GPUs",
            (
                versus_fresh(SMALL, 1.0, 1, None),
                versus_fresh(LARGE, 1.0, 1, None),
            ),
            (1.15, 1.25),
            (1.05, 1.13),
        ),
        Measure(
            "8 routers, view 0.2 / 1 s old, stealing",
            "0.85",
            "mean / fresh view, 64 GPUs",
            (versus_fresh(LARGE, 0.2, 8, STEAL), versus_fresh(LARGE, 1.0, 8, STEAL)),
            (1.12, 1.25),
            (1.05, 1.12),
        ),
        Measure(
            "8 and 32 identical GPUs, stealing on a 50 ms tick",
            "0.5 - 0.9",
            "mean / shared FIFO, worst load",
            tuple(
                against("shared_fifo", 0.5, 0.7, 0.8, 0.9, fleet=fleet, steal=STEAL)
                for fleet in ("v100=8", "v100=32")
            ),
            (1.03, 1.03),
            (1.017, 1.017),
        ),
    ]
