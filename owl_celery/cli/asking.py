"""How commands that only talk to Redis find it, and say what went wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click
from redis.exceptions import RedisError

from owl_celery.cli.terminal import shown
from owl_celery.errors import OwlError
from owl_celery.redis_state import RedisState
from owl_celery.redis_trouble import ADVICE, trouble_of


@contextmanager
def state_of(ctx: click.Context) -> Iterator[RedisState]:
    """Redis of the application on the command line; what fails within is said in one sentence."""
    if ctx.obj is None:
        raise click.UsageError(f"Name your application: celery -A proj owl {ctx.info_name}.")
    from owl_celery.installation import parts_of

    try:
        yield parts_of(ctx.obj.app).state
    except OwlError as error:
        raise click.ClickException(shown(str(error))) from error
    except (RedisError, OSError) as error:
        raise click.ClickException(trouble_of(error, ADVICE)) from error
