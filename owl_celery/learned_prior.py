"""What a site has learned and another can begin from, taken from what its store keeps."""

from __future__ import annotations

from dataclasses import replace

from owl_celery.aggregates import Learned, ServiceStats
from owl_celery.learned_policy import policy_of
from owl_celery.prior import PairPrior, Prior
from owl_celery.settings import Settings


def prior_of(learned: Learned, settings: Settings) -> tuple[Prior, str]:
    """The prior, and the name of the policy that knows it; empty when it is from counts alone.

    The policy saved last that learns service times is asked, so that corrections for single slow
    GPUs and for the size of tasks are in; without any it is the means of all tries ever.
    """
    rows = {(row.task_type, row.gpu_model): row for row in learned.aggregates.services}
    found = policy_of(learned, settings)
    if found is None:
        return Prior(tuple(_counted(row) for row in rows.values() if row.gpu_model)), ""
    policy, prior = found
    pairs = [
        replace(
            pair, standard_deviation_seconds=_spread(rows.get((pair.task_type, pair.gpu_model)))
        )
        for pair in prior.pairs
    ]
    return replace(prior, pairs=tuple(pairs)), policy.name


def _counted(row: ServiceStats) -> PairPrior:
    tries = row.count + row.failures
    is_known = row.count > 0 and row.mean_seconds > 0.0
    return PairPrior(
        row.task_type,
        row.gpu_model,
        seconds=row.mean_seconds if is_known else None,
        successes=row.count if is_known else 0,
        failure_probability=row.failures / tries if tries else 0.0,
        tries=tries,
        needed_memory_bytes=row.peak_memory_bytes or None,
        peak_memory_bytes=row.peak_memory_bytes or None,
        standard_deviation_seconds=_spread(row),
    )


def _spread(row: ServiceStats | None) -> float | None:
    if row is None or row.count < 2:
        return None
    return float((max(row.m2, 0.0) / (row.count - 1)) ** 0.5)
