"""Whether learned routing works, and why not, in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from owl_celery.overview.kept import Kept
from owl_celery.overview.live import Live
from owl_celery.overview.values import (
    ControllerNow,
    DatabaseNow,
    HealthNow,
    QueueNow,
    Reason,
    Status,
)
from owl_celery.settings import Settings

LAG_SECONDS: Final = 10.0
"""Age of the oldest outcome that is not learned from, beyond which something is wrong."""


def health_of(
    live: Live,
    kept: Kept,
    queues: Sequence[QueueNow],
    settings: Settings,
    database_kind: str,
    version: str,
) -> HealthNow:
    """Sum up how the application is doing."""
    age = None
    if live.view is not None:
        age = max(live.redis_time - live.view.ledger_time, 0.0)
    down, degraded, remarks = _down(live, age, settings), _degraded(live, kept, age, settings), []
    open_queues = sum(queue.is_open for queue in queues)
    if not down and not open_queues:
        degraded.append(Reason("workers", _none_open(queues)))
    if live.mode == "off":
        remarks.append(Reason("mode", "The mode is off: Celery routes all tasks."))
    elif live.mode == "shadow":
        remarks.append(Reason("mode", "The mode is shadow: choices are made and not followed."))
    controller = live.controller
    return HealthNow(
        status=Status.DOWN if down else Status.DEGRADED if degraded else Status.OK,
        reasons=(*down, *degraded, *remarks),
        mode=live.mode,
        view_age_seconds=age,
        controller=None
        if controller is None
        else ControllerNow(
            controller.controller,
            controller.active_since,
            controller.policy,
            controller.tick_seconds,
        ),
        database=DatabaseNow(
            "down" if kept.trouble else "ok" if kept.version >= 0 else "unread", database_kind
        ),
        stream_lag_seconds=None if controller is None else controller.lag_seconds,
        queues=len(queues),
        open_queues=open_queues,
        waiting_count=sum(queue.waiting_count for queue in queues),
        backlog_seconds=sum(queue.backlog_seconds for queue in queues),
        running_count=sum(len(queue.running) for queue in queues),
        version=version,
    )


def _none_open(queues: Sequence[QueueNow]) -> str:
    """Why there is no open queue, and what to do."""
    if queues and all(queue.is_drained for queue in queues):
        return "All queues are drained: end it by celery -A proj owl resume QUEUE."
    return "No queue is open: start workers by celery -A proj owl worker."


def _down(live: Live, age: float | None, settings: Settings) -> list[Reason]:
    """What leaves tasks to Celery's own routing."""
    if live.trouble:
        return [Reason("redis", live.trouble)]
    if age is None:
        who = "No controller is active" if live.controller is None else "The controller is starting"
        return [
            Reason(
                "controller",
                f"{who}: there is no load view, and Celery routes all tasks. Workers host one, "
                "or celery -A proj owl serve.",
            )
        ]
    if age > settings.view_dead_seconds:
        return [
            Reason(
                "controller",
                f"The load view is {age:.0f} s old: no controller is at work, and Celery routes "
                "all tasks.",
            )
        ]
    return []


def _degraded(live: Live, kept: Kept, age: float | None, settings: Settings) -> list[Reason]:
    found = []
    if not live.trouble and age is not None:
        if settings.view_stale_seconds < age <= settings.view_dead_seconds:
            found.append(
                Reason("view", f"The load view is {age:.1f} s old: simpler routing is used.")
            )
        if live.controller is None and age <= settings.view_dead_seconds:
            found.append(Reason("controller", "No controller is active at the moment."))
    said = {} if live.controller is None else dict(live.controller.troubles)
    if live.mode_trouble:
        said["mode"] = live.mode_trouble
    found += [Reason(part, sentence) for part, sentence in sorted(said.items())]
    if live.controller is not None:
        lag = live.controller.lag_seconds
        if lag > LAG_SECONDS:
            found.append(
                Reason("stream", f"Outcomes of the last {lag:.0f} s are not learned from yet.")
            )
    if kept.trouble:
        found.append(Reason("database", f"{kept.trouble} Older figures are shown."))
    return found
