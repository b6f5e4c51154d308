"""The application of the benchmark: a task that sleeps for a few milliseconds."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from celery import Celery, signals

from owl_celery import install

URL_VARIABLE: Final = "LOAD_VIEW_BROKER_URL"


def type_of(args: Sequence[Any], _: Mapping[str, Any]) -> str:
    """A task's type: as many milliseconds as it takes."""
    return f"sleep.{args[0]}"


URL: Final = os.environ.get(URL_VARIABLE, "redis://127.0.0.1:1/0")

app = Celery("load_view", broker=URL, backend=URL)
app.conf.update(
    task_ignore_result=True,
    worker_hijack_root_logger=False,
    # What a worker held of the default queue when it was killed comes back after this.
    broker_transport_options={"visibility_timeout": 30},
)
install(app, embed_controller=False)


started_at = 0.0


@signals.task_prerun.connect(weak=False)
def note_start(**_: Any) -> None:
    """Note when the service time begins."""
    global started_at
    started_at = time.monotonic()


# At once, not after three minutes, is a task tried again whose pool process was killed.
@app.task(owl_type=type_of, default_retry_delay=0)
def work(milliseconds: int) -> None:
    """Take so long, as workers measure it: what Celery does around it is included."""
    time.sleep(max(started_at + milliseconds / 1e3 - time.monotonic(), 0.0))
