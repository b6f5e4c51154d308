"""What one site has learned that another can begin from: nothing that exists only there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

PRIOR_SAMPLES: Final = 10.0
"""Samples that a number from elsewhere is worth at most, however many it rests on there."""


@dataclass(frozen=True, slots=True)
class PairPrior:
    """How one task type does on one GPU model.

    Parameters
    ----------
    seconds
        Mean service time of a task of size 1, > 0; None without a successful try.
    successes
        Samples behind it.
    mean_size
        Mean size of those tasks, > 0.
    failure_probability
        Probability that a try fails, 0-1; 0 when none ever did.
    tries
        Recent tries behind that.
    needed_memory_bytes, peak_memory_bytes
        GPU memory that a task needs at least, and the largest peak seen of late; None when
        unknown. The first without the second comes from tries that ran out of memory.
    standard_deviation_seconds
        Spread of the service times, for people; None below two tries.

    """

    task_type: str
    gpu_model: str
    seconds: float | None = None
    successes: int = 0
    mean_size: float = 1.0
    failure_probability: float = 0.0
    tries: int = 0
    needed_memory_bytes: int | None = None
    peak_memory_bytes: int | None = None
    standard_deviation_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class LoadPrior:
    """How long loading one machine-learning model takes; ``count`` loads were seen."""

    model: str
    seconds: float
    count: int


@dataclass(frozen=True, slots=True)
class Prior:
    """Everything that can be taken to another site."""

    pairs: tuple[PairPrior, ...] = ()
    loads: tuple[LoadPrior, ...] = ()


@dataclass(frozen=True, slots=True)
class TakenPrior:
    """What a policy took of a prior.

    Parameters
    ----------
    service_times, failure_rates, memory_needs, load_times
        Numbers taken.
    left
        Numbers not taken because the policy has samples of its own, or no room.

    """

    service_times: int = 0
    failure_rates: int = 0
    memory_needs: int = 0
    load_times: int = 0
    left: int = 0
