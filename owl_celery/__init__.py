"""Learned task routing for Celery on GPUs: ``from owl_celery import install``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from owl_celery.installation import install as install
    from owl_celery.router import LearningRouterMixin as LearningRouterMixin
    from owl_celery.settings import Settings as Settings
    from owl_celery.tracker import TaskPerformanceTracker as TaskPerformanceTracker

__version__ = "0.1.0"
__all__ = ["LearningRouterMixin", "Settings", "TaskPerformanceTracker", "install"]

_HOMES = {
    "LearningRouterMixin": "owl_celery.router",
    "Settings": "owl_celery.settings",
    "TaskPerformanceTracker": "owl_celery.tracker",
    "install": "owl_celery.installation",
}


def __getattr__(name: str) -> Any:
    """Import on first use: a policy needs no Celery, and a producer no database."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
