"""``celery -A proj owl serve``: controller, API and exporter in a process of their own."""

from __future__ import annotations

import logging
import signal
import threading
from typing import Any

import click
from redis.exceptions import RedisError

from owl_celery.errors import OwlError
from owl_celery.redis_trouble import ADVICE, trouble_of


@click.command()
@click.pass_context
def serve(ctx: click.Context) -> None:
    """Run the controller, which learns and publishes the load view; answer HTTP; export metrics.

    Several may run; one leads, the others take over when it is gone, and all of them show the
    same. Stops on TERM and INT.
    """
    if ctx.obj is None:
        raise click.UsageError("Name your application: celery -A proj owl serve.")
    try:
        _serve(ctx.obj.app)
    except OwlError as error:
        raise click.ClickException(str(error)) from error


def _serve(app: Any) -> None:
    """Check what the controller needs, then run it until told to stop."""
    from owl_celery.api.server import open_server
    from owl_celery.brokers import open_broker
    from owl_celery.controller.controller import Controller
    from owl_celery.exporter import start_exporter
    from owl_celery.installation import parts_of
    from owl_celery.overview import OverviewReader
    from owl_celery.store import open_store

    parts = parts_of(app)
    try:
        parts.state.client.ping()
    except (RedisError, OSError) as error:
        raise OwlError(trouble_of(error, ADVICE)) from error
    # A wrong address or folder is said at once; what fails later is waited for.
    store = open_store(parts.settings, parts.state.keys.namespace)
    store.load()
    store.close()
    controller = Controller(
        parts.state,
        open_broker(app),
        parts.settings,
        default_queue=app.conf.task_default_queue,
    )
    reader = OverviewReader(parts.state, parts.settings)
    server = open_server(parts.settings, parts.state, reader)
    stop = threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: stop.set())
    app.log.setup_logging_subsystem(loglevel=logging.INFO)
    click.echo(f"owl controller {controller.name} for {parts.state.keys.namespace}: running.")
    click.echo(f"Console and API: {server.url}")
    server.start()
    exporter = start_exporter(reader.read, parts.state, parts.settings, app)
    try:
        controller.run(stop)
    finally:
        server.stop()
        if exporter is not None:
            exporter.close()
        reader.close()
