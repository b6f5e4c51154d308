"""The load as each of several routers sees it: old, except for what it assigned itself."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from owl_celery.fleet import Fleet

Column = npt.NDArray[np.float64] | npt.NDArray[np.int64] | npt.NDArray[np.bool_]

COLUMNS = ("is_open", "waiting_count", "waiting_seconds", "running_seconds", "running_since")


@dataclass(slots=True)
class _Router:
    fleet: Fleet
    published: float = -1.0
    own: deque[tuple[float, int, float]] = field(default_factory=deque)


class StaleViews:
    """Views of the load that are ``age`` seconds old, one for each router.

    The load is published ten times per ``age``; a router reads the newest publication that is at
    least ``age`` old and adds what it has assigned itself since then.

    Parameters
    ----------
    truth
        The load now; written by the simulator.
    routers
        Number of routers.
    age
        Seconds > 0.

    """

    def __init__(self, truth: Fleet, routers: int, age: float) -> None:
        self.truth = truth
        self.age = age
        self.interval = age / 10.0
        self._published: deque[tuple[float, tuple[Column, ...]]] = deque()
        models = [truth.gpu_model(row) for row in range(len(truth))]
        self._routers = [_Router(Fleet(truth.names, models)) for _ in range(routers)]
        self.publish(0.0)

    def publish(self, now: float) -> None:
        """Take a copy of the load, and forget those that are too old to be read."""
        columns = tuple(getattr(self.truth, name).copy() for name in COLUMNS)
        self._published.append((now, columns))
        while len(self._published) > 1 and self._published[1][0] <= now - self.age:
            self._published.popleft()

    def seen_by(self, router: int, now: float) -> Fleet:
        """The load as one router believes it to be."""
        view = self._routers[router]
        newest = self._published[0]
        for publication in self._published:
            if publication[0] > now - self.age:
                break
            newest = publication
        published, columns = newest
        if published > view.published:
            view.published = published
            for name, column in zip(COLUMNS, columns, strict=True):
                getattr(view.fleet, name)[...] = column
            while view.own and view.own[0][0] <= published:
                view.own.popleft()
            for at, row, seconds in view.own:
                _assign(view.fleet, row, seconds, at)
        return view.fleet

    def assigned(self, router: int, row: int, seconds: float, now: float) -> None:
        """Note what a router has just assigned."""
        view = self._routers[router]
        view.own.append((now, row, seconds))
        _assign(view.fleet, row, seconds, now)


def _assign(fleet: Fleet, row: int, seconds: float, at: float) -> None:
    """Count a task at a queue that the view shows idle as running, else as waiting."""
    if fleet.running_seconds[row, 0] == 0.0:
        fleet.running_seconds[row, 0] = seconds
        fleet.running_since[row, 0] = at
    else:
        fleet.waiting_count[row] += 1
        fleet.waiting_seconds[row] += seconds
