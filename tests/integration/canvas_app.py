"""An application that uses all of Celery's canvas, plain or with the one line."""

from __future__ import annotations

import os
import time
from typing import Any

from celery import Celery, chain, group
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded

from owl_celery import install

ROUTED = "OWL_TEST_ROUTED"


def make_app(url: str, redis_url: str, *, is_routed: bool) -> Celery:
    """Make the application; both kinds differ in nothing but ``install(app)``."""
    app = Celery("canvas", broker=url, backend=redis_url, set_as_current=False)
    app.conf.update(
        broker_connection_retry_on_startup=True,
        result_extended=True,
        task_routes={"user_routed": {"queue": "by.user"}},
        # On Redis this setting changes nothing.
        task_queue_max_priority=10,
    )
    if is_routed:
        install(app, namespace="canvas", redis_url=redis_url)
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

    @app.task(name="become_chain", bind=True, shared=False)
    def become_chain(self: Any, x: int) -> Any:
        add = app.tasks["add"]
        return self.replace(chain(add.s(x, 1), add.s(1)))

    @app.task(name="become_group", bind=True, shared=False)
    def become_group(self: Any, x: int) -> Any:
        return self.replace(group(app.tasks["add"].s(x, number) for number in range(3)))

    @app.task(name="add_to_chord", bind=True, shared=False)
    def add_to_chord(self: Any, x: int) -> int:
        self.add_to_chord(app.tasks["add"].s(x, x))
        return x

    @app.task(name="wait", shared=False)
    def wait(key: str, seconds: float = 30.0) -> str:
        app.backend.client.rpush(key, "begun")
        time.sleep(seconds)
        return "waited"

    @app.task(name="hurried", soft_time_limit=0.3, time_limit=20.0, shared=False)
    def hurried() -> str:
        try:
            time.sleep(20.0)
        except SoftTimeLimitExceeded:
            return "in a hurry"
        return "done"

    @app.task(name="cut_off", time_limit=0.5, shared=False)
    def cut_off() -> None:
        time.sleep(20.0)

    @app.task(name="reject", acks_late=True, shared=False)
    def reject(key: str) -> None:
        app.backend.client.rpush(key, "rejected")
        raise Reject("not mine", requeue=False)

    @app.task(name="reject_once", bind=True, acks_late=True, shared=False)
    def reject_once(self: Any, key: str) -> int:
        tries = int(app.backend.client.rpush(key, "tried"))
        if tries < 2:
            raise Reject("again", requeue=True)
        return tries

    @app.task(name="ignore", bind=True, shared=False)
    def ignore(self: Any) -> None:
        self.update_state(state="MINE", meta={"share": 0.5})
        raise Ignore

    @app.task(
        name="auto_no",
        autoretry_for=(Exception,),
        dont_autoretry_for=(ValueError,),
        default_retry_delay=0,
        shared=False,
    )
    def auto_no() -> None:
        raise ValueError("never again")

    @app.task(name="retry_with_error", bind=True, max_retries=1, shared=False)
    def retry_with_error(self: Any) -> None:
        raise self.retry(countdown=0, exc=KeyError("mine"))

    @app.task(name="retry_with_others", bind=True, shared=False)
    def retry_with_others(self: Any, x: int, y: int = 0) -> int:
        if self.request.retries == 0:
            raise self.retry(args=(x + 1,), kwargs={"y": 5}, countdown=0)
        return x + y

    @app.task(name="stamps", bind=True, shared=False)
    def stamps(self: Any, *_: Any) -> Any:
        return self.request.stamps

    @app.task(name="retry_stamps", bind=True, shared=False)
    def retry_stamps(self: Any) -> Any:
        if self.request.retries == 0:
            raise self.retry(countdown=0)
        return self.request.stamps

    @app.task(name="echo_headers", bind=True, shared=False)
    def echo_headers(self: Any) -> Any:
        return {"mine": getattr(self.request, "mine", None), "stamps": self.request.stamps}

    @app.task(name="give_back", bind=True, shared=False)
    def give_back(self: Any) -> Any:
        request, priority = self.request, self.request.delivery_info["priority"]
        return [request.root_id == request.id, request.group, priority, request.shadow]


if ROUTED in os.environ:
    app = make_app(
        os.environ["TEST_BROKER_URL"],
        os.environ["TEST_REDIS_URL"],
        is_routed=os.environ[ROUTED] == "1",
    )
