"""An application that uses all of Celery's canvas, plain or with the one line."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery

from owl_celery import install

ROUTED = "OWL_TEST_ROUTED"


def make_app(url: str, *, is_routed: bool) -> Celery:
    """Make the application; both kinds differ in nothing but ``install(app)``."""
    app = Celery("canvas", broker=url, backend=url, set_as_current=False)
    app.conf.update(
        broker_connection_retry_on_startup=True,
        result_extended=True,
        task_routes={"user_routed": {"queue": "by.user"}},
        task_queue_max_priority=None,
    )
    if is_routed:
        install(app, namespace="canvas")
    add_tasks(app)
    return app


def add_tasks(app: Celery) -> None:
    """Register the tasks."""

    @app.task(name="add", shared=False)
    def add(x: int, y: int) -> int:
        return x + y

    @app.task(name="total", shared=False)
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    @app.task(name="fail", shared=False)
    def fail() -> None:
        raise ValueError("as asked")

    @app.task(name="count_errors", shared=False)
    def count_errors(request: Any, error: Any, traceback: Any) -> None:
        app.backend.client.incr("errors")

    @app.task(name="note", shared=False)
    def note(value: Any, key: str) -> Any:
        app.backend.client.rpush(key, str(value))
        return value

    @app.task(name="where", bind=True, shared=False)
    def where(self: Any) -> str:
        return str(self.request.delivery_info["routing_key"])

    @app.task(name="user_routed", bind=True, shared=False)
    def user_routed(self: Any) -> str:
        return str(self.request.delivery_info["routing_key"])

    @app.task(name="try_again", bind=True, max_retries=3, shared=False)
    def try_again(self: Any, times: int) -> int:
        if self.request.retries < times:
            raise self.retry(countdown=0)
        return int(self.request.retries)

    @app.task(
        name="auto",
        bind=True,
        autoretry_for=(ConnectionError,),
        retry_backoff=False,
        default_retry_delay=0,
        shared=False,
    )
    def auto(self: Any) -> int:
        if self.request.retries < 2:
            raise ConnectionError
        return int(self.request.retries)

    @app.task(name="retry_elsewhere", bind=True, shared=False)
    def retry_elsewhere(self: Any) -> str:
        if self.request.retries == 0:
            raise self.retry(countdown=0, queue="by.user")
        return str(self.request.delivery_info["routing_key"])

    @app.task(name="retry_pinned", bind=True, shared=False)
    def retry_pinned(self: Any) -> str:
        if self.request.retries == 0:
            raise self.retry(countdown=0)
        return str(self.request.delivery_info["routing_key"])

    @app.task(name="become", bind=True, shared=False)
    def become(self: Any, x: int, y: int) -> Any:
        return self.replace(app.tasks["add"].s(x, y))

    @app.task(name="echo_headers", bind=True, shared=False)
    def echo_headers(self: Any) -> Any:
        return {"mine": getattr(self.request, "mine", None), "stamps": self.request.stamps}

    @app.task(name="give_back", bind=True, shared=False)
    def give_back(self: Any) -> Any:
        request = self.request
        return [request.root_id == request.id, request.group, request.priority, request.shadow]


if ROUTED in os.environ:
    app = make_app(os.environ["REDIS_URL"], is_routed=os.environ[ROUTED] == "1")
