"""The application of ``test_gpu_worker``: tasks that tell where and when they run."""

# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import os
import signal
import time
from typing import Any

from celery import Celery, current_task, signals
from celery.worker.control import control_command
from redis import Redis

from owl_celery import install
from owl_celery.gpus import FAKE_MEMORY_BYTES, GIBIBYTE, current_gpu
from owl_celery.installation import parts_of
from owl_celery.keys import Keys
from owl_celery.testing import wait_until

URL = os.environ.get("TEST_REDIS_URL", "redis://127.0.0.1:1/0")

app = Celery("gpus", broker=os.environ.get("TEST_BROKER_URL", URL), backend=URL)
app.conf.owl_embed_controller = False
install(app)


@signals.task_failure.connect
def note_failure(task_id: str, exception: BaseException, **_: Any) -> None:
    """Note what Celery tells of a failed task, and fail too, as receivers of users may."""
    with Redis.from_url(URL, decode_responses=True) as client:
        client.rpush("failures", f"{task_id} {type(exception).__name__}")
    raise ValueError("a receiver that fails")


@app.task
def where() -> dict[str, Any]:
    """Tell what a task can see of its GPU."""
    return {
        "model": current_gpu().model,
        "queue": current_gpu().queue,
        "cuda_visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "pid": os.getpid(),
    }


@app.task(default_retry_delay=0)
def hold(name: str, until: str = "") -> str:
    """Note in Redis that it runs, and go on until the key ``until`` is there."""
    with Redis.from_url(URL, decode_responses=True) as client:
        client.rpush("ran", f"{name} {os.getpid()}")
        while until and not client.exists(until):
            time.sleep(0.01)
        client.rpush("ended", name)
    return name


@app.task(default_retry_delay=0, max_retries=1)
def die() -> None:
    """Kill the process that runs it, as the kernel does for want of memory."""
    header = getattr(current_task.request, "owl", None) or {}
    with Redis.from_url(URL, decode_responses=True) as client:
        client.rpush("ran", f"die {os.getpid()} {header.get('a')}")
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(max_retries=0)
def die_once() -> None:
    """Do the same, never to be tried again."""
    die()


@app.task(default_retry_delay=0, max_retries=None)
def die_for_ever() -> None:
    """Do the same, to be tried again without end."""
    die()


@app.task(retry_on_worker_lost=False)
def die_and_return() -> None:
    """Do the same, and have the message go back to its queue."""
    die()


@app.task(bind=True)
def kill_worker(self: Any) -> None:
    """Kill the worker, and not only the process that runs the task."""
    with Redis.from_url(URL, decode_responses=True) as client:
        client.rpush("ran", f"kill {os.getpid()}")
        begun = int(client.get(f"runs:{self.request.id}") or 0) + 1
        client.incr(f"runs:{self.request.id}")
        key = Keys("gpus").lost(self.request.id)
        wait_until(lambda: int(client.get(key) or 0) == begun, "its worker to tell of the try")
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60.0)  # Linux ends it with its parent.


@app.task
def exhaust() -> None:
    """Fail as NumPy does."""
    raise MemoryError("Unable to allocate 1.00 TiB")


@app.task(bind=True, autoretry_for=(RuntimeError,), default_retry_delay=0)
def fill(self: Any, gibibytes: int, is_automatic: bool = True) -> list[str]:
    """Fail as PyTorch does where the virtual GPU has less memory; tell where it ran."""
    with Redis.from_url(URL, decode_responses=True) as client:
        client.rpush("filled", current_gpu().queue)
    sync = parts_of(app).sync
    wait_until(lambda: sync.free_memory_bytes(current_gpu().queue), "a view")
    if FAKE_MEMORY_BYTES[current_gpu().model] < gibibytes * GIBIBYTE:
        try:
            raise RuntimeError(f"CUDA out of memory. Tried to allocate {gibibytes}.00 GiB")
        except RuntimeError as error:
            if is_automatic:
                raise
            raise self.retry(exc=error, max_retries=1) from error
    return [current_gpu().queue, *self.request.owl["tried"]]


@control_command(args=[("until", str)], signature="[KEY]")
def stand_still(_: Any, until: str) -> None:
    """Hold up the event loop of the worker until a key is there."""
    with Redis.from_url(URL, decode_responses=True) as client:
        wait_until(lambda: client.exists(until), "the key", 60.0)
