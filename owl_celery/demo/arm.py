"""One arm of the demo: send the tasks when they are due, and collect how they fared."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from celery import Celery

from owl_celery.demo.load import Job

TASK: Final = "workers.tasks.replay"
COLLECT_SECONDS: Final = 0.5
WINDOW: Final = 100


@dataclass(frozen=True, slots=True)
class Done:
    """One finished task.

    Parameters
    ----------
    due, finished
        Seconds after the start of the arm.
    service_seconds
        How long it ran.

    """

    due: float
    finished: float
    service_seconds: float
    gpu_model: str
    task_type: str

    @property
    def response_seconds(self) -> float:
        """From when the task was due to be sent until its result was stored."""
        return self.finished - self.due


@dataclass(slots=True)
class Arm:
    """What is known of one arm while it runs and afterwards.

    Parameters
    ----------
    name
        ``celery_shared`` or ``owl``.
    total
        Tasks to send.

    """

    name: str
    total: int
    sent: int = 0
    done: list[Done] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def lost(self) -> int:
        """Tasks that were sent and have no result."""
        return self.sent - len(self.done)

    def recent_response_seconds(self) -> float | None:
        """Mean response time of the last tasks to finish."""
        last = self.done[-WINDOW:]
        return sum(d.response_seconds for d in last) / len(last) if last else None


def run_arm(
    arm: Arm,
    app: Celery,
    jobs: Sequence[Job],
    patience_seconds: float,
    on_progress: Callable[[], None],
) -> None:
    """Send the jobs, wait for their results, and fill in the arm.

    Parameters
    ----------
    app
        Sends by ``apply_async``, with a Redis result backend.
    patience_seconds
        How long to wait for results after the last task was sent.
    on_progress
        Called twice a second.

    """
    wall_start, start = time.time(), time.monotonic()
    pending: dict[str, Job] = {}
    next_look = COLLECT_SECONDS
    task = app.tasks[TASK]
    for job in jobs:
        while (now := time.monotonic() - start) < job.at:
            if now >= next_look:
                _collect(arm, app, pending, wall_start)
                on_progress()
                next_look = time.monotonic() - start + COLLECT_SECONDS
            time.sleep(max(min(job.at, next_look) - (time.monotonic() - start), 0.0))
        arguments = (job.task_type, job.size, job.scale_seconds)
        pending[task.apply_async(arguments).id] = job
        arm.sent += 1
    deadline = time.monotonic() + patience_seconds
    while pending and time.monotonic() < deadline:
        time.sleep(COLLECT_SECONDS)
        _collect(arm, app, pending, wall_start)
        on_progress()
    arm.seconds = time.monotonic() - start


def _collect(arm: Arm, app: Celery, pending: dict[str, Job], wall_start: float) -> None:
    """Move what has a result from pending to done, in order of finishing."""
    found = []
    for task_id, result in _results(app, list(pending)):
        job = pending.pop(task_id)
        ended = datetime.fromisoformat(result["date_done"]).timestamp() - wall_start
        value = result["result"]
        found.append(Done(job.at, ended, value["seconds"], value["gpu_model"], job.task_type))
    arm.done += sorted(found, key=lambda done: done.finished)


def _results(app: Celery, ids: list[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Read the results that are there, in one round trip."""
    backend = app.backend
    if ids:
        texts = backend.mget([backend.get_key_for_task(task_id) for task_id in ids])
        for task_id, text in zip(ids, texts, strict=True):
            if text is not None:
                result = backend.decode_result(text)
                if result["status"] == "SUCCESS":
                    yield task_id, result
