"""An example application: a Celery app as you know it, and the one line that routes it."""

from __future__ import annotations

import os

from celery import Celery

from owl_celery import install

REDIS_URL = os.environ.get("REDIS_URL", "redis://localhost:6379/0")

app = Celery("workers", broker=REDIS_URL, backend=REDIS_URL, include=["workers.tasks"])
app.conf.update(
    broker_connection_retry_on_startup=True,
    result_expires=3600,
    task_track_started=False,
    # Flower shows the chosen queue of each task by it.
    task_send_sent_event=True,
)

install(app)
