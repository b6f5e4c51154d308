"""Cursors: where the next part of a list begins, opaque to clients."""

from __future__ import annotations

import binascii
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Annotated, Any, Final, TypeVar

from fastapi import Query

from owl_celery.api.problems import Problem

MAX_CURSOR: Final = 2_048
MAX_ITEMS: Final = 1_000

Limit = Annotated[int, Query(ge=1, le=MAX_ITEMS, description="Items of a page.")]
Cursor = Annotated[
    str | None,
    Query(max_length=MAX_CURSOR, description="The next_cursor of the page before."),
]

Value = TypeVar("Value")


def encode_cursor(kind: str, *position: str | int) -> str:
    """Write where the next page of a list begins.

    Examples
    --------
    >>> decode_cursor("queues", encode_cursor("queues", "gpu.a.0"), str)
    ('gpu.a.0',)

    """
    text = json.dumps([kind, *position], separators=(",", ":"))
    return urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode_cursor(kind: str, cursor: str, *types: type) -> tuple[Any, ...]:
    """Read the position in a cursor of this kind of list.

    Raises
    ------
    Problem
        When it is none that we gave out: 400.

    """
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        found = json.loads(urlsafe_b64decode(padded.encode("ascii")))
    except (ValueError, binascii.Error, RecursionError):
        found = None
    is_ours = (
        isinstance(found, list)
        and len(found) == len(types) + 1
        and found[0] == kind
        and all(type(value) is kind for value, kind in zip(found[1:], types, strict=True))
    )
    if not is_ours:
        raise Problem(
            HTTPStatus.BAD_REQUEST,
            "The cursor is none of this list: take it from next_cursor, or leave it out to begin.",
        )
    return tuple(found[1:])


def page_of(
    kind: str,
    rows: Sequence[Value],
    key: Callable[[Value], tuple[str, ...]],
    limit: int,
    cursor: str | None,
    width: int = 1,
) -> tuple[list[Value], str | None]:
    """Cut a page out of rows that are sorted by a key of ``width`` texts.

    What comes and goes between two pages neither hides nor repeats other rows.

    Raises
    ------
    Problem
        When the cursor is none of this kind of list: 400.

    """
    start = 0
    if cursor is not None:
        after = decode_cursor(kind, cursor, *[str] * width)
        start = next((i for i, row in enumerate(rows) if key(row) > after), len(rows))
    page = list(rows[start : start + limit])
    has_more = start + limit < len(rows)
    return page, encode_cursor(kind, *key(page[-1])) if has_more else None
