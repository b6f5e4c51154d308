"""How sure a few tries make one: of means and of success rates, without a statistics library."""

from __future__ import annotations

import math
from typing import Final

SURE: Final = 0.95
"""Confidence from which a claim is made."""

TWO_SIDED: Final = 1.959964
"""Standard deviations of the normal distribution on each side of which lie 2.5 %."""

MANY: Final = 1_000
"""Failures from which on the normal distribution stands in for the binomial."""


def student_cdf(t: float, freedom: float) -> float:
    """Distribution function of Student's t, within 0.001 for 3 degrees of freedom or more.

    The normal distribution at Wallace's argument.
    """
    shrink = (8.0 * freedom + 1.0) / (8.0 * freedom + 3.0)
    z = math.copysign(shrink * math.sqrt(freedom * math.log1p(t * t / freedom)), t)
    return 0.5 * math.erfc(-z / math.sqrt(2.0))


def student_width(freedom: float) -> float:
    """Standard errors on each side of a mean within which the true one lies with 95 %.

    The inverse of ``student_cdf``; within 2 % for 3 degrees of freedom or more.

    Examples
    --------
    >>> round(student_width(4), 1), round(student_width(1000), 2)
    (2.8, 1.96)

    """
    shrink = (8.0 * freedom + 1.0) / (8.0 * freedom + 3.0)
    return math.sqrt(freedom * math.expm1((TWO_SIDED / shrink) ** 2 / freedom))


def at_least(rate: float, successes: int, failures: int) -> float:
    """Probability that the true success rate is at least ``rate``, 0-1, after so many tries.

    Before any try every rate is taken as equally likely.

    Examples
    --------
    >>> round(at_least(0.9, 5, 0), 2), round(at_least(0.9, 28, 0), 2), round(at_least(0.9, 5, 5), 3)
    (0.47, 0.95, 0.0)

    """
    if rate <= 0.0:
        return 1.0
    if rate >= 1.0:
        return 0.0
    if failures > MANY:
        tries = successes + failures
        mean = successes / tries
        spread = math.sqrt(mean * (1.0 - mean) / tries)
        return 0.5 * math.erfc((rate - mean) / max(spread, 1e-12) / math.sqrt(2.0))
    # The incomplete beta function for whole numbers: a sum over the binomial distribution.
    trials = successes + failures + 1
    logs = math.log(rate), math.log1p(-rate)
    tail = 0.0
    for hits in range(successes + 1, trials + 1):
        ways = math.lgamma(trials + 1) - math.lgamma(hits + 1) - math.lgamma(trials - hits + 1)
        tail += math.exp(ways + hits * logs[0] + (trials - hits) * logs[1])
    return min(max(1.0 - tail, 0.0), 1.0)
