"""The API against its own description: drawn requests, with Redis or the database away, too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import pytest
import schemathesis
from schemathesis.checks import CheckFunction
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from owl_celery.types import QueueView
from tests.api import TOKEN, Site, learn
from tests.learning import stream

pytestmark = pytest.mark.integration

CHECKS: list[CheckFunction] = [
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
]
QUEUES = tuple(QueueView(f"gpu.a.{n}", ("K80", "V100")[n % 2]) for n in range(3))


@contextmanager
def all_well(redis_url: str, folder: Path) -> Iterator[Site]:
    site = Site(redis_url, folder, api_token=TOKEN)
    site.publish(QUEUES, learn(site.store, stream(100)))
    yield site
    site.close()


@contextmanager
def without_database(redis_url: str, folder: Path) -> Iterator[Site]:
    site = Site(redis_url, folder, api_token=TOKEN, database_url="postgresql://127.0.0.1:1/x")
    site.publish(QUEUES)
    yield site
    site.close()


@contextmanager
def without_redis(redis_url: str, folder: Path) -> Iterator[Site]:
    site = Site("redis://127.0.0.1:1/0", folder, api_token=TOKEN)
    learn(site.store, stream(100))
    yield site
    site.close()


@pytest.mark.parametrize(
    ("surroundings", "examples"), [(all_well, 8), (without_database, 4), (without_redis, 4)]
)
def test_every_path_answers_as_described(
    redis_url: str, tmp_path: Path, surroundings: Any, examples: int
) -> None:
    with surroundings(redis_url, tmp_path) as site, site.served() as api:
        api.headers["authorization"] = f"Bearer {TOKEN}"
        schema = schemathesis.openapi.from_dict(api.get("/api/v1/openapi.json").json())
        # Live events never end.
        found: Any = schema.get_all_operations()
        operations = [operation.ok() for operation in found]
        asked = [one for one in operations if not one.path.endswith("/events")]
        assert len(asked) >= 14
        for operation in asked:
            _check(operation, api, surroundings is all_well, examples)


def _check(operation: Any, api: httpx.Client, is_well: bool, examples: int) -> None:
    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy())
    def answers(case: schemathesis.Case[Any]) -> None:
        response = case.call(
            base_url=str(api.base_url), headers={"authorization": f"Bearer {TOKEN}"}
        )
        if response.status_code >= 500:
            assert response.status_code == 503 and not is_well, response.text
            assert response.headers["content-type"] == ["application/problem+json"]
        case.validate_response(response, checks=CHECKS)

    answers()
