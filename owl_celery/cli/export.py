"""``celery -A proj owl export``: what was learned here, in a file for another site."""

from __future__ import annotations

import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from owl_celery.errors import OwlError
from owl_celery.prior import Prior


@click.command()
@click.argument("file", required=False, type=click.Path(dir_okay=False, path_type=Path))
@click.pass_context
def export(ctx: click.Context, file: Path | None) -> None:
    """Write what was learned to FILE, or to standard output, for celery owl import elsewhere.

    Service times, failures and memory by task type and GPU model, and load times of models; no
    queues, hosts or tasks. Reads the database alone, also while everything runs.
    """
    if ctx.obj is None:
        raise click.UsageError("Name your application: celery -A proj owl export.")
    try:
        text, prior = exported(ctx.obj.app)
        if file is None:
            click.echo(text, nl=False)
        else:
            _replace(file, text)
    except OwlError as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(f"Cannot write {file} ({error.strerror}).") from error
    where = file or "standard output"
    click.echo(
        f"Wrote {len(prior.pairs)} pairs of task type and GPU model and {len(prior.loads)} "
        f"load times to {where}.",
        err=True,
    )


def exported(app: Any) -> tuple[str, Prior]:
    """The file's text, and what is in it.

    Raises
    ------
    OwlError
        When the database cannot be read.

    """
    from owl_celery import __version__
    from owl_celery.installation import parts_of
    from owl_celery.learned_prior import prior_of
    from owl_celery.prior_file import encode_prior
    from owl_celery.store import open_store

    parts = parts_of(app)
    namespace = parts.state.keys.namespace
    store = open_store(parts.settings, namespace)
    try:
        prior, policy = prior_of(store.load(), parts.settings)
    finally:
        store.close()
    about = {
        "exported_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "application": namespace,
        "policy": policy,
        "release": __version__,
    }
    return encode_prior(prior, about), prior


def _replace(file: Path, text: str) -> None:
    """Write a file whole, or leave the one that was there."""
    descriptor, name = tempfile.mkstemp(dir=file.absolute().parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as writing:
            writing.write(text)
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink()
        raise
