"""The reader of requirements while the database is away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from owl_celery.aggregates import Learned
from owl_celery.errors import StoreError
from owl_celery.overview import OverviewReader
from owl_celery.overview.requirements import RETRY_SECONDS, RequirementsReader
from owl_celery.settings import Settings
from tests.overviews import overview


class Reader:
    """A database that does not answer until it is repaired."""

    def __init__(self) -> None:
        self.is_away = True
        self.asked = 0

    def ask(self, question: Callable[[Any], Any]) -> Any:
        self.asked += 1
        if self.is_away:
            raise StoreError("The database does not answer.")
        return Learned("0-0")

    def read(self) -> Any:
        return overview()


def test_a_database_that_is_away_is_not_asked_by_everybody_who_waits() -> None:
    now = [100.0]
    reader = Reader()
    requirements = RequirementsReader(
        cast("OverviewReader", reader), Settings.load(), lambda: now[0]
    )
    for _ in range(5):
        with pytest.raises(StoreError, match="does not answer"):
            requirements.of("train")
    assert reader.asked == 1

    reader.is_away = False
    now[0] += RETRY_SECONDS
    assert requirements.of("train") is None
    # What was read once is given while it is away again.
    reader.is_away = True
    now[0] += 100.0
    assert requirements.of("train") is None
    assert reader.asked == 3
