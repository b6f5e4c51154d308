"""``celery -A proj owl worker``: one Celery worker for each GPU of this host."""

from __future__ import annotations

import secrets
import socket
import sys
from contextlib import closing, suppress
from itertools import takewhile

import click

from owl_celery.errors import OwlError, WorkerError
from owl_celery.gpus import FakeGpus, Gpu, NvmlReader, check_virtual
from owl_celery.installation import Parts, installation_of
from owl_celery.lane import lane_of_cpu, lane_of_gpu
from owl_celery.settings import Settings
from owl_celery.supervisor import Supervisor, WorkerPlan
from owl_celery.worker_process import CeleryProcess, run_beside


@click.command(context_settings={"ignore_unknown_options": False})
@click.option(
    "--simulate",
    metavar="FLEET",
    help='Run virtual GPUs instead, such as "k80=4,p100=4,v100=4".',
)
@click.option(
    "--cpu",
    metavar="N",
    type=click.IntRange(1, 1024),
    help="Serve a queue by N CPU processes too.",
)
@click.option("--gpus", metavar="LIST", help="Use only these GPUs: indices or UUIDs, by commas.")
@click.option("-l", "--loglevel", default="INFO", show_default=True, help="As in celery worker.")
@click.argument("celery_arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def worker(
    ctx: click.Context,
    simulate: str | None,
    cpu: int | None,
    gpus: str | None,
    loglevel: str,
    celery_arguments: tuple[str, ...],
) -> None:
    """Start one Celery worker for each GPU, and restart those that crash.

    Each worker serves the queue of its GPU first and the default queue after it. What follows
    -- goes to each worker, such as -- --max-tasks-per-child 100.
    """
    try:
        arguments = worker_arguments(ctx, loglevel, celery_arguments)
        installation = installation_of(ctx.obj.app)
        plans = plan_workers(simulate, cpu, gpus)
    except OwlError as error:
        raise click.ClickException(str(error)) from error
    if installation.parts is not None:
        check_in_background(installation.parts)
    supervisor = Supervisor(
        plans, lambda plan: CeleryProcess([*arguments, "-n", plan.node], plan.environment)
    )
    sys.exit(supervisor.run())


def check_in_background(parts: Parts) -> None:
    """Check the store where a worker may host the controller; workers start meanwhile."""
    settings = parts.settings
    if settings.enable_continuous_learning and settings.embed_controller:
        # What keeps this process from starting will be said of the workers.
        with suppress(OSError, EOFError):
            run_beside(check_store, settings, parts.state.keys.namespace)


def check_store(settings: Settings, namespace: str) -> None:
    """Say in one line when what is learned cannot be kept."""
    # Here: it imports SQLAlchemy, which the supervisor must not wait for.
    from owl_celery.store import open_store

    try:
        with closing(open_store(settings, namespace)) as store:
            store.load()
    except OwlError as error:
        click.echo(
            f"Warning: {error} Until then tasks go to the shortest queue, and nothing is learned.",
            err=True,
        )


def worker_arguments(
    ctx: click.Context, loglevel: str, celery_arguments: tuple[str, ...]
) -> list[str]:
    """Repeat the global options of this command line in that of a worker.

    ``--broker`` and the like are in the environment already, and the folder is changed.

    Raises
    ------
    WorkerError
        When no application was given.

    """
    options = ctx.find_root().params
    app = options.get("app")
    if not isinstance(app, str):
        raise WorkerError(
            "No application: start it as celery -A proj owl worker, where proj is your module."
        )
    flags = [f"--{name.replace('_', '-')}" for name in ("no_color", "quiet") if options.get(name)]
    return ["-A", app, *flags, "worker", "-l", loglevel, *celery_arguments]


def plan_workers(
    simulate: str | None, cpu: int | None, gpus: str | None, settings: Settings | None = None
) -> list[WorkerPlan]:
    """Decide which workers this host runs.

    Raises
    ------
    OwlError
        When there is nothing to run, or an option makes no sense.

    """
    settings = settings or Settings.load()
    host = socket.gethostname()
    # One owner for all: a worker that is started again takes its own claims back at once.
    owner = secrets.token_hex(8)
    if simulate is not None and gpus is not None:
        raise WorkerError("Give --gpus or --simulate, not both: virtual GPUs have no index.")
    if simulate is not None:
        found = _virtual_gpus(simulate, host)
    else:
        found = _present_gpus(
            gpus or settings.cuda_visible_devices, is_needed=cpu is None or gpus is not None
        )
    plans = [
        WorkerPlan(f"gpu{gpu.index}@{host}", lane_of_gpu(gpu, owner, simulate is not None))
        for gpu in found
    ]
    if cpu is not None:
        plans.append(WorkerPlan(f"cpu0@{host}", lane_of_cpu(cpu, owner)))
    return plans


def _virtual_gpus(fleet: str, host: str) -> list[Gpu]:
    # Here: it needs numpy, which a machine with GPUs need not load for this.
    from owl_celery.simulate.table import parse_fleet

    counts = parse_fleet(fleet)
    for model in counts:
        check_virtual(model)
    models = [model for model, count in counts.items() for _ in range(count)]
    return FakeGpus.of(models, host).list_gpus()


def _present_gpus(chosen: str | None, is_needed: bool) -> list[Gpu]:
    names = None if chosen is None else _listed(chosen)
    if names == []:
        if not is_needed:
            return []
        raise WorkerError(
            "CUDA_VISIBLE_DEVICES or --gpus hides all GPUs: unset it, name GPUs by --gpus, or try "
            '--simulate "k80=1,v100=1" for virtual GPUs or --cpu 2 for CPU processes.'
        )
    reader = NvmlReader()
    present = reader.list_gpus()
    if not present:
        if not is_needed:
            return []
        reason = f" ({reader.problem})" if reader.problem else ""
        raise WorkerError(
            f"No NVIDIA GPU was found{reason}: install the NVIDIA driver, or try "
            '--simulate "k80=1,v100=1" for virtual GPUs or --cpu 2 for CPU processes.'
        )
    if names is None:
        return present
    by_name = {name: gpu for gpu in present for name in (str(gpu.index), gpu.uuid)}
    unknown = [name for name in names if name not in by_name]
    if unknown:
        raise WorkerError(
            f"GPU {unknown[0]!r} of --gpus or CUDA_VISIBLE_DEVICES is not on this host; it has "
            f"{', '.join(f'{gpu.index} ({gpu.uuid})' for gpu in present)}."
        )
    return sorted({by_name[name] for name in names}, key=lambda gpu: gpu.index)


def _listed(names: str) -> list[str]:
    """Split a list of GPUs; as CUDA reads it, what comes after -1 does not count."""
    stripped = (name.strip() for name in names.split(","))
    return [name for name in takewhile(lambda name: name != "-1", stripped) if name]
