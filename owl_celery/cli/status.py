"""``celery -A proj owl status``: what the API and the console show, in a terminal."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, Final

import click

from owl_celery.errors import OwlError

if TYPE_CHECKING:
    from owl_celery.overview import Overview, OverviewReader

FIRST_ANSWER_SECONDS: Final = 5.0
POLL_SECONDS: Final = 0.05
BUCKET_SECONDS: Final = 60


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON document, as the API gives it.")
@click.option(
    "--watch",
    "seconds",
    is_flag=False,
    flag_value=1.0,
    type=click.FloatRange(min=0.2, max=3600.0),
    help="Go on until Ctrl-C, every second or every so many seconds.",
)
@click.pass_context
def status(ctx: click.Context, as_json: bool, seconds: float | None) -> None:
    """Show health, queues and what was learned; exit with 1 when routing is down.

    Reads Redis and the database, so it tells the same on every machine.
    """
    if ctx.obj is None:
        raise click.UsageError("Name your application: celery -A proj owl status.")
    from owl_celery.installation import parts_of
    from owl_celery.overview import OverviewReader, Status

    try:
        parts = parts_of(ctx.obj.app)
    except OwlError as error:
        raise click.ClickException(str(error)) from error
    reader = OverviewReader(parts.state, parts.settings)
    try:
        overview = first_answer(reader)
        if seconds is not None:
            watch(reader, as_json, seconds)
        elif as_json:
            click.echo(document(overview))
        else:
            from rich.console import Console

            from owl_celery.cli.status_tables import tables_of

            Console().print(tables_of(overview))
    finally:
        reader.close()
    ctx.exit(overview.health.status is Status.DOWN)


def first_answer(reader: OverviewReader) -> Overview:
    """The first overview in which the database has answered or failed, within a few seconds."""
    deadline = time.monotonic() + FIRST_ANSWER_SECONDS
    while True:
        overview = reader.read()
        if overview.health.database.status != "unread" or time.monotonic() > deadline:
            return overview
        time.sleep(POLL_SECONDS)


def watch(reader: OverviewReader, as_json: bool, seconds: float) -> None:
    """Show it again and again until interrupted: a screen, or a line of JSON each time."""
    try:
        if as_json:
            while True:
                click.echo(document(reader.read()))
                time.sleep(seconds)
        from rich.live import Live

        from owl_celery.cli.status_tables import tables_of

        with Live(tables_of(reader.read()), screen=True, auto_refresh=False) as live:
            while True:
                time.sleep(seconds)
                live.update(tables_of(reader.read(), live.console.height), refresh=True)
    except (KeyboardInterrupt, BrokenPipeError):
        return


def document(overview: Overview) -> str:
    """The bodies of ``/health``, ``/performance`` and all of ``/queues`` in one line of JSON."""
    from owl_celery.api.present import health_body, performance_body, queue_body

    body: dict[str, Any] = {
        "health": health_body(overview.health).model_dump(mode="json"),
        "performance": performance_body(overview, BUCKET_SECONDS).model_dump(mode="json"),
        "queues": [queue_body(queue).model_dump(mode="json") for queue in overview.queues],
    }
    return json.dumps(body)
