"""The custom collector: everything that Prometheus sees, from the overview and from outcomes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import Metric
from prometheus_client.registry import Collector

from owl_celery.counters import Counters
from owl_celery.exporter.learned import learned_families
from owl_celery.exporter.live import (
    controller_families,
    dependency_families,
    health_families,
    queue_families,
    routing_families,
    worker_families,
)
from owl_celery.exporter.observed import Observed
from owl_celery.overview import Overview


class OwlCollector(Collector):
    """All metrics of ``owl_celery.metrics``; used by one thread.

    Parameters
    ----------
    read
        Gives the overview.
    observed
        What was counted of outcomes.
    visibility_timeout_seconds
        Of the broker; None when it has none.
    unserved
        Counts tasks that wait in queues which nobody serves.
    own_totals
        What the exporter counts of its own dependencies, as ``Breaker.totals``.

    """

    def __init__(
        self,
        read: Callable[[], Overview],
        observed: Observed,
        visibility_timeout_seconds: float | None = None,
        unserved: Callable[[Overview], Mapping[str, int]] = lambda overview: {},
        own_totals: Callable[[], Mapping[str, float]] = dict,
    ) -> None:
        self._read = read
        self._observed = observed
        self._visibility_timeout_seconds = visibility_timeout_seconds
        self._unserved = unserved
        self._own_totals = own_totals
        self._is_read = False
        self._rows: tuple[object, ...] | None = None
        self._learned: list[Metric] = []
        self._counters = Counters()
        self._controller_counters: Mapping[str, int] = {}

    def collect(self) -> Iterator[Metric]:
        """Every family of the table, those without a series too."""
        overview = self._read()
        # What nobody tells at the moment stays as it was: a counter that falls to 0 and comes back
        # would look like as many new events.
        if not overview.is_redis_down:
            self._counters = overview.counters
        if overview.health.controller is not None:
            self._controller_counters = overview.controller_counters
        yield from self._learned_of(overview)
        yield from self._observed.collect()
        yield from routing_families(self._counters)
        yield from queue_families(overview.queues, self._unserved(overview))
        yield from worker_families(overview.workers)
        yield from health_families(overview, self._visibility_timeout_seconds)
        yield from controller_families(self._controller_counters)
        yield from dependency_families(
            self._counters, {**overview.own_counters, **self._own_totals()}
        )

    def _learned_of(self, overview: Overview) -> list[Metric]:
        """Families of the rows: half of the work in a large fleet, done when they have changed."""
        self._is_read = self._is_read or overview.health.database.status == "ok"
        rows = (overview.task_types, overview.assignments, overview.p99_seconds, self._is_read)
        if self._rows is None or any(a is not b for a, b in zip(rows, self._rows, strict=True)):
            self._rows, self._learned = rows, list(learned_families(overview, self._is_read))
        return self._learned
