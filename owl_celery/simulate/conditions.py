"""What a simulation is told besides its tasks, and what it tells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from owl_celery.simulate.faults import Fault


@dataclass(frozen=True, slots=True)
class Conditions:
    """How the world behaves besides its service times.

    Parameters
    ----------
    size_feature
        Whether policies are told the size of a task.
    steal_seconds
        Pause between two looks for waiting tasks that an idle queue could take; None: never.
    routers
        Number of routers that tasks come from in turn.
    view_age
        Age in seconds of the load that routers see; 0: always fresh.
    switch_seconds
        Time to load another model than that of the queue's last task.
    failure_seconds
        Time that a failing try wastes.
    max_tries
        Tries after which a task is given up.
    policy_tick_seconds
        Pause between two calls of the policy's ``tick``.
    faults
        Events, in order of time.

    """

    size_feature: bool = False
    steal_seconds: float | None = None
    routers: int = 1
    view_age: float = 0.0
    switch_seconds: float = 0.0
    failure_seconds: float = 0.1
    max_tries: int = 10
    policy_tick_seconds: float = 1.0
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True, eq=False)
class Run:
    """What happened to each of n tasks, in order of arrival.

    Parameters
    ----------
    arrived
        Seconds, shape (n,).
    response
        Seconds from arrival to the end of the last try; NaN for a task that never can run,
        shape (n,).
    tries
        Tries of each task, shape (n,).
    queues
        Row of the queue that served the last try, -1 for none, shape (n,).
    lost
        Tasks given up after ``max_tries``.
    stolen
        Tasks moved to an idle queue while they waited.
    explored
        Decisions that the policy called exploration.

    """

    arrived: npt.NDArray[np.float64]
    response: npt.NDArray[np.float64]
    tries: npt.NDArray[np.int64]
    queues: npt.NDArray[np.int64]
    lost: int
    stolen: int
    explored: int
