"""The application of ``test_gpu_worker``: tasks that tell where and when they run."""

# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import os
import signal
import time
from typing import Any

from celery import Celery
from redis import Redis

from owl_celery import install
from owl_celery.gpus import current_gpu

URL = os.environ.get("TEST_REDIS_URL", "redis://127.0.0.1:1/0")

app = Celery("gpus", broker=os.environ.get("TEST_BROKER_URL", URL), backend=URL)
app.conf.owl_embed_controller = False
install(app)


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
    with Redis.from_url(URL, decode_responses=True) as client:
        client.rpush("ran", f"die {os.getpid()}")
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(max_retries=0)
def die_once() -> None:
    """Do the same, never to be tried again."""
    die()


@app.task
def kill_worker() -> None:
    """Kill the worker, and not only the process that runs the task."""
    with Redis.from_url(URL, decode_responses=True) as client:
        client.rpush("ran", f"kill {os.getpid()}")
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60.0)  # Linux ends it with its parent.
