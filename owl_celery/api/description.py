"""The OpenAPI description: what FastAPI finds out, and what it cannot know."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from owl_celery.api.models import ProblemBody


def describe(app: FastAPI) -> dict[str, Any]:
    """Describe all paths, with the errors and the token that they share; made once."""
    if app.openapi_schema is None:
        found = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        components = found.setdefault("components", {})
        schemas = components.setdefault("schemas", {})
        schemas[ProblemBody.__name__] = ProblemBody.model_json_schema(
            ref_template="#/components/schemas/{model}"
        )
        schemas |= schemas[ProblemBody.__name__].pop("$defs", {})
        components["securitySchemes"] = {
            "token": {
                "type": "http",
                "scheme": "bearer",
                "description": "The value of OWL_API_TOKEN; where none is set, reads need none.",
            }
        }
        # The empty alternative: a server without a token can be read by this machine.
        found["security"] = [{"token": []}, {}]
        app.openapi_schema = found
    return app.openapi_schema
