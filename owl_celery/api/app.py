"""The application: paths, checks before them, errors of one kind."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Final

from fastapi import FastAPI

from owl_celery.api.description import describe
from owl_celery.api.feed import Feed
from owl_celery.api.gate import (
    OPEN_PATHS,
    Check,
    CheckRate,
    CheckToken,
    Gate,
    Limits,
    check_host,
    check_size,
)
from owl_celery.api.parts import ApiParts
from owl_celery.api.problems import install_handlers
from owl_celery.api.routes import controls, decisions, learning, lists, pages, site
from owl_celery.overview import OverviewReader
from owl_celery.overview.requirements import RequirementsReader
from owl_celery.redis_state import RedisState
from owl_celery.settings import Settings

PREFIX: Final = "/api/v1/learning"

DESCRIPTION: Final = (
    "What an application of owl_celery has learned and how it goes. Fields and paths of this "
    "version are only ever added to. Errors are of RFC 9457."
)


def create_app(
    settings: Settings, state: RedisState, reader: OverviewReader, limits: Limits | None = None
) -> FastAPI:
    """Make the API of one application; nothing is started or connected here.

    Parameters
    ----------
    settings
        The token.
    state
        Redis of load and learning state.
    reader
        What is shown.
    limits
        What one client may ask for.

    """
    limits = limits or Limits()
    app = FastAPI(
        title="owl_celery",
        version=str(import_module("owl_celery").__version__),
        description=DESCRIPTION,
        openapi_url="/api/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.openapi = partial(describe, app)  # type: ignore[method-assign]  # as FastAPI documents
    app.state.parts = ApiParts(
        settings,
        state,
        reader,
        RequirementsReader(reader, settings),
        Feed(reader, state),
        limits,
    )
    install_handlers(app)
    for routes in (learning, lists, decisions, controls):
        app.include_router(routes.router, prefix=PREFIX)
    app.include_router(site.router)
    app.include_router(pages.router)
    console = site.add_console(app)
    token = settings.api_token.get_secret_value() if settings.api_token else ""
    checks: list[Check] = [
        *(() if token else (check_host,)),
        CheckRate(limits),
        check_size(limits),
        CheckToken(token, OPEN_PATHS | console),
    ]
    app.add_middleware(Gate, checks=checks, body_bytes=limits.body_bytes)
    return app
