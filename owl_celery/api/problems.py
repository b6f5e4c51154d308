"""Every error as RFC 9457 has it: a status, and a sentence that says what to do."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException

from owl_celery.api.models import ProblemBody
from owl_celery.errors import OwlError, StoreError, UnknownModeError, UnknownQueueError
from owl_celery.redis_trouble import trouble_of

log = logging.getLogger(__name__)

MEDIA_TYPE: Final = "application/problem+json"
MAX_COMPLAINTS: Final = 20
MAX_INSTANCE: Final = 300
RETRY_SECONDS: Final = 2


class Problem(Exception):
    """An error that is answered with a status and a sentence.

    Parameters
    ----------
    status
        HTTP status.
    detail
        What is wrong and what to do, for the caller.
    headers
        Of the answer.

    """

    def __init__(
        self, status: HTTPStatus, detail: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = dict(headers or {})


def unavailable(detail: str) -> Problem:
    """What is asked for cannot be known at present."""
    return Problem(HTTPStatus.SERVICE_UNAVAILABLE, detail, {"Retry-After": str(RETRY_SECONDS)})


def answer(
    problem: Problem, path: str, errors: Sequence[Mapping[str, str]] | None = None
) -> JSONResponse:
    """Make the answer to a request for ``path``."""
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": problem.status.phrase,
        "status": int(problem.status),
        "detail": problem.detail,
        "instance": path[:MAX_INSTANCE],
    }
    if errors is not None:
        body["errors"] = list(errors)
    return JSONResponse(body, problem.status, problem.headers, MEDIA_TYPE)


def install_handlers(app: FastAPI) -> None:
    """Answer whatever goes wrong in an application with a problem."""
    app.add_exception_handler(Problem, _on_problem)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(RedisError, _on_redis)
    app.add_exception_handler(OwlError, _on_owl)
    app.add_exception_handler(Exception, _on_anything)


async def _on_problem(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Problem)
    return answer(error, request.url.path)


async def _on_http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    path = request.url.path
    detail = {
        HTTPStatus.NOT_FOUND: "There is nothing here; the paths are listed in /docs.",
        HTTPStatus.METHOD_NOT_ALLOWED: f"This path does not take {request.method}.",
    }.get(status, str(error.detail))
    return answer(Problem(status, detail, error.headers), path)


async def _on_invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    complaints = [
        {
            "where": ".".join(str(part) for part in complaint["loc"])[:MAX_INSTANCE],
            "message": str(complaint["msg"])[:MAX_INSTANCE],
        }
        for complaint in error.errors()[:MAX_COMPLAINTS]
    ]
    first = complaints[0]
    problem = Problem(HTTPStatus.UNPROCESSABLE_ENTITY, f"{first['where']}: {first['message']}.")
    return answer(problem, request.url.path, complaints)


async def _on_redis(request: Request, error: Exception) -> JSONResponse:
    problem = unavailable(trouble_of(error))
    return answer(problem, request.url.path)


async def _on_owl(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, StoreError):
        problem = unavailable(str(error))
    elif isinstance(error, UnknownQueueError):
        problem = Problem(HTTPStatus.NOT_FOUND, str(error))
    elif isinstance(error, UnknownModeError):
        problem = Problem(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
    else:
        return await _on_anything(request, error)
    return answer(problem, request.url.path)


async def _on_anything(request: Request, error: Exception) -> JSONResponse:
    log.error("owl: a request for %s failed", request.url.path[:MAX_INSTANCE], exc_info=error)
    problem = Problem(
        HTTPStatus.INTERNAL_SERVER_ERROR, "This is a mistake of ours; the log has the details."
    )
    return answer(problem, request.url.path)


def documented(*statuses: HTTPStatus) -> dict[int | str, dict[str, Any]]:
    """What OpenAPI says of these errors of a path, and of all that any path may answer."""
    content = {MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{ProblemBody.__name__}"}}}
    said = {int(status): status.phrase for status in statuses}
    return {
        "4XX": {"description": "The request cannot be answered", "content": content},
        **{status: {"description": said[status], "content": content} for status in said},
    }
