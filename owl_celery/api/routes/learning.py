"""How it goes: health, performance, live events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query
from fastapi.sse import EventSourceResponse, ServerSentEvent

from owl_celery.api.feed import LiveEvent
from owl_celery.api.models import HealthBody, PerformanceBody
from owl_celery.api.parts import Parts, with_rows
from owl_celery.api.present import health_body, performance_body
from owl_celery.api.problems import Problem, documented, unavailable
from owl_celery.requirements import Requirements

router = APIRouter(tags=["learning"])

Line = asyncio.Queue[LiveEvent | None]


@router.get("/health", responses=documented())
def health(parts: Parts) -> HealthBody:
    """Say whether learned routing works, and why not.

    Answers 200 also when it does not: read ``status``. For a check by status use ``/readyz``.
    """
    return health_body(parts.reader.read().health)


@router.get("/performance", responses=documented(HTTPStatus.SERVICE_UNAVAILABLE))
def performance(
    parts: Parts,
    bucket_seconds: Annotated[
        Literal["60", "3600"], Query(description="Length of the buckets of the learning curve.")
    ] = "60",
) -> PerformanceBody:
    """Sum up how tasks, workers and algorithms did, and what routing has gained."""
    return performance_body(with_rows(parts), int(bucket_seconds))


@router.get(
    "/requirements/{task_type:path}",
    responses=documented(HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE),
)
def requirements(parts: Parts, task_type: str) -> Requirements:
    """Say what was learned of the hardware that a task type needs, and how sure that is."""
    found = parts.requirements.of(task_type)
    if found is None:
        raise Problem(
            HTTPStatus.NOT_FOUND,
            "No try of this task type is known; those that are known are in /task-types.",
        )
    return found


async def admit(parts: Parts) -> AsyncIterator[Line]:
    """Make room for one more reader of live events."""
    if parts.feed.client_count >= parts.limits.live_clients:
        raise unavailable(f"{parts.limits.live_clients} clients read live events already.")
    line = parts.feed.subscribe()
    try:
        yield line
    finally:
        parts.feed.unsubscribe(line)


@router.get(
    "/events",
    response_class=EventSourceResponse,
    responses=documented(HTTPStatus.SERVICE_UNAVAILABLE),
)
async def events(parts: Parts, line: Annotated[Any, Depends(admit)]) -> AsyncIterator[Any]:
    """Follow live: event ``fleet`` each second ({health, queues}), and ``outcome`` as they come."""
    async for event in parts.feed.follow(line):
        yield ServerSentEvent(event=event.kind, raw_data=event.body)
