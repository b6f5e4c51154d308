"""The Q table of a policy as people read it: what sending each task type to each queue costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from owl_celery.fleet import Bools, Floats, Ints


@dataclass(frozen=True, slots=True, eq=False)
class QTable:
    """Q values of K task types on N queues, for tasks of the mean size of their type.

    Parameters
    ----------
    task_types
        K names.
    queues, gpu_models
        N names, and the GPU model of each.
    seconds, idle_seconds
        Cost at the present backlog and with nothing waiting or running anywhere; finite, shape
        (K, N).
    visits
        Completed tries behind it, of the type on the GPU model, shape (K, N).
    is_open
        Whether a task of the type may be sent there now, shape (K, N).

    """

    task_types: Sequence[str]
    queues: Sequence[str]
    gpu_models: Sequence[str]
    seconds: Floats
    idle_seconds: Floats
    visits: Ints
    is_open: Bools
