"""What is known of each task type on each GPU model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from owl_celery.aggregates import OTHER, ServiceStats
from owl_celery.overview.reader import predictions
from owl_celery.overview.requirements import memory_of
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
    memory = memory_of(overview)
    return [_cell(overview, rows.get(pair), *pair, memory.get(pair[1])) for pair in pairs]


def _cell(
    overview: Overview,
    row: ServiceStats | None,
    task_type: str,
    model: str,
    memory_bytes: int | None,
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
        is_closed=_is_closed(overview, task_type, model, memory_bytes),
    )


def _is_closed(overview: Overview, task_type: str, model: str, memory_bytes: int | None) -> bool:
    """Whether the policy expects nearly every try to fail, or too little memory."""
    beliefs = overview.knowledge.beliefs
    if beliefs is None or task_type not in beliefs.types or model not in beliefs.models:
        return False
    cell = beliefs.types[task_type], beliefs.models[model]
    is_short = memory_bytes is not None and float(beliefs.needed[cell]) > memory_bytes
    return is_short or float(beliefs.failure[cell]) > CLOSED_PROBABILITY
