"""The most that a fleet can serve of a mix of task types: a small linear program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from owl_celery.errors import InputError

Floats = npt.NDArray[np.float64]

TOLERANCE: Final = 1e-10
REFACTOR_EVERY: Final = 50
"""Pivots between two fresh inversions of the basis, against rounding."""


@dataclass(frozen=True, eq=False)
class Capacity:
    """Solution of ``max rate`` such that no GPU model gets more work than it has GPUs.

    Parameters
    ----------
    rate
        Tasks per second that the fleet can at most serve.
    fractions
        Share of each type that goes to each GPU model at that rate, shape (K, C).
    prices
        Relative price of a second on each GPU model: the duals, mean over GPUs 1, shape (C,).

    """

    rate: float
    fractions: Floats
    prices: Floats


def lp_capacity(seconds: Floats, mix: Floats, gpus: Floats) -> Capacity:
    """Solve the linear program by the revised simplex method.

    Parameters
    ----------
    seconds
        Mean service times, shape (K, C); NaN where a type does not fit.
    mix
        Share of each type among arrivals, any scale, shape (K,).
    gpus
        GPUs of each model (a GPU at half speed counts 0.5), shape (C,).

    Raises
    ------
    InputError
        When a type with a share fits nowhere.

    Examples
    --------
    Two types, two GPUs, each type twice as fast on its own GPU:

    >>> capacity = lp_capacity(np.array([[1.0, 2.0], [2.0, 1.0]]), np.ones(2), np.ones(2))
    >>> round(capacity.rate, 6)
    2.0

    """
    share = np.asarray(mix, dtype=np.float64) / float(np.sum(mix))
    count, classes = seconds.shape
    with np.errstate(divide="ignore"):
        load = share[:, None] * seconds / np.asarray(gpus, dtype=np.float64)[None, :]
    load[~np.isfinite(load)] = np.inf
    if np.isinf(load).all(axis=1).any():
        raise InputError("A task type fits on no GPU model of the fleet.")

    # Minimise the busiest model's load t: sum_c x_kc = 1; sum_k load_kc x_kc - t + slack_c = 0.
    # Columns: x_kc (row-major), t, slack_c. The first basis sends each type to its least load.
    first = np.argmin(load, axis=1)
    start = np.bincount(first, load[np.arange(count), first], minlength=classes)
    busiest = int(np.argmax(start))
    time_column = count * classes
    basis = np.concatenate(
        [np.arange(count) * classes + first, time_column + 1 + np.arange(classes)]
    )
    basis[count + busiest] = time_column

    def column(index: int) -> Floats:
        entries = np.zeros(count + classes)
        if index < time_column:
            entries[index // classes] = 1.0
            entries[count + index % classes] = load.flat[index]
        elif index == time_column:
            entries[count:] = -1.0
        else:
            entries[count + index - time_column - 1] = 1.0
        return entries

    right = np.concatenate([np.ones(count), np.zeros(classes)])
    finite = np.where(np.isinf(load), 0.0, load)
    stalled = 0
    for pivot in range(50 * (count + classes) + 1000):
        if pivot % REFACTOR_EVERY == 0:
            inverse = np.linalg.inv(np.column_stack([column(int(j)) for j in basis]))
            values = inverse @ right
        dual = inverse[np.flatnonzero(basis == time_column)[0]]
        reduced = np.concatenate(
            [(-dual[:count, None] - finite * dual[None, count:]).ravel(), [0.0], -dual[count:]]
        )
        reduced[:time_column][np.isinf(load).ravel()] = 0.0
        reduced[basis] = 0.0
        if reduced.min() >= -TOLERANCE:
            break
        # The steepest column is fast; the first one cannot cycle.
        entering = int(np.argmin(reduced) if stalled < 50 else np.argmax(reduced < -TOLERANCE))
        direction = inverse @ column(entering)
        steps = np.full(len(values), np.inf)
        rising = direction > TOLERANCE
        steps[rising] = np.maximum(values[rising], 0.0) / direction[rising]
        ties = np.flatnonzero(steps <= steps.min() + TOLERANCE)
        leaving = int(ties[np.argmin(basis[ties])])
        step = float(steps[leaving])
        stalled = stalled + 1 if step <= TOLERANCE else 0
        values -= step * direction
        values[leaving] = step
        row = inverse[leaving] / direction[leaving]
        inverse -= np.outer(direction, row)
        inverse[leaving] = row
        basis[leaving] = entering
    fractions = np.zeros(count * classes)
    chosen = basis < time_column
    fractions[basis[chosen]] = np.maximum(values[chosen], 0.0)
    fractions = fractions.reshape(count, classes)
    fractions /= fractions.sum(axis=1, keepdims=True)
    busiest_load = float((finite * fractions).sum(axis=0).max())
    prices = np.maximum(-dual[count:], 0.0) / np.asarray(gpus, dtype=np.float64)
    prices *= float(np.sum(gpus))
    return Capacity(1.0 / busiest_load, fractions, prices)
