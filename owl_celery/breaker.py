"""Whether what a process depends on works: said once when that changes, counted, tried less often.

A breaker never stands between a task and its way: it is asked by threads that talk to Redis, a
database or a driver beside it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Final

log = logging.getLogger(__name__)

DEPENDENCIES: Final[Mapping[str, tuple[str, ...]]] = {
    "producer": ("redis",),
    "child": ("redis",),
    "worker": ("redis", "nvml"),
    "controller": ("redis", "broker", "database", "policy", "results"),
    "serve": ("redis", "broker", "database"),
}
"""What each process depends on, as metrics name it; docs/faults.md says what happens without."""


class Breaker:
    """One dependency of one process.

    Used by one thread at a time.

    Parameters
    ----------
    process, dependency
        As in ``DEPENDENCIES``.
    down
        What to log when it stops working, with ``{reason}`` in it.
    up
        What to log when it works again, before the number of seconds.
    least_seconds, most_seconds
        Pause after the first failure, which doubles with each further one, and its limit.
    level, logger
        Of the log lines; a lower level where another part says the same.
    clock
        Monotonic seconds.

    Attributes
    ----------
    opened
        How often it stopped working.
    reason
        Why it does not work; empty while it does.

    Examples
    --------
    >>> breaker = Breaker("producer", "redis", "no view: {reason}", "the view is back")
    >>> breaker.fails("refused")
    >>> breaker.fails("refused")
    >>> breaker.is_open, breaker.opened
    (True, 1)
    >>> breaker.works()
    >>> breaker.is_open
    False

    """

    def __init__(
        self,
        process: str,
        dependency: str,
        down: str,
        up: str,
        *,
        least_seconds: float = 1.0,
        most_seconds: float = 1.0,
        level: int = logging.WARNING,
        logger: logging.Logger = log,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if dependency not in DEPENDENCIES.get(process, ()):
            raise ValueError(f"{process} does not depend on {dependency}")
        self.opened = 0
        self.reason = ""
        self._name = f"{process}|{dependency}"
        self._down, self._up = down, up
        self._least_seconds, self._most_seconds = least_seconds, most_seconds
        self._level, self._log = level, logger
        self._clock = clock
        self._pause = 0.0
        self._retry_at = 0.0
        self._since: float | None = None
        self._seconds = 0.0

    @property
    def is_open(self) -> bool:
        """Whether it did not work when it was last used."""
        return self._since is not None

    @property
    def pause_seconds(self) -> float:
        """How long to leave it alone from now on; 0 while it works."""
        return self._pause

    @property
    def may_try(self) -> bool:
        """Whether it works, or was left alone for long enough to be tried again."""
        return self._since is None or self._clock() >= self._retry_at

    def fails(self, reason: str) -> None:
        """Note that it does not work."""
        self._pause = min(max(2.0 * self._pause, self._least_seconds), self._most_seconds)
        self._retry_at = self._clock() + self._pause
        self.reason = reason
        if self._since is None:
            self._since = self._clock()
            self.opened += 1
            self._log.log(self._level, self._down.format(reason=reason))

    def works(self) -> None:
        """Note that it works."""
        if self._since is not None:
            lasted = self._clock() - self._since
            self._since, self._pause, self.reason = None, 0.0, ""
            self._seconds += lasted
            self._log.log(self._level, "%s, after %.1f s", self._up, lasted)

    def totals(self) -> dict[str, float]:
        """What is counted, by its name in the hash of counters; nothing before the first failure.

        A failure that still lasts counts up to now.
        """
        if not self.opened:
            return {}
        lasts = 0.0 if self._since is None else self._clock() - self._since
        return {
            f"opened|{self._name}": self.opened,
            f"down_seconds|{self._name}": self._seconds + lasts,
        }
