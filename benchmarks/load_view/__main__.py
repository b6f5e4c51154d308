"""How exact the published load is: ``python -m benchmarks.load_view``.

Celery workers with pool processes of their own, controllers and producers, as in production, work
on many short tasks of known length while one of them is killed every few seconds. Many times a
second the view is compared with the messages that are in the broker at that instant.
"""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path

import click

from benchmarks.load_view import processes
from benchmarks.load_view.report import page, table
from benchmarks.load_view.run import Plan, run
from owl_celery.embedded import EmbeddedRedis

DEFAULT = Plan()


@click.command()
@click.option("--tasks", default=DEFAULT.tasks, show_default=True)
@click.option("--rounds", default=DEFAULT.rounds, show_default=True, help="Times of rest.")
@click.option("--workers", default=DEFAULT.workers, show_default=True)
@click.option("--producers", default=DEFAULT.producers, show_default=True)
@click.option("--controllers", default=DEFAULT.controllers, show_default=True)
@click.option("--depth", default=DEFAULT.depth, show_default=True, help="Tasks in each queue.")
@click.option(
    "--kill-tasks", default=DEFAULT.kill_tasks, show_default=True, help="Between two strikes."
)
@click.option(
    "--longest-away-seconds",
    default=DEFAULT.longest_away_seconds,
    show_default=True,
    help="For which a killed worker stays away.",
)
@click.option("--share", default=DEFAULT.share, show_default=True, help="Expired and revoked.")
@click.option("--sample-seconds", default=DEFAULT.sample_seconds, show_default=True)
@click.option("--seed", default=DEFAULT.seed, show_default=True)
@click.option(
    "--limit-seconds", default=DEFAULT.limit_seconds, show_default=True, help="Give up after."
)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the result here.")
@click.option("--page", "page_path", type=click.Path(path_type=Path), help="Write the page here.")
def main(json_path: Path | None, page_path: Path | None, **options: float) -> None:
    """Run, and print the table."""
    plan = Plan(**{f.name: options[f.name] for f in fields(Plan)})  # type: ignore[arg-type]
    with EmbeddedRedis() as server:
        # Before the application is imported, here and in the process that all others fork from.
        os.environ["LOAD_VIEW_BROKER_URL"] = server.url
        os.environ["OWL_API_TOKEN"] = os.environ["DATABASE_URL"] = ""
        os.environ["ENABLE_METRICS"] = "false"
        processes.preload()
        result = run(plan, server.url, lambda line: click.echo(line, err=True))
    click.echo(table(result))
    if json_path is not None:
        json_path.write_text(result.encode())
    if page_path is not None:
        page_path.write_text(page(result))
    if not result.is_complete:
        raise click.ClickException("the run was not complete")


if __name__ == "__main__":
    main()
