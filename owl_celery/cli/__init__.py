"""``celery -A proj owl ...``, and ``owl ...`` for what needs no application."""

from __future__ import annotations

from importlib import import_module
from typing import Final

import click

COMMANDS: Final = {
    "demo": "owl_celery.cli.demo",
    "drain": "owl_celery.cli.drain",
    "export": "owl_celery.cli.export",
    "health": "owl_celery.cli.health",
    "import": "owl_celery.cli.import_",
    "mode": "owl_celery.cli.mode",
    "resume": "owl_celery.cli.resume",
    "serve": "owl_celery.cli.serve",
    "simulate": "owl_celery.cli.simulate",
    "status": "owl_celery.cli.status",
    "worker": "owl_celery.cli.worker",
}


class LazyGroup(click.Group):
    """Imports a command when it is asked for: every ``celery`` call loads its plugins."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import one command; its module has an attribute of the module's name."""
        if name not in COMMANDS:
            return None
        module = import_module(COMMANDS[name])
        command: click.Command = getattr(module, module.__name__.rpartition(".")[2])
        return command


@click.group(cls=LazyGroup)
def owl() -> None:
    """Learned task routing for Celery on GPUs."""
