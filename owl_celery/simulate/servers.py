"""The GPUs: what runs on each, what waits at each, and the ``Fleet`` that shows it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from owl_celery.fleet import Fleet, WaitingTasks
from owl_celery.types import TaskView


@dataclass(slots=True)
class Server:
    """One GPU and its queue; ``running`` is the index of a task, or -1."""

    speed: float = 1.0
    is_up: bool = True
    running: int = -1
    fails: bool = False
    started: float = 0.0
    ends: float = 0.0
    starts: int = 0
    loaded: str | None = None
    waiting: deque[tuple[int, float]] = field(default_factory=deque)


class Servers:
    """Every GPU of a simulation; each change is at once in the columns of ``fleet``.

    Parameters
    ----------
    fleet
        Empty queues of concurrency 1; written here only.

    Attributes
    ----------
    idle
        Rows that run nothing and are up, the one that has been idle longest first.
    waiting_count
        Tasks that wait, over all queues.

    """

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.rows = [Server() for _ in fleet.names]
        self.idle = dict.fromkeys(range(len(fleet)))
        self.waiting_count = 0

    def __getitem__(self, row: int) -> Server:
        return self.rows[row]

    def join(self, row: int, index: int, predicted: float) -> None:
        """Put a task at the end of a queue; ``predicted`` are its service seconds there."""
        self.rows[row].waiting.append((index, predicted))
        self.waiting_count += 1
        self.fleet.waiting_count[row] += 1
        self.fleet.waiting_seconds[row] += predicted

    def leave(self, row: int, position: int = 0) -> tuple[int, float]:
        """Take a waiting task out of a queue."""
        waiting = self.rows[row].waiting
        index, predicted = waiting[position]
        del waiting[position]
        self.waiting_count -= 1
        self.fleet.waiting_count[row] -= 1
        # Exactly 0 when empty: the sum of rounding errors would pass for work.
        self.fleet.waiting_seconds[row] = (
            self.fleet.waiting_seconds[row] - predicted if waiting else 0.0
        )
        return index, predicted

    def waiting_tasks(
        self, views: Sequence[TaskView], published: Sequence[float], now: float
    ) -> WaitingTasks:
        """Everything that waits, for a policy to choose from; by index into the columns given."""
        lines = [server.waiting for server in self.rows]
        indices = [index for line in lines for index, _ in line]
        seconds = np.array([predicted for line in lines for _, predicted in line])
        counts = np.array([len(line) for line in lines])
        ends = np.cumsum(counts)
        rows = np.repeat(np.arange(len(lines)), counts)
        before = np.concatenate([[0.0], np.cumsum(seconds)])
        ahead = before[:-1] - before[(ends - counts)[rows]] + self.fleet.residual_seconds(now)[rows]
        return WaitingTasks(
            tasks=[views[index] for index in indices],
            rows=rows,
            service_seconds=seconds,
            ahead_seconds=ahead,
            behind_count=ends[rows] - 1 - np.arange(len(indices)),
            published_at=np.array([published[index] for index in indices]),
        )

    def start(self, row: int, index: int, work: float, predicted: float, now: float) -> None:
        """Run a task; ``work`` are its true seconds at full speed."""
        server = self.rows[row]
        server.running = index
        server.started = now
        server.ends = now + work / server.speed
        server.starts += 1
        self.idle.pop(row, None)
        # 0 would say that nothing runs.
        self.fleet.running_seconds[row, 0] = max(predicted, 1e-9)
        self.fleet.running_since[row, 0] = now

    def end(self, row: int) -> int:
        """Stop what runs, and return which task that was; idle unless something waits."""
        server = self.rows[row]
        index, server.running = server.running, -1
        self.fleet.running_seconds[row, 0] = 0.0
        if server.is_up and not server.waiting:
            self.idle[row] = None
        return index

    def throttle(self, row: int, speed: float, now: float) -> None:
        """Change the speed; what runs takes longer or ends sooner."""
        server = self.rows[row]
        server.ends = now + max(server.ends - now, 0.0) * server.speed / speed
        server.speed = speed
        server.starts += 1

    def close(self, row: int) -> list[int]:
        """Take no more work, and return the tasks that waited."""
        server = self.rows[row]
        server.is_up = False
        self.fleet.is_open[row] = False
        self.idle.pop(row, None)
        return [self.leave(row)[0] for _ in range(len(server.waiting))]

    def open(self, row: int) -> None:
        """Take work again, with nothing loaded."""
        server = self.rows[row]
        server.is_up = True
        server.loaded = None
        self.fleet.is_open[row] = True
        self.idle[row] = None
