"""Where tasks went, why, and what became of them."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Final

from fastapi import APIRouter, Query

from owl_celery.api.cursors import Cursor, Limit, decode_cursor, encode_cursor
from owl_celery.api.models import DecisionBody, Page
from owl_celery.api.parts import ApiParts, Parts
from owl_celery.api.present import decision_body
from owl_celery.api.problems import Problem, documented
from owl_celery.overview.decisions import explain
from owl_celery.store.base import NumberedOutcome
from owl_celery.wire import MAX_NAME_LENGTH

router = APIRouter(tags=["decisions"])

MAX_TRIES: Final = 100
LARGEST: Final = 2**63


@router.get(
    "/decisions",
    responses=documented(HTTPStatus.BAD_REQUEST, HTTPStatus.SERVICE_UNAVAILABLE),
)
def decisions(
    parts: Parts,
    limit: Limit = 50,
    cursor: Cursor = None,
    task_type: Annotated[
        str | None, Query(max_length=MAX_NAME_LENGTH, description="Of this type only.")
    ] = None,
) -> Page[DecisionBody]:
    """List tries that have ended, the latest first, with the reason for their queue."""
    before = None
    if cursor is not None:
        (before,) = decode_cursor("decisions", cursor, int)
        before = min(max(before, 0), LARGEST)
    found = parts.reader.ask(lambda store: store.outcome_page(limit + 1, before, task_type))
    page = found[:limit]
    following = encode_cursor("decisions", page[-1].number) if len(found) > limit else None
    return _page(parts, page, following)


@router.get(
    "/decisions/{task_id:path}",
    responses=documented(HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE),
)
def decisions_of_task(parts: Parts, task_id: str) -> Page[DecisionBody]:
    """List the tries of one task that have ended, the latest first, with their reasons."""
    found = parts.reader.ask(lambda store: store.outcomes_of_task(task_id, MAX_TRIES))
    if not found:
        raise Problem(
            HTTPStatus.NOT_FOUND,
            "No try of this task has ended lately: it waits or runs, or its outcome is older than "
            "those that are kept.",
        )
    return _page(parts, found, None)


def _page(
    parts: ApiParts, found: list[NumberedOutcome], following: str | None
) -> Page[DecisionBody]:
    overview = parts.reader.read()
    return Page[DecisionBody].model_construct(
        items=[decision_body(explain(outcome, overview)) for _, outcome in found],
        next_cursor=following,
    )
