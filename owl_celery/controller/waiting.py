"""Seconds of predicted work that wait in one queue, put right by the queue's true depth."""

from __future__ import annotations

from typing import Final

UNKNOWN_SECONDS: Final = 1.0
RELAX_SECONDS: Final = 2.0
RELAX_EMPTY_SECONDS: Final = 0.2
FORGET_SECONDS: Final = 60.0
MEAN_OVER_TASKS: Final = 50
MAX_DEVIATION: Final = 20.0


class Waiting:
    """What waits in one queue.

    Producers say how many tasks and seconds they ever sent there, workers say which tasks they
    took out, and the broker says how many wait. A task is in the queue a little before its
    producer has reported it, so the sums are not forced to the depth at once, but follow it within
    seconds. Until then a task too many in the queue counts as a usual one, and of tasks too few
    each is missed equally. Nothing can leak: an empty queue holds exactly 0 seconds.

    Tasks sent without a prediction are counted apart, and weigh what tasks take there at present.

    Parameters
    ----------
    count, seconds
        Cumulative assignments when this queue was first seen.

    Examples
    --------
    >>> waiting = Waiting(0, 0.0)
    >>> waiting.assigned(2, 11.0)
    True
    >>> waiting.left(1.0)
    >>> waiting.correct(depth=1, elapsed_seconds=0.03, served_seconds=0.0)
    >>> waiting.count, waiting.seconds
    (1, 10.0)

    """

    def __init__(self, count: int, seconds: float) -> None:
        self.count = 0
        self.seconds = 0.0
        self._told_count = count
        self._told_seconds = seconds
        self._mean = seconds / count if count > 0 else 0.0
        self._sum_count = 0.0
        self._sum_seconds = 0.0
        self._unpredicted = 0.0

    @property
    def is_between(self) -> bool:
        """Whether a task seems to have left that is not seen to run; for a moment only."""
        return not self.count and self._sum_count >= 0.5

    def mean_seconds(self, served_seconds: float) -> float:
        """Mean predicted seconds of the tasks sent here lately; ``served_seconds`` without any."""
        return self._mean or served_seconds or UNKNOWN_SECONDS

    def assigned(self, count: int, seconds: float) -> bool:
        """Note the cumulative assignments as they stand; say whether there are new ones."""
        if count < self._told_count:
            # Redis has lost its data, or the counters were dropped as idle: they started over.
            self._told_count, self._told_seconds = 0, 0.0
        new_count, new_seconds = count - self._told_count, seconds - self._told_seconds
        self._told_count, self._told_seconds = count, seconds
        if new_count <= 0 or new_seconds < 0.0:
            return False
        self._sum_count += new_count
        self._sum_seconds += new_seconds
        if new_seconds == 0.0:
            self._unpredicted += new_count
            return True
        step = min(new_count / MEAN_OVER_TASKS, 1.0) if self._mean > 0.0 else 1.0
        self._mean += step * (new_seconds / new_count - self._mean)
        return True

    def came(self, seconds: float) -> None:
        """Note a task that no producer tells of: it was moved here and takes ``seconds``."""
        self._sum_count += 1.0
        self._sum_seconds += seconds

    def left(self, seconds: float | None) -> None:
        """Note that a task has left, to run or unrun; ``seconds`` as it was sent with, if any."""
        self._sum_count -= 1.0
        if seconds is None:
            self._unpredicted -= 1.0
        else:
            self._sum_seconds -= seconds

    def correct(self, depth: int, elapsed_seconds: float, served_seconds: float) -> None:
        """Go by the true depth, ``elapsed_seconds`` after the last time.

        Parameters
        ----------
        depth
            Tasks that wait, >= 0.
        elapsed_seconds
            Since the last correction, >= 0.
        served_seconds
            Mean service time of tasks there; 0 when unknown.

        """
        mean = self.mean_seconds(served_seconds)
        guessed = self._unpredicted * (served_seconds or mean)
        each, known = mean, self._sum_seconds + guessed
        # Never a quotient of two small sums: after a few tasks of a queue that was new to us, or
        # had been moved here, it could be anything, and would last.
        if self._sum_count > depth:
            each = known / self._sum_count
        elif depth:
            each = (known + (depth - self._sum_count) * mean) / depth
        if not mean / MAX_DEVIATION <= each <= mean * MAX_DEVIATION:
            each = mean
        self.count, self.seconds = depth, depth * each
        relax_seconds = RELAX_SECONDS if depth else RELAX_EMPTY_SECONDS
        share = min(elapsed_seconds / relax_seconds, 1.0)
        self._sum_count += share * (depth - self._sum_count)
        self._sum_seconds += share * (depth * each - guessed - self._sum_seconds)
        # Tasks that vanish take unknown seconds along: without end these errors would add up.
        share = min(elapsed_seconds / FORGET_SECONDS, 1.0)
        self._sum_seconds += share * (depth * mean - guessed - self._sum_seconds)
        if not depth:
            self._unpredicted -= share * self._unpredicted

    def audited(self, count: int, predicted_count: int, predicted_seconds: float) -> None:
        """Go by the messages themselves, of which ``count`` >= 1 were read, the oldest.

        Those that were not read are as was thought of all.
        """
        depth = max(self.count, count)
        unread_seconds = (depth - count) * self.seconds / self.count if self.count else 0.0
        self._sum_count = depth
        self._sum_seconds = predicted_seconds + unread_seconds
        self._unpredicted = count - predicted_count

    def guess(self, served_seconds: float) -> None:
        """Go by the sums alone, where the broker cannot tell the depth."""
        self.correct(max(round(self._sum_count), 0), 0.0, served_seconds)

    def clear(self) -> None:
        """Forget what waits: the queue is known to be empty."""
        self.count, self.seconds = 0, 0.0
        self._sum_count = self._sum_seconds = self._unpredicted = 0.0
