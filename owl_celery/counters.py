"""What producers and workers count, on its way to one Redis hash whose numbers only grow.

A process counts in memory and tells what was added since it last told; while Redis is away the
difference just gets larger. Nobody but Prometheus needs the sums, so a hash that was lost with its
Redis starts at 0 again, as counters may.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from owl_celery.breaker import DEPENDENCIES
from owl_celery.metrics import DECISION_SECONDS_BOUNDS

MAX_NAMES: Final = 50
"""Algorithms, and reasons, that are told apart; a policy of somebody else may name many."""

FALLBACK_REASONS: Final = (
    *("no_view", "stale_view", "dead_view", "no_knowledge", "no_open_queue", "no_policy"),
    *("policy_error", "bad_refinement", "error", "mode_off", "shadow"),
)
"""Reasons that the router gives."""

OTHER: Final = "other"
OUTCOMES_DROPPED: Final = "outcomes_dropped"

_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,100}")
_MAX_COUNT: Final = 2**62


class RoutingTally:
    """What the routers of one process have done since it started.

    Attributes
    ----------
    decisions
        Tasks that went where a policy said, by algorithm.
    shadowed
        The same for those that, in shadow mode, went where Celery said.
    fallbacks
        Tasks left to Celery or to a simpler policy, by reason.
    decision_seconds
        Sum of the durations of all decisions.
    decision_buckets
        How many decisions took how long, in the order of ``DECISION_SECONDS_BOUNDS``.

    """

    __slots__ = ("decision_buckets", "decision_seconds", "decisions", "fallbacks", "shadowed")

    def __init__(self) -> None:
        self.decisions: Counter[str] = Counter()
        self.shadowed: Counter[str] = Counter()
        self.fallbacks: Counter[str] = Counter()
        self.decision_seconds = 0.0
        self.decision_buckets = [0] * len(DECISION_SECONDS_BOUNDS)

    def observe(self, seconds: float) -> None:
        """Count one decision by its duration."""
        self.decision_seconds += seconds
        self.decision_buckets[bisect_left(DECISION_SECONDS_BOUNDS, seconds)] += 1

    def clear(self) -> None:
        """Start from nothing, in a forked child: what is counted here is its parent's to tell."""
        for counter in (self.decisions, self.shadowed, self.fallbacks):
            counter.clear()
        self.decision_seconds = 0.0
        self.decision_buckets[:] = [0] * len(DECISION_SECONDS_BOUNDS)

    def totals(self) -> dict[str, float]:
        """Everything by its name in the hash; may be called while other threads count."""
        totals: Counter[str] = Counter()
        for mode, decisions in (("on", self.decisions), ("shadow", self.shadowed)):
            for algorithm, count in _bounded(decisions).items():
                totals[f"decisions|{algorithm}|{mode}"] += count
        for reason, count in _bounded(self.fallbacks).items():
            totals[f"fallbacks|{reason}"] += count
        for bound, count in zip(DECISION_SECONDS_BOUNDS, self.decision_buckets, strict=True):
            totals[f"decision_seconds|{bound!r}"] += count
        return {**totals, "decision_seconds|sum": self.decision_seconds}


class Teller:
    """Tells the hash what was added since it was last told; used by one thread at a time."""

    def __init__(self) -> None:
        self._told: dict[str, float] = {}

    def untold(self, totals: Mapping[str, float]) -> dict[str, float]:
        """What has been added to each name."""
        return {
            name: added
            for name, total in totals.items()
            if (added := total - self._told.get(name, 0)) > 0
        }

    def write(self, pipe: Any, key: str, untold: Mapping[str, float]) -> None:
        """Put one command for each name on a Redis pipeline."""
        for name, added in untold.items():
            (pipe.hincrby if isinstance(added, int) else pipe.hincrbyfloat)(key, name, added)

    def confirm(self, untold: Mapping[str, float], replies: Sequence[object]) -> None:
        """Note what Redis has taken; what it refused stays untold."""
        for (name, added), reply in zip(untold.items(), replies, strict=True):
            if not isinstance(reply, Exception):
                self._told[name] = self._told.get(name, 0) + added


