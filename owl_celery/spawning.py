"""How a spawned pool child gets the application: it imports it, as every other process does.

Celery pickles the application for a spawned child. That takes every configured value to be
picklable, which a router with a connection is not, and gives a copy to which ``install`` was never
applied: its tasks would be routed by nobody and report to nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from billiard.reduction import ForkingPickler
from celery import Celery
from celery.app.utils import find_app

_import_names: dict[int, str] = {}


def import_in_children(app: Celery, name: str) -> None:
    """Let the pool children of this worker import the application; runs in the worker's parent.

    Parameters
    ----------
    app
        The worker's application.
    name
        What ``celery -A`` was given.

    """
    _import_names[id(app)] = name
    ForkingPickler.register(type(app), _reduce)


def _reduce(app: Celery) -> tuple[Callable[..., Celery], tuple[Any, ...]]:
    name = _import_names.get(id(app))
    if name is None:
        reduced: tuple[Callable[..., Celery], tuple[Any, ...]] = app.__reduce__()
        return reduced
    # Modules that the parent was told of by its command line are not in the configuration.
    return _imported, (name, tuple(app.conf.include))


def _imported(name: str, include: tuple[str, ...]) -> Celery:
    app = find_app(name)
    app.conf.include = include
    return app
