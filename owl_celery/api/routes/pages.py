"""A page that lists the paths, for people: made of the OpenAPI description, without scripts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

router = APIRouter(include_in_schema=False)


@router.get("/docs", response_class=HTMLResponse)
def docs(request: Request) -> str:
    """List every path with its parameters and an example of its answer."""
    found = request.app.openapi()
    return "\n".join(_page(found))


def _page(found: dict[str, Any]) -> Iterator[str]:
    title = f"{escape(found['info']['title'])} API"
    yield '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield '<meta name="color-scheme" content="light dark">'
    yield f"<title>{title}</title></head><body><main><h1>{title} {found['info']['version']}</h1>"
    yield f"<p>{escape(found['info']['description'])} For programs: "
    yield '<a href="api/v1/openapi.json">openapi.json</a>.</p>'
    for path, methods in found["paths"].items():
        for method, operation in methods.items():
            yield from _operation(path, method, operation, found)
    yield "</main></body></html>"


def _operation(
    path: str, method: str, operation: dict[str, Any], found: dict[str, Any]
) -> Iterator[str]:
    yield f"<h2><code>{method.upper()} {escape(path)}</code></h2>"
    yield f"<p>{escape(operation.get('description', ''))}</p>"
    parameters = operation.get("parameters", [])
    if parameters:
        yield "<dl>"
        for parameter in parameters:
            yield f"<dt><code>{escape(parameter['name'])}</code> ({parameter['in']})</dt>"
            yield f"<dd>{escape(parameter.get('description', ''))}</dd>"
        yield "</dl>"
    example = _example(operation, found)
    if example is not None:
        yield f"<details><summary>Example</summary><pre>{escape(example)}</pre></details>"


def _example(operation: dict[str, Any], found: dict[str, Any]) -> str | None:
    """The example of the body that an operation gives, or of the items of a list of it."""
    content = operation["responses"].get("200", {}).get("content", {})
    schema = _resolved(content.get("application/json", {}).get("schema", {}), found)
    items = schema.get("properties", {}).get("items", {}).get("items", {})
    for candidate in (schema, _resolved(items, found)):
        for example in candidate.get("examples", ()):
            shown = (
                {"items": [example], "next_cursor": None} if candidate is not schema else example
            )
            return json.dumps(shown, indent=2)
    return None


def _resolved(schema: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    name = schema.get("$ref", "").rpartition("/")[2]
    resolved: dict[str, Any] = found["components"]["schemas"].get(name, schema)
    return resolved
