"""What hardware a task type needs, as far as its outcomes tell, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from owl_celery.aggregates import ServiceStats, TaskTypeStats
from owl_celery.confidence import SURE, student_cdf, student_width
from owl_celery.prior import PairPrior
from owl_celery.sufficiency import Sufficient, smallest_sufficient, why_closed

ENOUGH_SAMPLES: Final = 5
"""Successful tries on a GPU model below which nothing is claimed of it."""

WORTHWHILE_SPEED_UP: Final = 1.1
"""A GPU model benefits a task type when it is this many times as fast as the slowest."""


@dataclass(frozen=True, slots=True)
class ModelRequirement:
    """How one task type does on one GPU model.

    Parameters
    ----------
    count
        Successful tries, on which the mean rests.
    mean_seconds, standard_error_seconds
        Service time for a task of size 1; None below one and two successful tries.
    low_seconds, high_seconds
        The true mean lies between them with a probability of 95 %; None below two tries.
    predicted_seconds
        What the policy expects for a task of size 1, also without any try; None when it does not
        predict.
    speed_up
        Times as fast as the slowest GPU model; None until both have enough tries.
    benefits
        Whether it is at least 1.1 times as fast as the slowest: true, false, or None while the
        tries do not tell.
    confidence
        Probability, 0-1, that ``benefits`` is right; None without a claim.
    failures, failure_rate, out_of_memory
        Failed tries ever, their share, and those that ran out of memory.
    failure_probability
        What the policy expects of the next try, 0-1; None when it does not say.
    peak_memory_bytes
        Largest peak of any try; None when none was reported.
    needed_memory_bytes
        GPU memory that the policy asks for; None when unknown.
    memory_bytes
        Memory of a GPU of this model; None when unknown.
    closed_because
        Why the policy sends the type elsewhere, in a sentence; empty where it may run.

    """

    gpu_model: str
    count: int
    mean_seconds: float | None
    standard_error_seconds: float | None
    low_seconds: float | None
    high_seconds: float | None
    predicted_seconds: float | None
    speed_up: float | None
    benefits: bool | None
    confidence: float | None
    failures: int
    failure_rate: float | None
    out_of_memory: int
    failure_probability: float | None
    peak_memory_bytes: int | None
    needed_memory_bytes: int | None
    memory_bytes: int | None
    closed_because: str


@dataclass(frozen=True, slots=True)
class Requirements:
    """What was learned of the hardware that one task type needs.

    Parameters
    ----------
    models
        GPU models, the fastest known first, then those without a successful try.
    successes, failures, failure_rate, out_of_memory, peak_memory_bytes
        Over all GPU models.
    needed_memory_bytes
        Most that the policy asks for on any GPU model; None when unknown.
    has_enough_samples
        Whether two GPU models or more have enough tries to compare them.
    benefits_from
        GPU models that are surely faster than the slowest, the fastest first.
    smallest_sufficient
        The smallest GPU model on which the type ran well; None while no model has enough tries.
    closed
        GPU models to which the policy does not send the type, see ``closed_because``.
    explanation
        The same in sentences, for people.

    """

    task_type: str
    models: tuple[ModelRequirement, ...]
    successes: int
    failures: int
    failure_rate: float | None
    out_of_memory: int
    peak_memory_bytes: int | None
    needed_memory_bytes: int | None
    has_enough_samples: bool
    benefits_from: tuple[str, ...]
    smallest_sufficient: Sufficient | None
    closed: tuple[str, ...]
    explanation: str


def derive(
    task_type: str,
    totals: TaskTypeStats | None,
    services: Sequence[ServiceStats],
    predicted_seconds: Mapping[str, float | None],
    pairs: Sequence[PairPrior] = (),
    memory_bytes: Mapping[str, int] | None = None,
    free_bytes: Mapping[str, float] | None = None,
) -> Requirements:
    """Work out the requirements of a task type from its rows.

    Parameters
    ----------
    totals
        Its row over all workers; None when it was never seen or has no row of its own.
    services
        Its rows by GPU model.
    predicted_seconds
        The policy's prediction for every known GPU model.
    pairs
        What the policy knows of its pairs, by ``Policy.export_prior``.
    memory_bytes
        Total memory of a GPU, by GPU model, where known; the least where GPUs differ.
    free_bytes
        Most memory that a GPU has free when idle, by GPU model, where known: it decides where a
        type fits, and the total does when this is omitted.

    """
    seen = {row.gpu_model: row for row in services}
    known = {pair.gpu_model: pair for pair in pairs if pair.task_type == task_type}
    memory = memory_bytes or {}
    room: Mapping[str, float] = memory if free_bytes is None else free_bytes
    compared = [row for row in services if row.count >= ENOUGH_SAMPLES]
    slowest = max(compared, key=lambda row: row.mean_seconds, default=None)
    names = sorted(seen.keys() | predicted_seconds.keys() | known.keys())
    models = [
        _model(
            seen.get(name) or ServiceStats(gpu_model=name),
            predicted_seconds.get(name),
            known.get(name),
            memory.get(name),
            room.get(name),
            slowest if len(compared) >= 2 else None,
            len(compared) - 1,
        )
        for name in names
    ]
    models.sort(key=lambda m: math.inf if m.mean_seconds is None else m.mean_seconds)
    peaks = [row.peak_memory_bytes for row in services if row.peak_memory_bytes is not None]
    needs = [m.needed_memory_bytes for m in models if m.needed_memory_bytes is not None]
    closed = tuple(m.gpu_model for m in models if m.closed_because)
    smallest = smallest_sufficient(compared, closed, memory, max(peaks, default=None))
    sentences = [_compared(task_type, totals, models, slowest, len(compared))]
    if totals is not None:
        sentences += [smallest.explanation] if smallest and len(compared) >= 2 else []
        sentences += [
            f"Not on {m.gpu_model}: {m.closed_because}" for m in models if m.closed_because
        ]
    return Requirements(
        task_type=task_type,
        models=tuple(models),
        successes=totals.successes if totals else 0,
        failures=totals.failures if totals else 0,
        failure_rate=totals.failures / totals.tries if totals and totals.tries else None,
        out_of_memory=totals.out_of_memory if totals else 0,
        peak_memory_bytes=max(peaks, default=None),
        needed_memory_bytes=max(needs, default=None),
        has_enough_samples=len(compared) >= 2,
        benefits_from=tuple(m.gpu_model for m in models if m.benefits),
        smallest_sufficient=smallest,
        closed=closed,
        explanation=" ".join(sentences),
    )


def _model(
    row: ServiceStats,
    predicted_seconds: float | None,
    known: PairPrior | None,
    memory_bytes: int | None,
    room_bytes: float | None,
    slowest: ServiceStats | None,
    comparisons: int,
) -> ModelRequirement:
    tries = row.count + row.failures
    speed_up = benefits = confidence = None
    if slowest is not None and row.count >= ENOUGH_SAMPLES:
        speed_up = slowest.mean_seconds / row.mean_seconds if row.mean_seconds > 0 else None
        if row is not slowest:
            benefits, confidence = _compare(row, slowest, comparisons)
    error = row.standard_error_seconds
    width = None if error is None else error * student_width(row.count - 1)
    return ModelRequirement(
        gpu_model=row.gpu_model,
        count=row.count,
        mean_seconds=row.mean_seconds if row.count else None,
        standard_error_seconds=error,
        low_seconds=None if width is None else max(row.mean_seconds - width, 0.0),
        high_seconds=None if width is None else row.mean_seconds + width,
        predicted_seconds=predicted_seconds,
        speed_up=speed_up,
        benefits=benefits,
        confidence=confidence,
        failures=row.failures,
        failure_rate=row.failures / tries if tries else None,
        out_of_memory=row.out_of_memory,
        failure_probability=known.failure_probability if known else None,
        peak_memory_bytes=row.peak_memory_bytes,
        needed_memory_bytes=known.needed_memory_bytes if known else None,
        memory_bytes=memory_bytes,
        closed_because=why_closed(known, room_bytes) if known else "",
    )


def _compare(
    row: ServiceStats, slowest: ServiceStats, comparisons: int
) -> tuple[bool | None, float | None]:
    """Whether the row is worthwhile against the slowest, by Welch's test, and how sure that is.

    The doubt is multiplied by the number of GPU models compared (Bonferroni), since with many of
    them one looks faster by chance.
    """
    scale = WORTHWHILE_SPEED_UP
    gain_seconds = slowest.mean_seconds - scale * row.mean_seconds
    slow = (slowest.standard_error_seconds or 0.0) ** 2
    fast = (scale * (row.standard_error_seconds or 0.0)) ** 2
    if slow + fast == 0.0:
        return gain_seconds >= 0.0, 1.0
    freedom = (slow + fast) ** 2 / (slow**2 / (slowest.count - 1) + fast**2 / (row.count - 1))
    is_worthwhile = student_cdf(gain_seconds / math.sqrt(slow + fast), freedom)
    if 1.0 - (1.0 - is_worthwhile) * comparisons >= SURE:
        return True, 1.0 - (1.0 - is_worthwhile) * comparisons
    if 1.0 - is_worthwhile * comparisons >= SURE:
        return False, 1.0 - is_worthwhile * comparisons
    return None, None


def _compared(
    task_type: str,
    totals: TaskTypeStats | None,
    models: Sequence[ModelRequirement],
    slowest: ServiceStats | None,
    compared: int,
) -> str:
    if totals is None:
        return f"No try of {task_type} has a row of its own: never seen, or pooled under 'other'."
    if slowest is None or compared < 2:
        return (
            f"Too few samples: {ENOUGH_SAMPLES} successful tries of {task_type} on each of two "
            f"GPU models are needed, and {compared} has or have them."
        )
    sure = [m for m in models if m.benefits and m.confidence is not None]
    if sure:
        best = sure[0]
        how = (
            f"{best.speed_up:.2g} times as fast on {best.gpu_model} as"
            if best.speed_up is not None
            else f"in no time on {best.gpu_model}, unlike"
        )
        return (
            f"{task_type} runs {how} on {slowest.gpu_model} "
            f"(confidence that it is worthwhile: {best.confidence:.1%})."
        )
    if any(
        m.benefits is None and m.speed_up is not None and m.gpu_model != slowest.gpu_model
        for m in models
    ):
        return f"The tries of {task_type} do not tell yet whether any GPU model is faster."
    return f"{task_type} gains nothing from a faster GPU model: all are within 10 %."
