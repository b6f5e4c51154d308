"""What routing has gained, with bounds: pure functions of the aggregates."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np

from owl_celery.aggregates import OTHER, AlgorithmStats, ServiceStats
from owl_celery.overview.values import Ratio

LEAST_SAMPLES: Final = 5
"""Successful tries of a task type on a GPU model below which the policy's prediction is used."""

PREDICTION_ERROR: Final = 0.5
"""Standard error of a prediction, as a share of it."""

LEAST_SHARE: Final = 0.5
"""Share of all successful tries that must be of types known on every GPU model."""

LEAST_RESPONSES: Final = 30
"""Responses of either side from which on means are compared."""

Z_95: Final = 1.96


def service_ratio(
    services: Sequence[ServiceStats],
    gpus: Mapping[str, float],
    predict: Callable[[str, str], float | None] = lambda task_type, gpu_model: None,
) -> Ratio | None:
    """Compare the mean service time with that of one queue shared by all GPUs.

    In plain Celery a busy GPU takes the next task whatever it is. The mix of task types is then
    the same on every GPU model, so that a model serves ``N / mean`` tasks in a second, ``N`` being
    its GPUs and ``mean`` its service time averaged over the mix; the mean service time of all is
    the number of GPUs over the sum of these rates. With few tasks slow GPUs get more of them than
    that, so the gain is rather understated.

    Parameters
    ----------
    services
        Learned service times, for tasks of size 1.
    gpus
        Number of GPUs (more exactly, slots) of each GPU model.
    predict
        Service time expected of a task type on a GPU model where there are few tries.

    Returns
    -------
    Ratio or None
        None unless there are two GPU models, and types that are known on each of them make up
        half of all tries.

    Notes
    -----
    Bounds by the delta method on the logarithm, from the standard errors of the learned means:
    what happened and what is compared with rest on the same means, whose errors cancel in part.

    """
    models = sorted(model for model, count in gpus.items() if count > 0.0 and model != OTHER)
    rows = {
        (row.task_type, row.gpu_model): row
        for row in services
        if row.gpu_model in models and row.task_type != OTHER
    }
    names = dict.fromkeys(task_type for task_type, _ in rows)
    known = [
        cells
        for task_type in names
        if (cells := _cells(task_type, models, rows, predict)) is not None
    ]
    all_tries = sum(row.count for row in rows.values())
    if len(models) < 2 or not known:
        return None
    counts, means, errors = np.array(known, dtype=np.float64).transpose(2, 0, 1)
    tries = float(counts.sum())
    if not tries or tries < LEAST_SHARE * all_tries:
        return None
    number = np.array([gpus[model] for model in models])
    share = counts.sum(axis=1) / tries
    actual = float((counts * means).sum() / tries)
    by_model = share @ means
    if actual <= 0.0 or not (by_model > 0.0).all():
        return None
    rate = float((number / by_model).sum())
    baseline = float(number.sum()) / rate
    gradient = counts / tries / actual - share[:, None] * (number / by_model**2 / rate)
    deviation = math.sqrt(float(((gradient * errors) ** 2).sum()))
    return _ratio(actual / baseline, deviation, int(tries), SERVICE_SENTENCE)


def response_ratio(algorithms: Sequence[AlgorithmStats], policy: str) -> Ratio | None:
    """Compare the mean response time of tasks that the policy placed with that of Celery's.

    Parameters
    ----------
    algorithms
        Rows of all.
    policy
        Name of the policy at work.

    Returns
    -------
    Ratio or None
        None until both have placed 30 tasks with a known wait.

    """
    found = {row.algorithm: row for row in algorithms}
    ours, theirs = found.get(policy), found.get("celery")
    if ours is None or theirs is None or ours is theirs:
        return None
    if min(ours.responses, theirs.responses) < LEAST_RESPONSES:
        return None
    if ours.response_seconds <= 0.0 or theirs.response_seconds <= 0.0:
        return None
    estimate = (ours.response_seconds / ours.responses) / (
        theirs.response_seconds / theirs.responses
    )
    deviation = math.hypot(_relative_error(ours), _relative_error(theirs))
    return _ratio(estimate, deviation, ours.responses + theirs.responses, RESPONSE_SENTENCE)


SERVICE_SENTENCE: Final = "service time per task is {change} what one shared queue would take"
RESPONSE_SENTENCE: Final = "response time is {change} that of the tasks which Celery placed"


def _ratio(estimate: float, deviation: float, tasks: int, sentence: str) -> Ratio:
    spread = math.exp(min(Z_95 * deviation, 50.0))
    low, high = estimate / spread, estimate * spread
    change = f"{abs(1.0 - estimate):.0%} {'below' if estimate < 1.0 else 'above'}"
    said = sentence.format(change=change)
    said = f"{said[0].upper()}{said[1:]} ({low:.2f} to {high:.2f} times, by {tasks} tries)."
    if low <= 1.0 <= high:
        said = f"No difference is sure yet: {said[0].lower()}{said[1:]}"
    return Ratio(estimate, low, high, tasks, said)


def _cells(
    task_type: str,
    models: Sequence[str],
    rows: Mapping[tuple[str, str], ServiceStats],
    predict: Callable[[str, str], float | None],
) -> list[tuple[int, float, float]] | None:
    """Count, mean and standard error of a type on each GPU model; None when one is unknown."""
    cells = []
    for model in models:
        row = rows.get((task_type, model)) or ServiceStats()
        if row.count >= LEAST_SAMPLES and row.mean_seconds > 0.0:
            cells.append((row.count, row.mean_seconds, row.standard_error_seconds or 0.0))
            continue
        seconds = predict(task_type, model)
        if seconds is None or not seconds > 0.0:
            return None
        cells.append((row.count, seconds, PREDICTION_ERROR * seconds))
    return cells


def _relative_error(row: AlgorithmStats) -> float:
    """Standard error of the mean response time, as a share of it."""
    mean = row.response_seconds / row.responses
    variance = max(row.response_squared / row.responses - mean * mean, 0.0)
    return math.sqrt(variance / (row.responses - 1)) / mean
