"""The application of the fault suite: a task that notes in Redis when it starts and ends."""

from __future__ import annotations

import os
import time

from celery import Celery
from redis import Redis

from owl_celery import install

URL = os.environ.get("FAULTS_BROKER_URL", "redis://127.0.0.1:1/0")
ARM = os.environ.get("FAULTS_ARM", "celery")

app = Celery("faults", broker=URL, backend=URL)
if ARM == "celery_late":
    app.conf.update(task_acks_late=True, task_reject_on_worker_lost=True)
if ARM == "owl":
    install(app, embed_controller=False)


@app.task
def work(number: int, seconds: float) -> None:
    """Take some time."""
    with Redis.from_url(URL) as client:
        client.rpush("started", number)
        time.sleep(seconds)
        client.rpush("finished", number)
        client.rpush("finished_at", time.time())
