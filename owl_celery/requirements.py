"""What hardware a task type needs, as far as its outcomes tell, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from owl_celery.aggregates import ServiceStats, TaskTypeStats

ENOUGH_SAMPLES: Final = 5
"""Successful tries on a GPU model below which nothing is claimed of it."""

WORTHWHILE_SPEED_UP: Final = 1.1
"""A GPU model benefits a task type when it is this many times as fast as the slowest."""

SURE: Final = 0.95
"""Confidence from which a claim is made."""


@dataclass(frozen=True, slots=True)
class ModelRequirement:
    """How one task type does on one GPU model.

    Parameters
    ----------
    count
        Successful tries, on which the mean rests.
    mean_seconds, standard_error_seconds
        Service time for a task of size 1; None below one and two successful tries.
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
        Failed tries, their share, and those that ran out of memory.
    peak_memory_bytes
        Largest peak of any try; None when none was reported.

    """

    gpu_model: str
    count: int
    mean_seconds: float | None
    standard_error_seconds: float | None
    predicted_seconds: float | None
    speed_up: float | None
    benefits: bool | None
    confidence: float | None
    failures: int
    failure_rate: float | None
    out_of_memory: int
    peak_memory_bytes: int | None


@dataclass(frozen=True, slots=True)
class Requirements:
    """What was learned of the hardware that one task type needs.

    Parameters
    ----------
    models
        GPU models, the fastest known first, then those without a successful try.
    successes, failures, failure_rate, out_of_memory, peak_memory_bytes
        Over all GPU models.
    has_enough_samples
        Whether two GPU models or more have enough tries to compare them.
    benefits_from
        GPU models that are surely faster than the slowest, the fastest first.
    explanation
        The same in a sentence, for people.

    """

    task_type: str
    models: tuple[ModelRequirement, ...]
    successes: int
    failures: int
    failure_rate: float | None
    out_of_memory: int
    peak_memory_bytes: int | None
    has_enough_samples: bool
    benefits_from: tuple[str, ...]
    explanation: str


def derive(
    task_type: str,
    totals: TaskTypeStats | None,
    services: Sequence[ServiceStats],
    predicted_seconds: Mapping[str, float | None],
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

    """
    seen = {row.gpu_model: row for row in services}
    compared = [row for row in services if row.count >= ENOUGH_SAMPLES]
    slowest = max(compared, key=lambda row: row.mean_seconds, default=None)
    models = [
        _model(seen.get(name), name, predicted_seconds.get(name), slowest, len(compared))
        for name in sorted(seen.keys() | predicted_seconds.keys())
    ]
    models.sort(key=lambda m: math.inf if m.mean_seconds is None else m.mean_seconds)
    peaks = [row.peak_memory_bytes for row in services if row.peak_memory_bytes is not None]
    benefits_from = tuple(m.gpu_model for m in models if m.benefits)
    return Requirements(
        task_type=task_type,
        models=tuple(models),
        successes=totals.successes if totals else 0,
        failures=totals.failures if totals else 0,
        failure_rate=totals.failures / totals.tries if totals and totals.tries else None,
        out_of_memory=totals.out_of_memory if totals else 0,
        peak_memory_bytes=max(peaks, default=None),
        has_enough_samples=len(compared) >= 2,
        benefits_from=benefits_from,
        explanation=_explain(task_type, totals, models, slowest, len(compared)),
    )


def _model(
    row: ServiceStats | None,
    gpu_model: str,
    predicted_seconds: float | None,
    slowest: ServiceStats | None,
    compared: int,
) -> ModelRequirement:
    row = row or ServiceStats(gpu_model=gpu_model)
    tries = row.count + row.failures
    speed_up = benefits = confidence = None
    if slowest is not None and compared >= 2 and row.count >= ENOUGH_SAMPLES:
        speed_up = slowest.mean_seconds / row.mean_seconds if row.mean_seconds > 0 else None
        if row is not slowest:
            benefits, confidence = _compare(row, slowest, compared - 1)
    return ModelRequirement(
        gpu_model=gpu_model,
        count=row.count,
        mean_seconds=row.mean_seconds if row.count else None,
        standard_error_seconds=row.standard_error_seconds,
        predicted_seconds=predicted_seconds,
        speed_up=speed_up,
        benefits=benefits,
        confidence=confidence,
        failures=row.failures,
        failure_rate=row.failures / tries if tries else None,
        out_of_memory=row.out_of_memory,
        peak_memory_bytes=row.peak_memory_bytes,
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


def student_cdf(t: float, freedom: float) -> float:
    """Distribution function of Student's t, within 0.001 for 3 degrees of freedom or more.

    The normal distribution at Wallace's argument.
    """
    shrink = (8.0 * freedom + 1.0) / (8.0 * freedom + 3.0)
    z = math.copysign(shrink * math.sqrt(freedom * math.log1p(t * t / freedom)), t)
    return 0.5 * math.erfc(-z / math.sqrt(2.0))


def _explain(
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
