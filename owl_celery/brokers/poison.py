"""Give up on a task that kills its worker every time."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from billiard.einfo import ExceptionInfo
from billiard.exceptions import WorkerLostError
from celery import signals
from celery.app.task import Context
from kombu.serialization import loads

if TYPE_CHECKING:
    from celery import Celery

log = logging.getLogger(__name__)


def fail_task(app: Celery, text: str, losses: int) -> None:
    """Store as the result of a message's task that it failed, and why; run what follows a failure.

    Parameters
    ----------
    app
        Whose result backend it is.
    text
        The message as Celery's Redis transport keeps it.
    losses
        How often a worker died while it ran this task.

    Raises
    ------
    Exception
        Whatever the backend raises, and when the text is no task.

    """
    message = json.loads(text)
    headers = dict(message["headers"])
    task_id, name = str(headers["id"]), str(headers["task"])
    error = too_many_losses(losses)
    task = app.tasks.get(name)
    ignored = headers.get("ignore_result")
    if ignored is None:
        ignored = task is not None and task.ignore_result
    keeps = not ignored or (task is not None and task.store_errors_even_if_ignored)
    delivery_info = message["properties"].get("delivery_info") or {}
    request = Context({**headers, "delivery_info": delivery_info, **embedded_in(message)})
    log.error("owl: task %r (%r): %s", name, task_id, error)
    app.backend.mark_as_failure(task_id, error, request=request, store_result=keeps)
    if task is not None:
        announce_failure(task, task_id, error, request)


def too_many_losses(losses: int) -> WorkerLostError:
    """The result of a task that is given up."""
    return WorkerLostError(
        f"The worker died {losses} times while it ran this task, which is not tried again "
        "(OWL_MAX_WORKER_LOSSES)."
    )


def announce_failure(task: Any, task_id: str, error: WorkerLostError, request: Any) -> None:
    """Send the signal ``task_failure`` as Celery does; what receivers raise is logged by it."""
    try:
        raise error
    except WorkerLostError:
        info = ExceptionInfo()
    task.request_stack.push(request)
    try:
        signals.task_failure.send(
            sender=task,
            task_id=task_id,
            exception=error,
            args=request.args,
            kwargs=request.kwargs,
            traceback=info.traceback,
            einfo=info,
        )
    finally:
        task.request_stack.pop()


def embedded_in(message: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments, callbacks, chain and chord of a task; empty unless they are JSON."""
    body: Any = message["body"]
    if message["properties"].get("body_encoding") == "base64":
        body = base64.b64decode(body)
    try:
        # Never pickle, whatever the application accepts: to read it is to run it.
        args, kwargs, embed = loads(  # type: ignore[no-untyped-call]
            body, message["content-type"], message["content-encoding"], accept={"application/json"}
        )
        return {"args": args, "kwargs": kwargs, **embed}
    except Exception as error:
        log.info("owl: what follows the failed task is unknown (%s)", type(error).__name__)
        return {}
