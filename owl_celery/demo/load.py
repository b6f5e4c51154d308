"""The demo's work: the Gavel mix, arriving by a seeded Poisson process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from owl_celery.simulate.arrivals import poisson
from owl_celery.simulate.instance import Instance
from owl_celery.simulate.table import gavel_table

SIZE_CV = 0.3


@dataclass(frozen=True, slots=True)
class Job:
    """One task to send.

    Parameters
    ----------
    at
        Seconds after the first moment of the arm.
    task_type
        Row of the Gavel table.
    size
        Factor of the service time, known when the task is sent.
    scale_seconds
        Seconds that stand for one measured second of this type.

    """

    at: float
    task_type: str
    size: float
    scale_seconds: float


def draw_jobs(
    fleet: Mapping[str, int], load: float, seconds: float, mean_seconds: float, seed: int
) -> list[Job]:
    """Draw the tasks of one arm; both arms get the same ones.

    Parameters
    ----------
    fleet
        GPUs by model.
    load
        Arrival rate as a share of the most that this fleet can serve of this mix, > 0.
    seconds
        Length of the arrivals.
    mean_seconds
        Mean service time if every task ran on its best GPU model.
    seed
        Draws types, weights, sizes and arrivals.

    """
    instance = Instance.draw(gavel_table(), fleet, seed)
    measured = gavel_table().restricted(instance.table.models)
    scale = mean_seconds * (instance.table.seconds / measured.seconds)[:, 0]
    rate = load * instance.capacity.rate / mean_seconds
    arrivals = poisson(rate, instance.mix, max(int(rate * seconds), 1), SIZE_CV, seed)
    return [
        Job(float(at), instance.table.types[row], float(size), float(scale[row]))
        for at, row, size in zip(arrivals.times, arrivals.types, arrivals.sizes, strict=True)
    ]
