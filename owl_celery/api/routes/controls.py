"""The two switches: the mode, and queues to empty. They need the bearer token."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter

from owl_celery.api.models import DrainBody, ModeBody, ModeChangeBody
from owl_celery.api.parts import Parts
from owl_celery.api.problems import documented
from owl_celery.controls import drain_queue, resume_queue, set_mode

router = APIRouter(
    tags=["controls"],
    responses=documented(
        HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.SERVICE_UNAVAILABLE
    ),
)


@router.put("/mode")
def put_mode(parts: Parts, body: ModeBody) -> ModeChangeBody:
    """Set the kill switch: ``on``, ``shadow`` (decide and learn, Celery routes) or ``off``."""
    before = set_mode(parts.state, body.mode)
    return ModeChangeBody.model_validate({"mode": body.mode, "before": before})


@router.post("/queues/{queue:path}/drain", responses=documented(HTTPStatus.NOT_FOUND))
def drain(parts: Parts, queue: str) -> DrainBody:
    """Send no more tasks to a queue, and move elsewhere what was sent there and waits."""
    changed = drain_queue(parts.state, queue)
    return DrainBody(queue=queue, is_drained=True, changed=changed)


@router.post("/queues/{queue:path}/resume", responses=documented(HTTPStatus.NOT_FOUND))
def resume(parts: Parts, queue: str) -> DrainBody:
    """Send tasks to a drained queue again."""
    changed = resume_queue(parts.state, queue)
    return DrainBody(queue=queue, is_drained=False, changed=changed)
