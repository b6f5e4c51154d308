"""What a producer decides from: queues, load and policies, built anew from each view."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from owl_celery.errors import SettingsError
from owl_celery.fleet import LEAST_SECONDS, Fleet, Floats
from owl_celery.policies import policy_class
from owl_celery.policies.base import Policy
from owl_celery.records import View

SIMPLEST_POLICY: Final = "shortest_queue"
SENT_TO_JUDGE_BY: Final = 4
"""Tasks of ours that say as much of where the others send as what was heard of them."""


@dataclass(slots=True)
class Snapshot:
    """Everything a decision needs.

    Parameters
    ----------
    fleet
        Queues and load; this process's own recent assignments included.
    policies
        The policy and the simpler ones behind it, best first.
    policy_version
        Version of the knowledge they hold.
    changed_at
        Monotonic time at which the view's version last changed.
    others_pace
        Predicted seconds that the other producers send each second to the queues of each of the
        fleet's models, shape (C,); None without others.
    sent_count, sent_seconds
        Tasks that this process has sent since it has this snapshot, and their predicted seconds on
        each model; not kept without others.

    """

    fleet: Fleet
    rows: dict[str, int]
    policies: list[Policy]
    policy_version: int
    changed_at: float
    others_pace: Floats | None = None
    sent_count: int = 0
    sent_seconds: Floats | None = None

    def unseen_seconds(self, now: float) -> Floats | None:
        """What the others have sent since this view came, as far as can be told.

        Not since the load was counted: what they sent in between they sent without knowing this
        view, and so not to where it shows the least load.
        """
        if self.others_pace is None:
            return None
        unseen = self.others_pace * max(now - self.changed_at, 0.0)
        if self.sent_seconds is None:
            return unseen
        # Where the others send now, by GPU model, is seen sooner by what we do than by views.
        ours, total = float(self.sent_seconds.sum()), float(unseen.sum())
        weight = self.sent_count / (self.sent_count + SENT_TO_JUDGE_BY) if ours > 0.0 else 0.0
        return unseen + weight * (total / max(ours, LEAST_SECONDS) * self.sent_seconds - unseen)

    def sent(self, row: int, seconds: float) -> None:
        """Count a task that this process sends."""
        self.fleet.waiting_count[row] += 1
        self.fleet.waiting_seconds[row] += seconds
        if self.others_pace is not None:
            if self.sent_seconds is None:
                self.sent_seconds = np.zeros(len(self.fleet.models))
            self.sent_seconds[self.fleet.model_index.item(row)] += seconds
            self.sent_count += 1


def policy_chain(name: str) -> list[str]:
    """Name a policy and the simpler ones behind it, best first.

    A policy that only a newer release knows is passed over for the simplest one.

    Examples
    --------
    >>> policy_chain("q_learning")
    ['q_learning', 'expected_completion', 'shortest_queue']

    """
    names: list[str] = []
    following: str | None = name
    while following is not None and following not in names:
        try:
            fallback = policy_class(following).fallback
        except SettingsError:
            following, fallback = SIMPLEST_POLICY, None
        names.append(following)
        following = fallback
    return names


def load_fleet(queues: Fleet, view: View, now: float) -> Fleet:
    """Fill in the load of a view; what runs is dated by our monotonic clock.

    Parameters
    ----------
    queues
        The queues of the view's fleet record; not changed.

    Raises
    ------
    ValueError
        When the rows of the view and of the record do not fit.

    """
    fleet, size = queues.emptied(), len(queues)
    if len(view.waiting_count) != size or len(view.waiting_seconds) != size:
        raise ValueError("the load view does not fit its fleet record")
    fleet.waiting_count[:] = view.waiting_count
    fleet.waiting_seconds[:] = view.waiting_seconds
    if len(view.free_memory_bytes) == size:
        fleet.free_memory_bytes[:] = view.free_memory_bytes
    fleet.is_open[list(view.closed)] = False
    running = np.array(view.running, dtype=np.float64)
    if len(running):
        running = running[np.argsort(running[:, 0], kind="stable")]
        rows = running[:, 0].astype(np.int64)
        slots = np.arange(len(rows)) - np.searchsorted(rows, rows)
        fits = slots < fleet.running_seconds.shape[1]
        where = (rows[fits], slots[fits])
        # A running task without a prediction still occupies its slot.
        fleet.running_seconds[where] = np.maximum(running[fits, 1], LEAST_SECONDS)
        fleet.running_since[where] = now - np.maximum(running[fits, 2], 0.0)
    fleet.settle()
    return fleet


def add_assignments(
    fleet: Fleet, rows: Mapping[str, int], count: Mapping[str, int], seconds: Mapping[str, float]
) -> None:
    """Add tasks on their way to the waiting columns; queues that are gone are passed over."""
    for queue, tasks in count.items():
        row = rows.get(queue)
        if row is not None:
            fleet.waiting_count[row] += tasks
            fleet.waiting_seconds[row] += seconds[queue]


def add_by_model(
    sums: Floats, fleet: Fleet, rows: Mapping[str, int], seconds: Mapping[str, float]
) -> None:
    """Add seconds of queues to the sum of their GPU model, shape (C,)."""
    for queue, value in seconds.items():
        row = rows.get(queue)
        if row is not None:
            sums[fleet.model_index.item(row)] += value
