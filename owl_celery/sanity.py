"""Refuses what makes no sense: outcomes from the stream, and what routers and policies say."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from owl_celery.types import MAX_SIZE, MIN_SIZE, Decision, Outcome, TaskView, TryState
from owl_celery.wire import MAX_NAME_LENGTH, MAX_SECONDS

MAX_ATTEMPT: Final = 2**31 - 1
MAX_BYTES: Final = 2**62
"""Larger whole numbers do not fit a database's."""

MAX_UNIX_TIME: Final = 253_402_300_800.0
"""The begin of the year 10000."""

NAMES: Final = (
    "task_id",
    "decision_id",
    "task_type",
    "queue",
    "worker_id",
    "gpu_model",
    "algorithm",
    "error",
    "model",
)


def sane(outcome: Outcome) -> Outcome | None:
    """The outcome with its names cut to 255 characters; None when a value is absurd.

    Absurd is a value of another type than declared, a duration or time that is negative, not
    finite or out of all reach, a size out of bounds, and a name that no database can hold.
    """
    is_sane = (
        isinstance(outcome.state, TryState)
        and isinstance(outcome.explored, bool)
        and isinstance(outcome.out_of_memory, bool)
        and _within(outcome.service_seconds, MAX_SECONDS)
        and _within(outcome.finished_at, MAX_UNIX_TIME)
        and _within(outcome.size, MAX_SIZE)
        and outcome.size >= MIN_SIZE
        and (outcome.wait_seconds is None or _within(outcome.wait_seconds, MAX_SECONDS))
        and (outcome.predicted_seconds is None or _within(outcome.predicted_seconds, MAX_SECONDS))
        and _is_count(outcome.attempt, MAX_ATTEMPT)
        and (outcome.peak_memory_bytes is None or _is_count(outcome.peak_memory_bytes, MAX_BYTES))
        and all(is_text(getattr(outcome, name)) for name in NAMES[:-2])
        and all(getattr(outcome, name) is None or is_text(getattr(outcome, name)) for name in NAMES)
    )
    if not is_sane:
        return None
    cut = {
        name: value[:MAX_NAME_LENGTH]
        for name in NAMES
        if (value := getattr(outcome, name)) is not None and len(value) > MAX_NAME_LENGTH
    }
    return replace(outcome, **cut) if cut else outcome


def sane_view(view: TaskView) -> TaskView:
    """The same; a router of somebody's own may have made it.

    Raises
    ------
    ValueError
        When it is no description of a task, its size is out of bounds, or what of it travels in
        the message is no text: that could not be sent.

    """
    if (
        isinstance(view, TaskView)
        and isinstance(view.task_type, str)
        and _within(view.size, MAX_SIZE)
        and view.size >= MIN_SIZE
        and (view.model is None or isinstance(view.model, str))
        and all(isinstance(gpu_model, str) for gpu_model in view.tried)
        and _within(view.exceeded_bytes, MAX_BYTES)
    ):
        return view
    raise ValueError("no description of a task")


def sane_decision(decision: Decision) -> Decision:
    """The same; a policy of somebody's own may have made it.

    Raises
    ------
    ValueError
        When it is no decision, or a number of it that travels is negative or not finite.

    """
    if (
        isinstance(decision, Decision)
        and isinstance(decision.algorithm, str)
        and (decision.service_seconds is None or _within(decision.service_seconds, MAX_SECONDS))
        and (decision.propensity is None or _within(decision.propensity, MAX_SECONDS))
    ):
        return decision
    raise ValueError("no decision that could be followed")


def _within(value: object, maximum: float) -> bool:
    """Whether this is a finite number in [0, maximum]."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    # Comparing first keeps out NaN, infinity, and whole numbers too large for a float.
    return 0 <= value <= maximum


def _is_count(value: object, maximum: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= maximum


def is_text(value: object) -> bool:
    """Whether this is text that both databases can hold: no NUL, no half of a surrogate pair."""
    if not isinstance(value, str) or "\0" in value:
        return False
    return value.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in value)
