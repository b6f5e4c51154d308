"""How likely a task type fails on a GPU model, on one queue, and how much memory it needs.

A failure may be the fault of the pair (this model cannot do this type) or of the single GPU (it is
broken and crashes whatever it gets). Each failed try is shared out between the two in proportion
to how likely either is held to be, so that healthy GPUs of a model clear it of a broken one. An
unbroken run of failures speaks for itself however good the past was: hardware breaks, code changes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from owl_celery.errors import StateError
from owl_celery.fleet import Floats
from owl_celery.policies.cells import Cells
from owl_celery.prior import PRIOR_SAMPLES, PairPrior

PRIOR_FAILED: Final = 0.02
PRIOR_TRIES: Final = 1.0
"""Beta prior: one try, of which 2 % failed."""

MEMORY: Final = 200.0
"""Tries remembered."""

CLOSED_PROBABILITY: Final = 0.9
"""From this on a pair is closed, as long as the task can go elsewhere."""

FADE_SERVICES: Final = 2_000.0
"""Mean service times in which an untried pair loses 63 % of what is held against it."""

PEAK_WINDOW: Final = 100
"""Samples in each of the two windows whose largest peak is the memory requirement."""

MEMORY_MARGIN: Final = 1.05
MAX_QUEUES: Final = 10_000


@dataclass(slots=True)
class _Tries:
    """Recent tries, those that failed, and those that failed since the last success."""

    failed: float = 0.0
    tries: float = 0.0
    streak: float = 0.0

    def probability(self) -> float:
        return max(
            (PRIOR_FAILED + self.failed) / (PRIOR_TRIES + self.tries),
            (PRIOR_FAILED + self.streak) / (PRIOR_TRIES + self.streak),
        )

    def add(self, share: float, failed: bool) -> None:
        self.failed += share
        self.tries += 1.0
        self.streak = self.streak + share if failed else 0.0
        if self.tries > MEMORY:
            self.failed *= MEMORY / self.tries
            self.tries = MEMORY

    def fade(self, kept: float) -> None:
        self.failed *= kept
        self.tries *= kept
        self.streak *= kept


class FailureRates:
    """Failure probabilities and memory requirements.

    Parameters
    ----------
    cells
        Where the matrices are kept; shared with others.

    Attributes
    ----------
    version
        Changes whenever the probability of a queue does.

    """

    matrices: Final = (
        "failed",
        "tries",
        "streak",
        "failure",
        "peak",
        "peak_before",
        "peak_count",
        "needed",
    )

    def __init__(self, cells: Cells) -> None:
        self._cells = cells
        self.version = 0
        self._queues: dict[str, _Tries] = {}
        self._faded_at: float | None = None

    def learn_one(
        self, row: int, column: int, queue: str, failed: bool, out_of_memory: bool = False
    ) -> None:
        """Learn how one try ended."""
        cells = self._cells
        of_pair = _Tries(
            *(float(cells[name][row, column]) for name in ("failed", "tries", "streak"))
        )
        of_queue = self._queues.pop(queue, None)
        if of_queue is None:
            if len(self._queues) >= MAX_QUEUES:
                del self._queues[next(iter(self._queues))]
                self.version += 1
            of_queue = _Tries()
        self._queues[queue] = of_queue
        pair_share = queue_share = 0.0
        if failed:
            pair, own = of_pair.probability(), of_queue.probability()
            pair_share = 1.0 if out_of_memory else pair / (pair + own)
            queue_share = 1.0 - pair_share
        if failed or of_queue.failed > 0.0:
            self.version += 1
        of_queue.add(queue_share, failed)
        of_pair.add(pair_share, failed)
        cells["failed"][row, column] = of_pair.failed
        cells["tries"][row, column] = of_pair.tries
        cells["streak"][row, column] = of_pair.streak
        cells["failure"][row, column] = of_pair.probability() if of_pair.failed > 0.0 else 0.0

    def learn_peak(self, row: int, column: int, peak_bytes: int) -> None:
        """Learn the peak memory of a try that did not run out of it."""
        cells = self._cells
        peak, before, count = cells["peak"], cells["peak_before"], cells["peak_count"]
        if count[row, column] >= PEAK_WINDOW:
            before[row, column], peak[row, column], count[row, column] = peak[row, column], 0.0, 0.0
        peak[row, column] = max(peak[row, column], float(peak_bytes))
        count[row, column] += 1.0
        largest = max(peak[row, column], before[row, column])
        cells["needed"][row, column] = MEMORY_MARGIN * largest

    def learn_shortage(self, row: int, column: int, free_bytes: float) -> None:
        """Learn that a try ran out of memory on a GPU with so much free when idle.

        It is a lower bound on every GPU model on which the type has not succeeded yet, too.
        """
        cells = self._cells
        needed = cells["needed"][row]
        is_bound = cells["count"][row] == 0.0
        is_bound[column] = True
        needed[is_bound] = np.maximum(needed[is_bound], free_bytes + 1.0)

    def export_prior(self, row: int, column: int) -> dict[str, Any]:
        """What ``PairPrior`` says of failures and memory."""
        cells = self._cells
        needed = float(cells["needed"][row, column])
        peak = max(float(cells[name][row, column]) for name in ("peak", "peak_before"))
        return {
            "failure_probability": float(cells["failure"][row, column]),
            "tries": math.ceil(cells["tries"][row, column]),
            "needed_memory_bytes": math.ceil(needed) if needed else None,
            "peak_memory_bytes": math.ceil(peak) if peak else None,
        }

    def import_prior(self, row: int, column: int, prior: PairPrior) -> tuple[int, int, int]:
        """Take what another site knows of failures and memory; count each taken, and what is left.

        Own tries and own peaks count alone where there are any.
        """
        cells = self._cells
        tried = sized = left = 0
        if prior.tries > 0:
            if cells["tries"][row, column] > 0.0:
                left += 1
            else:
                tries = min(float(prior.tries), PRIOR_SAMPLES)
                failed = prior.failure_probability * (PRIOR_TRIES + tries) - PRIOR_FAILED
                of_pair = _Tries(min(max(failed, 0.0), tries), tries)
                cells["failed"][row, column] = of_pair.failed
                cells["tries"][row, column] = tries
                has_failed = of_pair.failed > 0.0
                cells["failure"][row, column] = of_pair.probability() if has_failed else 0.0
                tried = 1
        if prior.needed_memory_bytes is not None:
            if cells["needed"][row, column] > 0.0:
                left += 1
            else:
                cells["needed"][row, column] = float(prior.needed_memory_bytes)
                if prior.peak_memory_bytes is not None:
                    cells["peak"][row, column] = float(prior.peak_memory_bytes)
                    # After so many peaks seen here it is the window before, then forgotten.
                    cells["peak_count"][row, column] = PEAK_WINDOW - PRIOR_SAMPLES
                sized = 1
        return tried, sized, left

    def queues(self) -> dict[str, float]:
        """Failure probability of each queue that has failed."""
        return {
            name: tries.probability() for name, tries in self._queues.items() if tries.failed > 1e-3
        }

    def fade(self, mean_seconds: float, now: float) -> None:
        """Forget slowly, so that what was repaired is tried again."""
        before = now if self._faded_at is None else self._faded_at
        self._faded_at = now
        kept = math.exp(-max(now - before, 0.0) / (FADE_SERVICES * mean_seconds))
        if kept == 1.0:
            return
        cells = self._cells
        failed, tries, streak = cells["failed"], cells["tries"], cells["streak"]
        suspected = failed > 0.0
        if suspected.any():
            for matrix in (failed, tries, streak):
                matrix[suspected] *= kept
            probability = np.maximum(
                (PRIOR_FAILED + failed) / (PRIOR_TRIES + tries),
                (PRIOR_FAILED + streak) / (PRIOR_TRIES + streak),
            )
            cells["failure"][:] = np.where(suspected, probability, 0.0)
            # What is known only from a shortage is doubted as soon as the pairs that ran short are.
            is_sure = (cells["failure"] >= 0.5).any(axis=1, keepdims=True)
            doubted = (cells["peak"] == 0.0) & ~is_sure
            cells["needed"][doubted] = 0.0
        for of_queue in self._queues.values():
            if of_queue.failed > 0.0:
                of_queue.fade(kept)
                self.version += 1

    def state(self) -> dict[str, Any]:
        """What is not in the cells."""
        return {
            "queues": {
                name: [of_queue.failed, of_queue.tries, of_queue.streak]
                for name, of_queue in self._queues.items()
            },
            "faded_at": self._faded_at,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state()``, the cells being restored already.

        Raises
        ------
        StateError
            When it is damaged.

        """
        try:
            queues = {
                str(name): _Tries(float(failed), float(tries), float(streak))
                for name, (failed, tries, streak) in state["queues"].items()
            }
            faded_at = None if state["faded_at"] is None else float(state["faded_at"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StateError("The saved failure rates are damaged.") from error
        self._queues, self._faded_at = queues, faded_at
        self.version += 1


def success_ratio(pair_failure: Floats, queue_failure: Floats) -> Floats:
    """Probability that a try succeeds, never below 1 % so that costs stay finite."""
    ratio: Floats = np.maximum((1.0 - pair_failure) * (1.0 - queue_failure), 0.01)
    return ratio
