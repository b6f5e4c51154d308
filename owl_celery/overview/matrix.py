"""What is known of each task type on each GPU model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from owl_celery.aggregates import OTHER, ServiceStats
from owl_celery.overview.reader import predictions
from owl_celery.overview.values import Overview
from owl_celery.policies.failures import CLOSED_PROBABILITY


class Cell(NamedTuple):
    """One task type on one GPU model.

    Parameters
    ----------
    seconds
        What the policy expects of a task of size 1; the mean of the tries where it tells nothing,
        None without either.
    samples
        Successful tries.
    failure_rate
        Share of tries that failed; None before the first.
    is_closed
        Whether the policy holds that it nearly always fails there, and sends it elsewhere.

    """

    task_type: str
    gpu_model: str
    seconds: float | None
    samples: int
    failure_rate: float | None
    is_closed: bool


def pairs_of(overview: Overview) -> list[tuple[str, str]]:
    """Every task type that has a row, with every GPU model, sorted."""
    types = {row.task_type for row in overview.services} - {OTHER}
    models = {row.gpu_model for row in overview.services}
    models |= {queue.gpu_model for queue in overview.queues}
    return [(kind, model) for kind in sorted(types) for model in sorted(models - {""})]


def cells_of(overview: Overview, pairs: Iterable[tuple[str, str]]) -> list[Cell]:
    """What is known of these pairs of task type and GPU model."""
    rows = {(row.task_type, row.gpu_model): row for row in overview.services}
    return [_cell(overview, rows.get(pair), *pair) for pair in pairs]


def _cell(overview: Overview, row: ServiceStats | None, task_type: str, model: str) -> Cell:
    seconds = predictions(overview.knowledge)(task_type, model)
    count, failures = (row.count, row.failures) if row is not None else (0, 0)
    if seconds is None and row is not None and row.count:
        seconds = row.mean_seconds
    return Cell(
        task_type=task_type,
        gpu_model=model,
        seconds=seconds,
        samples=count,
        failure_rate=failures / (count + failures) if count + failures else None,
        is_closed=_failure(overview, task_type, model) >= CLOSED_PROBABILITY,
    )


def _failure(overview: Overview, task_type: str, model: str) -> float:
    """Probability with which the policy expects a try to fail; 0 where it tells nothing."""
    beliefs = overview.knowledge.beliefs
    if beliefs is None or task_type not in beliefs.types or model not in beliefs.models:
        return 0.0
    return float(beliefs.failure[beliefs.types[task_type], beliefs.models[model]])
