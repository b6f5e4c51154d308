"""What the paths of one application use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from owl_celery.api.feed import Feed
from owl_celery.api.gate import Limits
from owl_celery.api.problems import unavailable
from owl_celery.overview import Overview, OverviewReader
from owl_celery.overview.requirements import RequirementsReader
from owl_celery.redis_state import RedisState
from owl_celery.settings import Settings


@dataclass(frozen=True, slots=True)
class ApiParts:
    """Made by ``create_app``, found in ``app.state.parts``."""

    settings: Settings
    state: RedisState
    reader: OverviewReader
    requirements: RequirementsReader
    feed: Feed
    limits: Limits


def parts_of_request(request: Request) -> ApiParts:
    """Find the parts of the application that answers."""
    parts: ApiParts = request.app.state.parts
    return parts


Parts = Annotated[ApiParts, Depends(parts_of_request)]


def with_redis(parts: ApiParts) -> Overview:
    """The overview; a problem while Redis does not answer.

    Raises
    ------
    Problem
        503.

    """
    overview = parts.reader.read()
    if overview.is_redis_down:
        raise unavailable(overview.health.reasons[0].sentence)
    return overview


def with_rows(parts: ApiParts) -> Overview:
    """The overview; a problem while the database has never answered.

    Raises
    ------
    Problem
        503.

    """
    overview = parts.reader.read()
    if not overview.has_rows:
        said = [r.sentence for r in overview.health.reasons if r.part == "database"]
        raise unavailable(said[0] if said else "The database has not answered yet.")
    return overview
