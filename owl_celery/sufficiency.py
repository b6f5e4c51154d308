"""On which GPU models a task type can run at all, and which of them is the smallest."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from owl_celery.aggregates import ServiceStats
from owl_celery.confidence import at_least
from owl_celery.policies.failures import CLOSED_PROBABILITY
from owl_celery.prior import PairPrior

TOLERATED: Final = 0.1
"""A GPU model suffices when a type fails there by at most so much more than where it does least."""


@dataclass(frozen=True, slots=True)
class Sufficient:
    """The smallest GPU model on which a task type ran well.

    Parameters
    ----------
    memory_bytes
        Memory of such a GPU; None when unknown, and then it is the slowest of those that never ran
        out of memory.
    confidence
        Probability, 0-1, that the type fails there at most a tenth more often than where it fails
        least.
    explanation
        The same in a sentence, for people.

    """

    gpu_model: str
    memory_bytes: int | None
    confidence: float
    explanation: str


def smallest_sufficient(
    rows: Sequence[ServiceStats],
    closed: Collection[str],
    memory_bytes: Mapping[str, int],
    peak_memory_bytes: int | None,
) -> Sufficient | None:
    """Find the smallest GPU model that suffices; None when none does for sure enough to say.

    Parameters
    ----------
    rows
        Those with enough successful tries.
    closed
        GPU models that the policy does not use for the type.
    memory_bytes
        Memory of a GPU by model, where known.
    peak_memory_bytes
        Largest peak ever, for the explanation.

    """
    least = min((_failure_rate(row) for row in rows), default=0.0)
    works = [
        row
        for row in rows
        if row.gpu_model not in closed and _failure_rate(row) <= least + TOLERATED
    ]
    sized = [row for row in works if row.gpu_model in memory_bytes]
    safe = [row for row in works if not row.out_of_memory]
    if sized:
        # Of equal ones the slower is the lesser.
        best = min(sized, key=lambda row: (memory_bytes[row.gpu_model], -row.mean_seconds))
    elif safe:
        best = max(safe, key=lambda row: row.mean_seconds)
    else:
        return None
    size = memory_bytes.get(best.gpu_model)
    confidence = at_least(1.0 - least - TOLERATED, best.count, best.failures)
    what = (
        f"the least memory ({in_gib(size)})"
        if size is not None
        else "the slowest that never ran out of memory; how much they have is not known,"
    )
    peak = f", peak {in_gib(peak_memory_bytes)}" if peak_memory_bytes else ""
    return Sufficient(
        best.gpu_model,
        size,
        confidence,
        f"The smallest that suffices is {best.gpu_model}: {what} of {len(works)} on which it ran "
        f"well ({best.count} successes, {best.failures} failures{peak}; confidence "
        f"{confidence:.0%}).",
    )


def why_closed(pair: PairPrior, room_bytes: float | None) -> str:
    """Why the policy does not send a type to a GPU model, in a sentence; empty when it does.

    Parameters
    ----------
    pair
        What the policy knows.
    room_bytes
        Most memory that a GPU of the model can give; None when unknown, and then none is too small.

    """
    needed, peak = pair.needed_memory_bytes, pair.peak_memory_bytes
    if needed is not None and room_bytes is not None and needed > room_bytes:
        if peak is None:
            return f"it ran out of memory with {in_gib(needed)} free."
        return f"it needs {in_gib(needed)} of memory, and there are {in_gib(room_bytes)}."
    if pair.failure_probability > CLOSED_PROBABILITY:
        reason = " for lack of memory" if needed is not None and peak is None else ""
        return f"it fails there with a probability of {pair.failure_probability:.0%}{reason}."
    return ""


def in_gib(size: float) -> str:
    """A size for people."""
    return f"{size / 2**30:.3g} GiB"


def _failure_rate(row: ServiceStats) -> float:
    return row.failures / max(row.count + row.failures, 1)
