"""Which queues a task may be sent to, and how one of several equals is picked."""

from __future__ import annotations

import numpy as np

from owl_celery.errors import NoOpenQueueError
from owl_celery.fleet import Bools, Fleet, Floats, Ints
from owl_celery.types import TaskView

TIE_RATIO = 1e-9
"""Scores this close, relative to the least, count as equal."""


def open_mask(task: TaskView, fleet: Fleet) -> Bools:
    """Where the task may go: open queues of GPU models on which it has not failed.

    The result may be the fleet's own column: do not write to it.

    Raises
    ------
    NoOpenQueueError
        When that leaves no queue.

    """
    mask = fleet.is_open
    if not task.tried:
        if not fleet.open_count:
            raise NoOpenQueueError()
    else:
        is_untried = np.array([model not in task.tried for model in fleet.models], dtype=np.bool_)
        mask = mask & is_untried[fleet.model_index] if len(fleet) else mask
        if not mask.any():
            raise NoOpenQueueError()
    return mask


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
