"""Which queues a task may be sent to, and how one of several equals is picked."""

from __future__ import annotations

import numpy as np

from owl_celery.errors import NoOpenQueueError
from owl_celery.fleet import Bools, Fleet, Floats, Ints
from owl_celery.types import TaskView

TIE_RATIO = 1e-9
"""Scores this close, relative to the least, count as equal."""


def open_mask(task: TaskView, fleet: Fleet) -> Bools:
    """Where the task may go: open queues with enough memory of GPU models it has not failed on.

    When nothing is left of that, where more memory is free than it ran out of, on whatever model;
    when nothing is left of that either, where there is most. The result may be the fleet's own
    column: do not write to it.

    Raises
    ------
    NoOpenQueueError
        When no queue is open.

    """
    if not fleet.open_count:
        raise NoOpenQueueError()
    if not (task.tried or task.exceeded_bytes):
        return fleet.is_open
    free, exceeded = fleet.free_memory_bytes, task.exceeded_bytes
    is_untried = np.array([model not in task.tried for model in fleet.models], dtype=np.bool_)
    # NaN, unknown, compares false: it speaks against no new model, and for no old one.
    best = fleet.is_open & is_untried[fleet.model_index] & ~(free <= exceeded)
    if best.any():
        return best
    larger: Bools = fleet.is_open & (free > exceeded) & (exceeded > 0.0)
    return larger if larger.any() else roomiest(fleet.is_open, fleet)


def roomiest(mask: Bools, fleet: Fleet) -> Bools:
    """Those of some queues with the most free memory; all of them where none is known.

    For a task that fits nowhere: it runs where it is likeliest to, or fails with a reason.
    """
    free = np.where(mask, np.nan_to_num(fleet.free_memory_bytes, nan=0.0), -1.0)
    most: Bools = mask & (free >= free.max(initial=0.0))
    return most


def pick_least(scores: Floats, random: np.random.Generator) -> tuple[int, int]:
    """Row of the least score, and how many share it; among equals each is as likely.

    At least one score must be finite.
    """
    row = int(scores.argmin())
    least = scores.item(row)
    ties: Ints = (scores <= least + TIE_RATIO * abs(least)).nonzero()[0]
    count = len(ties)
    if count > 1:
        row = ties.item(int(random.random() * count))
    return row, count
