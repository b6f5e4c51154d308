"""Lists: queues, workers, task types, the matrix of service times."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter

from owl_celery.api.cursors import Cursor, Limit, page_of
from owl_celery.api.models import CellBody, Page, QueueBody, TaskTypeBody, WorkerBody
from owl_celery.api.parts import Parts, with_redis, with_rows
from owl_celery.api.present import cell_body, queue_body, task_type_body, worker_body
from owl_celery.api.problems import documented
from owl_celery.overview.matrix import cells_of, pairs_of

router = APIRouter(
    tags=["lists"],
    responses=documented(HTTPStatus.BAD_REQUEST, HTTPStatus.SERVICE_UNAVAILABLE),
)


@router.get("/queues")
def queues(parts: Parts, limit: Limit = 100, cursor: Cursor = None) -> Page[QueueBody]:
    """List the queues by name, with what waits, what runs, and what their GPUs report."""
    rows = with_redis(parts).queues
    page, following = page_of("queues", rows, lambda row: (row.name,), limit, cursor)
    return Page[QueueBody].model_construct(
        items=[queue_body(row) for row in page], next_cursor=following
    )


@router.get("/workers")
def workers(parts: Parts, limit: Limit = 100, cursor: Cursor = None) -> Page[WorkerBody]:
    """List the workers that live or have done something, by name."""
    rows = sorted(with_redis(parts).workers, key=lambda row: row.worker_id)
    page, following = page_of("workers", rows, lambda row: (row.worker_id,), limit, cursor)
    return Page[WorkerBody].model_construct(
        items=[worker_body(row) for row in page], next_cursor=following
    )


@router.get("/task-types")
def task_types(parts: Parts, limit: Limit = 100, cursor: Cursor = None) -> Page[TaskTypeBody]:
    """List the task types by name; ``other`` pools those beyond the bound."""
    overview = with_rows(parts)
    rows = sorted(overview.task_types, key=lambda row: row.task_type)
    page, following = page_of("task-types", rows, lambda row: (row.task_type,), limit, cursor)
    return Page[TaskTypeBody].model_construct(
        items=[task_type_body(row, overview) for row in page], next_cursor=following
    )


@router.get("/matrix")
def matrix(parts: Parts, limit: Limit = 100, cursor: Cursor = None) -> Page[CellBody]:
    """List what is known of each task type on each GPU model, by type and model."""
    overview = with_rows(parts)
    page, following = page_of(
        "matrix", pairs_of(overview), lambda pair: pair, limit, cursor, width=2
    )
    return Page[CellBody].model_construct(
        items=[cell_body(cell) for cell in cells_of(overview, page)], next_cursor=following
    )
