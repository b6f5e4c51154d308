"""How much work the other producers send, as one of them can tell."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from owl_celery.fleet import Floats

MEMORY_SECONDS: Final = 0.1
LEAST_SHARE: Final = 0.02
"""Share of all work below which the others are an inexactness of the account."""

LEAST_PACE: Final = 1e-3
"""Seconds of work a second that change no decision worth changing."""


class Others:
    """Predicted seconds of work that the other producers send each second, by GPU model.

    The controller counts what all producers have ever reported; what one has itself reported by
    then is known to it, and the rest of the growth is the others'.

    Attributes
    ----------
    pace
        Seconds of work a second, shape (C,); None for a producer that is alone.

    Examples
    --------
    >>> others = Others()
    >>> others.counted(np.array([100.0]), at=0.0, ours=np.array([0.0]))
    >>> others.counted(np.array([104.0]), at=1.0, ours=np.array([3.0]))
    >>> others.pace.round(3).tolist()
    [1.0]
    >>> others.counted(np.array([105.0]), at=2.0, ours=np.array([1.0]))
    >>> others.pace is None
    True

    """

    def __init__(self) -> None:
        self.pace: Floats | None = None
        self._total: Floats | None = None
        self._at = 0.0

    def forget(self) -> None:
        """Start anew: what is counted is of other queues now."""
        self.pace = self._total = None

    def counted(self, total: Floats, at: float, ours: Floats) -> None:
        """Note what all have ever reported.

        Parameters
        ----------
        total
            By GPU model, shape (C,).
        at
            When it was counted, by the clock of Redis.
        ours
            What of it is ours and was not in the count before, shape (C,).

        """
        before, elapsed = self._total, at - self._at
        if before is not None and elapsed <= 0.0:
            return
        self._total, self._at = total, at
        if before is None or before.shape != total.shape:
            self.pace = None
            return
        grown = total - before
        theirs = np.maximum(grown - ours, 0.0)
        # A report may arrive between the reading of the clock and that of the counters.
        if theirs.sum() <= LEAST_SHARE * np.maximum(grown, 0.0).sum():
            theirs[:] = 0.0
        weight = -math.expm1(-elapsed / MEMORY_SECONDS)
        pace = np.zeros(len(total)) if self.pace is None else self.pace
        pace = pace + weight * (theirs / elapsed - pace)
        self.pace = pace if pace.sum() > LEAST_PACE else None
