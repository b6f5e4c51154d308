"""What the workers of the fault suite import: their application and its tasks."""

from __future__ import annotations

import os
import signal
import time
from typing import Final

from celery import Task

from benchmarks.faults.application import (
    HOWS,
    NAMED_TASKS,
    STUMBLE,
    WORK,
    Addresses,
    make_app,
)
from benchmarks.faults.hostile import hostile_names
from benchmarks.faults.ledger import note
from owl_celery.gpus import current_gpu

HANG_SECONDS: Final = 60.0
LOAD_SECONDS: Final = 0.3
"""What a task does before it finds that there is not enough memory."""

ADDRESSES: Final = Addresses.of_environment()

app = make_app(ADDRESSES, os.environ.get("FAULTS_ARM", "celery"), embed_controller=False)


def _note(task: Task, what: str, number: int) -> None:
    note(ADDRESSES.ledger, what, number, str(task.request.hostname), current_gpu().model)


def take_time(self: Task, number: int, seconds: float) -> None:
    """Take some time."""
    _note(self, "started", number)
    time.sleep(seconds)
    _note(self, "finished", number)


app.task(name=WORK, bind=True)(take_time)


def stumble(self: Task, number: int, how: str, seconds: float) -> None:
    """Go wrong in one of several ways, then take some time."""
    _note(self, "started", number)
    is_first = not self.request.retries and not self.request.delivery_info.get("redelivered")
    if how == "poison" or (how == "killed" and is_first):
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "memory" and current_gpu().model == "k80":
        time.sleep(LOAD_SECONDS)
        raise RuntimeError("CUDA out of memory. Tried to allocate 14.00 GiB")
    if how == "hung" and is_first:
        time.sleep(HANG_SECONDS)
    time.sleep(seconds)
    _note(self, "finished", number)


for _how in HOWS:
    # Types of their own: what is learned of one is no word about another.
    app.task(
        name=f"{STUMBLE}.{_how}",
        bind=True,
        autoretry_for=(RuntimeError,),
        default_retry_delay=0,
        max_retries=5,
    )(stumble)

for _name in hostile_names(int(os.environ.get(NAMED_TASKS, "0"))):
    app.task(name=_name, bind=True)(take_time)
