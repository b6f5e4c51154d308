"""What became of each task: a stream in a Redis that no fault touches."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

from redis import Redis

STREAM: Final = "ledger"


@cache
def _client(url: str, _: int) -> Redis:
    """The client of one process: a fork must not share a socket."""
    return Redis.from_url(url, decode_responses=True)


def note(url: str, what: str, number: int, node: str, gpu_model: str = "") -> None:
    """Note in the ledger that a task started or finished; called by the task itself."""
    fields: Any = {"what": what, "number": number, "node": node, "model": gpu_model}
    _client(url, os.getpid()).xadd(STREAM, fields)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the ledger.

    Parameters
    ----------
    at
        Clock of the ledger, Unix seconds: no worker's clock is trusted.
    what
        ``started`` or ``finished``.
    number
        Of the task.
    node, gpu_model
        Where.

    """

    at: float
    what: str
    number: int
    node: str
    gpu_model: str


@dataclass(slots=True)
class Account:
    """What the ledger says of some tasks.

    Parameters
    ----------
    started, finished
        How often each task did.
    finished_at
        When each finished first.
    lines
        All of it, oldest first.

    """

    started: Counter[int] = field(default_factory=Counter)
    finished: Counter[int] = field(default_factory=Counter)
    finished_at: dict[int, float] = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)

    def add(self, line: Line) -> None:
        """Add the next line."""
        self.lines.append(line)
        if line.what == "started":
            self.started[line.number] += 1
        elif line.what == "finished":
            self.finished[line.number] += 1
            self.finished_at.setdefault(line.number, line.at)

    def running(self, node: str = "") -> set[int]:
        """Tasks that have started, and not finished, on this node or anywhere."""
        started = Counter(line.number for line in self._of(node, "started"))
        started.subtract(line.number for line in self._of(node, "finished"))
        return {number for number, count in started.items() if count > 0}

    def _of(self, node: str, what: str) -> list[Line]:
        return [
            line for line in self.lines if line.what == what and (not node or line.node == node)
        ]

    def lost(self, numbers: Collection[int]) -> set[int]:
        """Which of these have not finished."""
        return {number for number in numbers if number not in self.finished}

    def doubled(self, numbers: Collection[int]) -> int:
        """How many of these finished more than once."""
        return sum(self.finished[number] > 1 for number in numbers)

    def run_again(self, numbers: Collection[int]) -> int:
        """How many of these started more than once."""
        return sum(self.started[number] > 1 for number in numbers)

    def ended_at(self, numbers: Collection[int]) -> float:
        """When the last of these finished; 0 when none has."""
        return max((self.finished_at.get(number, 0.0) for number in numbers), default=0.0)


class Ledger:
    """Reads the ledger as it grows.

    Parameters
    ----------
    url
        Its Redis.

    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._redis = Redis.from_url(url, decode_responses=True)
        self._cursor = "0"
        self._account = Account()

    def now(self) -> float:
        """The clock by which lines are dated, Unix seconds."""
        seconds, microseconds = self._redis.time()
        return float(seconds) + microseconds / 1e6

    def read(self) -> Account:
        """Everything up to now."""
        while True:
            reply: Any = self._redis.xread({STREAM: self._cursor}, count=5_000)
            if not reply:
                return self._account
            for cursor, body in reply[0][1]:
                at = int(cursor.partition("-")[0]) / 1000.0
                line = Line(at, body["what"], int(body["number"]), body["node"], body["model"])
                self._account.add(line)
                self._cursor = cursor

    def close(self) -> None:
        """Close the connection."""
        self._redis.close()
