"""Figures of a run, and whether the policy could keep up at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from owl_celery.simulate.conditions import Run

Floats = npt.NDArray[np.float64]

SEGMENTS: Final = 5
LEAST_TASKS: Final = 1_000
"""Fewer tell nothing."""

UNSTABLE_SHARE: Final = 0.05
"""A mean response time of more than this share of the run is no steady state."""

UNSTABLE_DRIFT: Final = 0.005
"""A policy whose response time grows by this many seconds a second falls behind."""


@dataclass(frozen=True, slots=True)
class Row:
    """Figures of one run; seconds of response time unless said otherwise.

    Parameters
    ----------
    policy, load, seed
        What ran.
    mean, p50, p95, p99
        Over the tasks after the warm-up.
    stable
        Whether the mean stayed as it is however long the run.
    mean_first_1k, mean_1k_5k
        Means of the first 1,000 tasks of all and of the next 4,000; None in a shorter run.
    tasks
        Number of tasks that the means are taken over.
    failed_ratio
        Share of tries after the warm-up that failed.
    lost
        Tasks given up.
    stolen_ratio, explored_ratio
        Tasks moved, and decisions called exploration, for each task.
    tasks_per_second
        Speed of the simulation itself.

    """

    policy: str
    load: float
    seed: int
    mean: float
    p50: float
    p95: float
    p99: float
    stable: bool
    mean_first_1k: float | None
    mean_1k_5k: float | None
    tasks: int
    failed_ratio: float
    lost: int
    stolen_ratio: float
    explored_ratio: float
    tasks_per_second: float

    def as_json(self) -> dict[str, Any]:
        """JSON value."""
        return asdict(self)


def figures(
    run: Run, policy: str, load: float, seed: int, warmup: int, tasks_per_second: float
) -> Row:
    """Reduce a run to its figures; a task that can never end counts until the last arrival."""
    horizon = float(run.arrived[-1])
    response = np.where(np.isnan(run.response), horizon - run.arrived, run.response)
    settled = response[warmup:]
    tries = run.tries[warmup:]
    p50, p95, p99 = (float(v) for v in np.percentile(settled, (50, 95, 99)))
    return Row(
        policy=policy,
        load=load,
        seed=seed,
        mean=float(settled.mean()),
        p50=p50,
        p95=p95,
        p99=p99,
        stable=is_stable(run.arrived[warmup:], settled) and not np.isnan(run.response).any(),
        mean_first_1k=float(response[:1000].mean()) if len(response) >= 1000 else None,
        mean_1k_5k=float(response[1000:5000].mean()) if len(response) >= 5000 else None,
        tasks=len(settled),
        failed_ratio=1.0 - float(len(settled) / max(int(tries.sum()), 1)),
        lost=run.lost,
        stolen_ratio=run.stolen / len(response),
        explored_ratio=run.explored / len(response),
        tasks_per_second=tasks_per_second,
    )


def is_stable(arrived: Floats, response: Floats) -> bool:
    """Whether response times stop growing with the length of the run.

    The run is cut into five parts of equally many tasks. A queue that gets more than it serves
    makes the mean of each part larger than the one before, in proportion to time; chance makes
    single parts larger, and by less the longer the run. A backlog from before, that takes as long
    to work off as one looks, is no steady state either.
    """
    if len(response) < LEAST_TASKS:
        return True
    means = [float(part.mean()) for part in np.array_split(response, SEGMENTS)]
    middles = [float(part.mean()) for part in np.array_split(arrived, SEGMENTS)]
    if middles[-1] <= middles[0]:
        return True
    if float(response.mean()) > UNSTABLE_SHARE * float(arrived[-1] - arrived[0]):
        return False
    slope = float(np.polyfit(middles, means, 1)[0])
    is_larger = means[-1] > 1.5 * means[0] and means[-1] > 1.2 * means[SEGMENTS // 2]
    return not (slope > UNSTABLE_DRIFT and is_larger)


def median_row(rows: Sequence[Row]) -> dict[str, float]:
    """Medians over seeds of the figures that tables show."""
    names = ("mean", "p50", "p95", "p99")
    return {name: float(np.median([getattr(row, name) for row in rows])) for name in names}