@dataclass(frozen=True, slots=True)
class Counters:
    """What all processes of an application have told.

    Parameters
    ----------
    decisions
        Decisions by (algorithm, mode); mode ``on`` or ``shadow``.
    fallbacks
        Tasks left to Celery or to a simpler policy, by reason.
    decision_seconds
        Sum of the durations of all decisions.
    decision_buckets
        Decisions by duration, in the order of ``DECISION_SECONDS_BOUNDS``, not cumulated.
    outcomes_dropped
        Events that workers dropped since Redis was away for too long.
    opened, down_seconds
        How often and for how long a dependency did not work, by (process, dependency).

    """

    decisions: Mapping[tuple[str, str], int] = field(default_factory=dict)
    fallbacks: Mapping[str, int] = field(default_factory=dict)
    decision_seconds: float = 0.0
    decision_buckets: tuple[int, ...] = (0,) * len(DECISION_SECONDS_BOUNDS)
    outcomes_dropped: int = 0
    opened: Mapping[tuple[str, str], int] = field(default_factory=dict)
    down_seconds: Mapping[tuple[str, str], float] = field(default_factory=dict)

    @classmethod
    def read(cls, hash_fields: Mapping[str, str]) -> Counters:
        """Read the hash; names and numbers that make no sense are passed over.

        Examples
        --------
        >>> Counters.read({"fallbacks|no_view": "3", "decisions|random|on": "NaN"}).fallbacks
        {'no_view': 3}

        """
        decisions: Counter[tuple[str, str]] = Counter()
        fallbacks: Counter[str] = Counter()
        buckets = [0] * len(DECISION_SECONDS_BOUNDS)
        seconds, dropped = 0.0, 0
        opened: dict[tuple[str, str], int] = {}
        down_seconds: dict[tuple[str, str], float] = {}
        for name, text in hash_fields.items():
            number = _number(text)
            if number is None:
                continue
            match name.split("|"):
                case ["decisions", algorithm, "on" | "shadow" as mode] if _NAME.fullmatch(
                    algorithm
                ):
                    decisions[algorithm, mode] += int(number)
                case ["fallbacks", reason] if _NAME.fullmatch(reason):
                    fallbacks[reason] += int(number)
                case ["decision_seconds", "sum"]:
                    seconds = number
                case ["decision_seconds", bound] if (least := _number(bound, math.inf)) is not None:
                    # Another release may have other bounds.
                    buckets[bisect_left(DECISION_SECONDS_BOUNDS, least)] += int(number)
                case ["outcomes_dropped"]:
                    dropped = int(number)
                case ["opened", process, part] if part in DEPENDENCIES.get(process, ()):
                    opened[process, part] = int(number)
                case ["down_seconds", process, part] if part in DEPENDENCIES.get(process, ()):
                    down_seconds[process, part] = number
        return cls(
            dict(decisions.most_common(2 * MAX_NAMES)),
            dict(fallbacks.most_common(MAX_NAMES)),
            seconds,
            tuple(buckets),
            dropped,
            opened,
            down_seconds,
        )


def _bounded(counter: Counter[str]) -> Counter[str]:
    """The counts under names that may be told, the rest as one; the first names are the ones kept.

    The order of a counter never changes, so that no count moves from one name to another.
    """
    bounded: Counter[str] = Counter()
    for name, count in dict(counter).items():  # A copy in one step, while others count.
        is_kept = len(bounded) < MAX_NAMES and _NAME.fullmatch(name)
        bounded[name if is_kept else OTHER] += count
    return bounded


def _number(text: object, largest: float = _MAX_COUNT) -> float | None:
    try:
        number = float(str(text))
    except ValueError:
        return None
    return number if 0 <= number <= largest else None
