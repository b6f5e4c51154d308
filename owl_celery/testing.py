"""Checks and fakes for tests: ours, and those of applications that use owl_celery."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

POLL_SECONDS: Final = 0.005

Value = TypeVar("Value")


def wait_until(condition: Callable[[], Value], what: str, seconds: float = 10.0) -> Value:
    """Call ``condition`` until it returns something true, and return that.

    Parameters
    ----------
    condition
        Called every 5 ms; its first true value ends the wait.
    what
        What is waited for, as the message of the error.
    seconds
        How long to wait at most.

    Raises
    ------
    AssertionError
        When the time is up.

    Examples
    --------
    >>> answers = iter([0, 0, 7])
    >>> wait_until(lambda: next(answers), "an answer")
    7

    """
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"Waited {seconds:g} s in vain for {what}.")
        time.sleep(POLL_SECONDS)
