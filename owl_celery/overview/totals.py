"""Sums over the aggregates, as ``TaskPerformanceTracker`` has them in the leading process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from owl_celery.aggregates import OTHER, Aggregates, CurvePoint
from owl_celery.book import CURVE_BUCKETS
from owl_celery.overview.values import Totals

EXPLORATION_TRIES: Final = 200


def totals_of(rows: Aggregates) -> Totals:
    """Sum up the rows of all task types, workers and algorithms."""
    successes = sum(row.successes for row in rows.task_types)
    failures = sum(row.failures for row in rows.task_types)
    responses = sum(row.responses for row in rows.algorithms)
    service = sum(row.service_seconds for row in rows.task_types)
    response = sum(row.response_seconds for row in rows.algorithms)
    return Totals(
        successes=successes,
        failures=failures,
        success_rate=successes / (successes + failures) if successes + failures else None,
        mean_service_seconds=service / successes if successes else None,
        mean_response_seconds=response / responses if responses else None,
        task_types=sum(row.task_type != OTHER for row in rows.task_types),
        workers=sum(row.worker_id != OTHER for row in rows.workers),
    )


def exploration_rate(curve: Sequence[CurvePoint], policy: str) -> float | None:
    """Share that explored of the policy's latest tries, 200 or so; None before the first."""
    points = [
        point
        for point in curve
        if point.algorithm == policy and point.bucket_seconds == min(CURVE_BUCKETS)
    ]
    tries = explored = 0
    for point in sorted(points, key=lambda point: -point.started_at):
        tries += point.tries + point.revoked
        explored += point.explored
        if tries >= EXPLORATION_TRIES:
            break
    return explored / tries if tries else None
