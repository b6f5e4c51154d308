"""What is shown of an application, read from Redis and the database by any process."""

from __future__ import annotations

from owl_celery.overview.reader import OverviewReader
from owl_celery.overview.values import Overview, Status

__all__ = ["Overview", "OverviewReader", "Status"]
