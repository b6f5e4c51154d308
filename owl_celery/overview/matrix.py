"""What is known of each task type on each GPU model."""

from __future__ import annotations

import math
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
        Whether the policy holds that it nearly always fails there, or needs more memory, and sends
        it elsewhere.

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
    free = free_of(overview)
    return [_cell(overview, rows.get(pair), *pair, free.get(pair[1])) for pair in pairs]


def free_of(overview: Overview) -> dict[str, float]:
    """Most memory that a GPU has free when idle, by GPU model; left out where one is unknown."""
    found: dict[str, float] = {}
    for queue in overview.queues:
        free = math.inf if queue.idle_memory_bytes is None else queue.idle_memory_bytes
        found[queue.gpu_model] = max(found.get(queue.gpu_model, 0.0), free)
    return {model: free for model, free in found.items() if math.isfinite(free)}


def _cell(
    overview: Overview,
    row: ServiceStats | None,
    task_type: str,
    model: str,
    free_bytes: float | None,
) -> Cell:
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
        is_closed=_is_closed(overview, task_type, model, free_bytes),
    )


def _is_closed(overview: Overview, task_type: str, model: str, free_bytes: float | None) -> bool:
    """Whether the policy expects nearly every try to fail, or too little memory."""
    beliefs = overview.knowledge.beliefs
    if beliefs is None or task_type not in beliefs.types or model not in beliefs.models:
        return False
    cell = beliefs.types[task_type], beliefs.models[model]
    # As in routing: what a try ran out of is little less than all, and more than is ever free.
    is_short = free_bytes is not None and float(beliefs.needed[cell]) > free_bytes
    return is_short or float(beliefs.failure[cell]) > CLOSED_PROBABILITY
