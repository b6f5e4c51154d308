"""Publish tasks on time, and measure what that costs."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Final, NamedTuple

from celery import Celery

from benchmarks.faults.application import WORK

JOIN_SECONDS: Final = 45.0
"""By which publishing may take longer than planned: a broker that is gone holds it up."""


class Publication(NamedTuple):
    """A task to publish.

    Parameters
    ----------
    due
        Seconds after the begin.
    number
        Distinct in a cluster.
    seconds
        How long it takes.

    """

    due: float
    number: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Published:
    """What became of one publication.

    Parameters
    ----------
    at
        Monotonic time at its begin.
    latency
        Seconds that it took.
    error
        Class of what ``apply_async`` raised; empty when it returned.

    """

    number: int
    at: float
    latency: float
    error: str


def steady(
    draw: random.Random, numbers: count[int], tasks: int, over: float, least: float, most: float
) -> list[Publication]:
    """Tasks at equal distances, each of a random duration."""
    return [
        Publication(over * place / tasks, next(numbers), draw.uniform(least, most))
        for place in range(tasks)
    ]


class Publisher(threading.Thread):
    """Publishes a plan in a thread of its own.

    Parameters
    ----------
    app
        The producer's.
    plan
        In order of time.
    send
        How to publish one; ``work`` by the application when omitted.

    """

    def __init__(
        self,
        app: Celery,
        plan: Sequence[Publication],
        send: Callable[[Publication], Any] | None = None,
    ) -> None:
        super().__init__(name="faults-publisher", daemon=True)
        self.done: list[Published] = []
        self.began = time.monotonic()
        self._plan = plan
        self._is_over = threading.Event()
        self._send = send or (lambda one: app.send_task(WORK, (one.number, one.seconds)))

    def finish(self) -> None:
        """Publish nothing more, though the plan goes on."""
        self._is_over.set()

    def join_within(self, seconds: float) -> None:
        """Wait for its end.

        Raises
        ------
        TimeoutError
            When a publication hangs.

        """
        self.join(seconds)
        if self.is_alive():
            raise TimeoutError(f"A publication has not returned within {seconds:g} s.")

    def run(self) -> None:
        """Publish all of it."""
        for one in self._plan:
            if self._is_over.wait(max(self.began + one.due - time.monotonic(), 0.0)):
                return
            at, error = time.monotonic(), ""
            try:
                self._send(one)
            except Exception as raised:
                error = type(raised).__name__
            self.done.append(Published(one.number, at, time.monotonic() - at, error))

    def numbers(self) -> set[int]:
        """Tasks whose publication succeeded."""
        return {one.number for one in list(self.done) if not one.error}

    def errors(self) -> Counter[str]:
        """How often publishing failed, by class of the error."""
        return Counter(one.error for one in list(self.done) if one.error)

    def latencies(self, since: float, until: float) -> list[float]:
        """Seconds of each publication that began between two monotonic times, sorted."""
        return sorted(one.latency for one in list(self.done) if since <= one.at < until)


def quantile(ordered: Sequence[float], share: float) -> float:
    """Value below which this share lies; 0 of nothing."""
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0
