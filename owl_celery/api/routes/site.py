"""Beside the API: health checks of containers, and the console's page."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from mimetypes import guess_type
from pathlib import Path
from typing import Final

from fastapi import APIRouter, FastAPI
from fastapi.responses import FileResponse

from owl_celery.api.models import StatusBody
from owl_celery.api.parts import Parts
from owl_celery.api.problems import documented, unavailable
from owl_celery.overview import Status

CONSOLE: Final = Path(__file__).parents[1] / "console"

router = APIRouter(tags=["checks"])


@router.get("/healthz", responses=documented())
async def healthz() -> StatusBody:
    """Say that this process answers."""
    return StatusBody()


@router.get("/readyz", responses=documented(HTTPStatus.SERVICE_UNAVAILABLE))
def readyz(parts: Parts) -> StatusBody:
    """Say whether Redis answers and producers have a fresh load view; 503 when not."""
    health = parts.reader.read().health
    if health.status is Status.DOWN:
        raise unavailable(health.reasons[0].sentence)
    return StatusBody()


def add_console(app: FastAPI) -> frozenset[str]:
    """Serve the files of the console; gives their paths."""
    paths = set()
    for file in sorted(CONSOLE.glob("*")) if CONSOLE.is_dir() else ():
        if file.is_file():
            path = "/" if file.name == "index.html" else f"/{file.name}"
            app.get(path, include_in_schema=False)(_serve(file))
            paths.add(path)
    return frozenset(paths)


def _serve(file: Path) -> Callable[[], FileResponse]:
    media_type = "text/javascript" if file.suffix == ".js" else guess_type(file.name)[0]

    def serve() -> FileResponse:
        # After an update of this package a browser must not mix old files with new ones.
        return FileResponse(file, media_type=media_type, headers={"Cache-Control": "no-cache"})

    return serve
