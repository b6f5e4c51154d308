"""``celery -A proj owl mode``: the kill switch."""

from __future__ import annotations

import click

from owl_celery.cli.asking import state_of
from owl_celery.controls import read_mode, set_mode
from owl_celery.wire import MODES


@click.command()
@click.argument("mode", required=False, type=click.Choice(MODES))
@click.pass_context
def mode(ctx: click.Context, mode: str | None) -> None:
    """Show or set the kill switch of the application, for all its processes within five seconds.

    on: tasks go where the policy sends them. shadow: it decides and learns, and Celery routes.
    off: plain Celery.
    """
    with state_of(ctx) as state:
        if mode is None:
            current, problem = read_mode(state)
            click.echo(current)
            if problem:
                click.echo(f"Warning: {problem}", err=True)
        else:
            click.echo(f"{mode} (was {set_mode(state, mode)})")
