"""``celery -A proj owl import``: begin from what another site has learned."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

import click

from owl_celery.errors import OwlError, PriorError

MAX_FILE_BYTES: Final = 64 * 2**20
LOOK_SECONDS: Final = 0.2


@click.command(name="import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--wait",
    "wait_seconds",
    type=click.FloatRange(0.0, 3600.0),
    default=10.0,
    show_default=True,
    help="Seconds to wait for the controller to say what it took.",
)
@click.pass_context
def import_(ctx: click.Context, file: Path, wait_seconds: float) -> None:
    """Give the policy what celery owl export wrote to FILE at another site.

    Works while everything runs: the controller takes it within a few seconds, exactly once, and
    without one it waits in the database for the next. What was learned here is kept: a number
    is taken only where there is none, and weighs as 10 samples at most.
    """
    if ctx.obj is None:
        raise click.UsageError("Name your application: celery -A proj owl import FILE.")
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise PriorError(f"It is larger than {MAX_FILE_BYTES // 2**20} MiB.")
        text = file.read_text(encoding="utf-8")
        _import(ctx.obj.app, file, text, wait_seconds)
    except PriorError as error:
        raise click.ClickException(f"{file} is not imported. {error}") from error
    except OwlError as error:
        raise click.ClickException(str(error)) from error
    except UnicodeDecodeError as error:
        raise click.ClickException(f"{file} is not imported. It is no UTF-8 text.") from error
    except OSError as error:
        raise click.ClickException(f"Cannot read {file} ({error.strerror}).") from error


def _import(app: Any, file: Path, text: str, wait_seconds: float) -> None:
    from owl_celery.installation import parts_of
    from owl_celery.prior_file import decode_prior
    from owl_celery.store import open_store

    prior = decode_prior(text)
    types = {pair.task_type for pair in prior.pairs}
    models = {pair.gpu_model for pair in prior.pairs}
    click.echo(
        f"{file}: {len(prior.pairs)} pairs ({len(types)} task types, {len(models)} GPU models), "
        f"{len(prior.loads)} load times."
    )
    parts = parts_of(app)
    store = open_store(parts.settings, parts.state.keys.namespace)
    try:
        number = store.add_prior(text)
        deadline = time.monotonic() + wait_seconds
        while (report := store.prior_report(number)) is None and time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)
    finally:
        store.close()
    click.echo(
        f"Import {number}: {report or 'kept for the next controller; none has taken it yet.'}"
    )
