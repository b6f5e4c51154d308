"""``celery -A proj owl resume``: the end of ``owl drain``."""

from __future__ import annotations

import click

from owl_celery.cli.asking import state_of
from owl_celery.controls import resume_queue


@click.command()
@click.argument("queue")
@click.pass_context
def resume(ctx: click.Context, queue: str) -> None:
    """Send tasks to a drained QUEUE again."""
    with state_of(ctx) as state:
        was_drained = resume_queue(state, queue)
        click.echo(
            f"{queue} takes tasks again." if was_drained else f"{queue} was not drained: no change."
        )
