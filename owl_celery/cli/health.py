"""``celery -A proj owl health``: whether the controller and the workers of this host are alive."""

from __future__ import annotations

import socket
from typing import Any

import click
from redis.exceptions import RedisError

from owl_celery.cli.terminal import shown
from owl_celery.errors import OwlError
from owl_celery.redis_trouble import ADVICE, trouble_of


@click.command()
@click.option("--controller", "is_controller", is_flag=True, help="Only whether one is active.")
@click.option("--workers", "is_workers", is_flag=True, help="Only the workers of this host.")
@click.pass_context
def health(ctx: click.Context, is_controller: bool, is_workers: bool) -> None:
    """Say whether a controller is active and workers of this host are alive; else exit with 1.

    Asks Redis alone: made for the health checks of containers.
    """
    if ctx.obj is None:
        raise click.UsageError("Name your application: celery -A proj owl health.")
    is_all = is_controller == is_workers
    try:
        controller, workers = look(ctx.obj.app)
    except OwlError as error:
        raise click.ClickException(str(error)) from error
    failed = []
    if is_all or is_controller:
        click.echo(shown(f"controller: {controller or 'none is active'}"))
        failed += [] if controller else ["controller"]
    if is_all or is_workers:
        alive = shown(", ".join(workers))
        click.echo(f"workers of {socket.gethostname()}: {alive or 'none is alive'}")
        failed += [] if workers else ["workers"]
    ctx.exit(1 if failed else 0)


def look(app: Any) -> tuple[str, list[str]]:
    """Active controller with its troubles, and the live workers of this host.

    Raises
    ------
    OwlError
        When Redis does not answer.

    """
    from owl_celery.controller.health import Health
    from owl_celery.installation import parts_of

    state = parts_of(app).state
    try:
        text = str(state.client.get(state.keys.health) or "")
        names = sorted(str(name) for name in state.client.smembers(state.keys.nodes))
        here = [name for name in names if name.partition("@")[2] == socket.gethostname()]
        beats = state.client.mget([state.keys.heartbeat(name) for name in here]) if here else []
    except (RedisError, OSError) as error:
        raise OwlError(trouble_of(error, ADVICE)) from error
    active = Health.decode(text) if text else None
    troubles = [*active.troubles.values()] if active else []
    controller = " ".join([active.controller, *troubles]) if active else ""
    return controller, [name for name, beat in zip(here, beats, strict=True) if beat]
