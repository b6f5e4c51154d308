"""How a Celery worker serves one GPU: own queue first, one task at a time, late acks."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from typing import Any, Final

import click
from celery import Celery, Task, signals
from celery.app.annotations import resolve_all
from celery.app.utils import Settings

from owl_celery.errors import OwlError, SettingsError, WorkerError
from owl_celery.gpus import (
    CPU_MODEL,
    Gpu,
    GpuReader,
    NvmlReader,
    check_virtual,
    current_gpu,
    fake_gpu,
)
from owl_celery.spawning import import_in_children

log = logging.getLogger(__name__)

OWN_QUEUE_PRIORITY: Final = 10
SIMULATED: Final = "sim:"
# A killed child must lose no task: Celery sends the task again, through the router and at most
# `max_retries` times; should sending fail, the broker gets the message back.
LATE_ACKNOWLEDGEMENT: Final = {
    "acks_late": "task_acks_late",
    "reject_on_worker_lost": "task_reject_on_worker_lost",
    "retry_on_worker_lost": "task_retry_on_worker_lost",
}


def gpu_queue(index: int, host: str | None = None) -> str:
    """Name the queue of a GPU of this host, or of another."""
    return f"gpu.{host or socket.gethostname()}.{index}"


def lane_of_gpu(gpu: Gpu, owner: str = "", is_simulated: bool = False) -> dict[str, str]:
    """Environment in which a Celery worker serves one GPU.

    Parameters
    ----------
    owner
        As in ``Claims``; random when omitted.

    """
    return {
        "OWL_WORKER_QUEUE": gpu_queue(gpu.index),
        "OWL_WORKER_CONCURRENCY": "1",
        "OWL_WORKER_OWNER": owner or secrets.token_hex(8),
        "OWL_GPU_MODEL": gpu.model,
        "OWL_GPU_UUID": gpu.uuid,
        "OWL_GPU_SIMULATED": str(is_simulated).lower(),
        # A worker of a virtual GPU must not touch the real one of another worker.
        "CUDA_VISIBLE_DEVICES": "" if is_simulated else gpu.uuid,
    }


def lane_of_cpu(processes: int, owner: str = "") -> dict[str, str]:
    """Environment in which a Celery worker serves the CPU queue of this host."""
    return {
        "OWL_WORKER_QUEUE": f"cpu.{socket.gethostname()}.0",
        "OWL_WORKER_CONCURRENCY": str(processes),
        "OWL_WORKER_OWNER": owner or secrets.token_hex(8),
        "OWL_GPU_MODEL": CPU_MODEL,
        "OWL_GPU_UUID": "",
        "OWL_GPU_SIMULATED": "false",
        "CUDA_VISIBLE_DEVICES": "",
    }


def add_worker_options(app: Celery) -> None:
    """Give ``celery -A proj worker`` the option ``--gpu``; once an application."""
    app.user_options["worker"].add(
        click.Option(
            ["--gpu"],
            metavar="GPU",
            help="Serve one GPU: its index, its UUID, or sim:MODEL[:INDEX] for a virtual one.",
            # First of all options, because the defaults of others are read from the configuration
            # that it changes; also called when the option is not given.
            is_eager=True,
            expose_value=False,
            callback=_on_gpu_option,
        )
    )


def _on_gpu_option(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
    if ctx.resilient_parsing:
        return
    try:
        if value is not None:
            # Children inherit it, and import the task modules with it already set.
            os.environ.update(lane_of_option(value, NvmlReader()))
            current_gpu().refresh()
        name = ctx.find_root().params.get("app")
        if isinstance(name, str):
            import_in_children(ctx.obj.app, name)
        configure_lane(ctx.obj.app)
    except OwlError as error:
        is_plain = value is None and not os.environ.get("OWL_WORKER_QUEUE")
        if is_plain and isinstance(error, SettingsError):
            return  # `install` logs it, and leaves the worker to Celery.
        raise click.ClickException(str(error)) from error


def lane_of_option(value: str, reader: GpuReader) -> dict[str, str]:
    """Read ``--gpu``.

    Raises
    ------
    WorkerError
        When this host has no such GPU.

    """
    if value.startswith(SIMULATED):
        model, _, index = value.removeprefix(SIMULATED).partition(":")
        if not model or not (index or "0").isdecimal():
            raise WorkerError(f"--gpu {value!r} is not sim:MODEL or sim:MODEL:INDEX.")
        check_virtual(model)
        return lane_of_gpu(fake_gpu(int(index or 0), model, socket.gethostname()), "", True)
    gpus = reader.list_gpus()
    for gpu in gpus:
        if value in (str(gpu.index), gpu.uuid):
            return lane_of_gpu(gpu)
    known = ", ".join(f"{gpu.index} ({gpu.uuid})" for gpu in gpus) or "none that NVML can see"
    raise WorkerError(f"--gpu {value!r} is not a GPU of this host; it has {known}.")


def configure_lane(app: Celery) -> None:
    """Set the application up to serve the GPU of this worker; nothing in a plain worker.

    Called once the application is configured, and again when the worker's options are read, which
    is after the user's last change of the configuration.
    """
    if not current_gpu().queue:
        return
    conf = app.conf.finalize()
    conf.worker_pool = "prefork"
    if current_gpu().uuid and not current_gpu().is_simulated:
        # CUDA does not survive a fork, and a fresh interpreter imports the task modules with
        # CUDA_VISIBLE_DEVICES already set. Others fork: half the time to start, half the memory.
        conf.worker_pool_start_method = "spawn"
    conf.worker_concurrency = current_gpu().concurrency
    conf.worker_prefetch_multiplier = 1
    # The last layer has the defaults, in a copy of this application's own: whatever the user
    # configures, now or later, is above it.
    conf.maps[-1].update(dict.fromkeys(LATE_ACKNOWLEDGEMENT.values(), True))
    # Redis: BRPOP names the queues in the order in which they are consumed, own queue first.
    conf.broker_transport_options = {
        **(conf.broker_transport_options or {}),
        "queue_order_strategy": "priority",
    }
    signals.celeryd_after_setup.connect(prepare_worker, weak=False, dispatch_uid="owl-lane")


def prepare_worker(instance: Any, **_: Any) -> None:
    """Choose the queues and check the tasks, once the worker knows both."""
    if current_gpu().queue:
        consume_own_queue_first(instance.app)
        acknowledge_late(instance.app)
        if consequence := consequence_of(instance.app.conf):
            log.warning("owl: %s", consequence)


def consume_own_queue_first(app: Celery) -> None:
    """Consume the own queue, then those of ``-Q``, or the default queue without ``-Q``."""
    queues = app.amqp.queues
    default = app.conf.task_default_queue
    if queues._consume_from is not None:
        others = list(queues.consume_from)
    elif default in queues and default not in queues.consume_from:
        others = []  # excluded by -X
    else:
        others = [default]
    name = current_gpu().queue
    # As Celery makes the queue for a producer that names it, so that both declare the same.
    own = dict.get(queues, name) or queues.new_missing(name)
    own.consumer_arguments = {**(own.consumer_arguments or {}), "x-priority": OWN_QUEUE_PRIORITY}
    queues.add(own)
    queues.select([name, *(other for other in others if other != name)])


def acknowledge_late(app: Celery) -> None:
    """Apply the late acknowledgement to tasks that took their settings before it was configured.

    What the author of a task says, on the task, its base class or by ``task_annotations``, stands,
    and so does the user's configuration. Where one of them wants early acknowledgement, which is
    to run at most once, the task of a killed process is not sent again for our sake either.
    """
    for task in app.tasks.values():
        for attribute, setting in LATE_ACKNOWLEDGEMENT.items():
            if not _is_said(app, task, attribute):
                setattr(type(task), attribute, app.conf[setting])
        retry = "retry_on_worker_lost"
        if not (
            task.acks_late
            or _is_said(app, task, retry)
            or app.conf.value_set_for(LATE_ACKNOWLEDGEMENT[retry])
        ):
            setattr(type(task), retry, False)


def consequence_of(conf: Settings) -> str:
    """What follows for a killed worker's tasks when the user configured it; empty for our way."""
    if not conf.task_acks_late:
        return (
            "task_acks_late is false in the configuration: the task that runs in a worker or pool "
            "process that is killed is lost."
        )
    if conf.task_retry_on_worker_lost:
        return ""
    if conf.task_reject_on_worker_lost:
        return (
            "task_retry_on_worker_lost is false in the configuration: the task of a killed pool "
            "process goes back to its queue, without a limit, and is not routed anew."
        )
    return (
        "task_retry_on_worker_lost and task_reject_on_worker_lost are false in the configuration: "
        "the task of a killed pool process is lost; it fails with WorkerLostError."
    )


def _is_said(app: Celery, task: Task, attribute: str) -> bool:
    if any(attribute in (found or {}) for found in resolve_all(app.annotations, task)):
        return True
    for kind in type(task).__mro__:
        names = list(vars(kind))
        if attribute in names:
            # Binding marks the class, then writes the configured value where nothing was said.
            return "__bound__" not in names or names.index(attribute) < names.index("__bound__")
    return False
