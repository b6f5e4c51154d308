"""What is counted of outcomes as they arrive: counters and histograms, since this process began."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from typing import Final

from prometheus_client import Metric

from owl_celery.aggregates import OTHER
from owl_celery.exporter.families import counter, histogram
from owl_celery.exporter.labels import Bounded
from owl_celery.metrics import (
    MAX_GPU_MODELS,
    MAX_PAIRS,
    MAX_TASK_TYPES,
    TASK_SECONDS_BOUNDS,
)
from owl_celery.sanity import sane
from owl_celery.types import Outcome, TryState

MAX_ALGORITHMS: Final = 50
MAX_RECENT_KEYS: Final = 20_000
REASONS: Final = ("error", "out_of_memory", "lost")


class Buckets:
    """Durations by the bucket they fall in."""

    __slots__ = ("counts", "seconds")

    def __init__(self) -> None:
        self.counts = [0] * len(TASK_SECONDS_BOUNDS)
        self.seconds = 0.0

    def add(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(TASK_SECONDS_BOUNDS, seconds)] += 1
        self.seconds += seconds


class Observed:
    """Counts outcomes, each try once; used by one thread."""

    def __init__(self) -> None:
        self._recent: OrderedDict[str, None] = OrderedDict()
        self._task_types = Bounded(MAX_TASK_TYPES)
        self._gpu_models = Bounded(MAX_GPU_MODELS)
        self._pairs = Bounded(MAX_PAIRS)
        self._algorithms = Bounded(MAX_ALGORITHMS)
        self._tries: Counter[tuple[str, ...]] = Counter()
        self._failures: Counter[tuple[str, ...]] = Counter()
        self._durations: dict[tuple[str, ...], Buckets] = {}
        self._waits: dict[tuple[str, ...], Buckets] = {}
        self._responses: dict[tuple[str, ...], Buckets] = {}

    def add(self, outcomes: Iterable[Outcome]) -> None:
        """Count outcomes; absurd ones and second reports of a try are left out as in learning."""
        for found in outcomes:
            outcome = sane(found)
            if outcome is not None and outcome.key not in self._recent:
                self._recent[outcome.key] = None
                self._count(outcome)
        while len(self._recent) > MAX_RECENT_KEYS:
            self._recent.popitem(last=False)

    def _count(self, outcome: Outcome) -> None:
        pair = self._task_types(outcome.task_type), self._gpu_models(outcome.gpu_model)
        if not self._pairs.knows(pair):
            pair = OTHER, OTHER
        model = pair[1:]
        self._tries[*pair, outcome.state.value] += 1
        for reason in REASONS:
            # From 0, so that Prometheus sees the first failure as an increase.
            self._failures[*pair, reason] += 0
        if outcome.counts_as_failure:
            self._failures[*pair, reason_of(outcome)] += 1
        wait = outcome.wait_seconds
        if wait is not None:
            self._waits.setdefault(model, Buckets()).add(wait)
        if outcome.state.succeeded:
            self._durations.setdefault(model, Buckets()).add(outcome.service_seconds)
            if wait is not None:
                algorithm = (self._algorithms(outcome.algorithm),)
                response = wait + outcome.service_seconds
                self._responses.setdefault(algorithm, Buckets()).add(response)

    def collect(self) -> Iterator[Metric]:
        """All families."""
        yield counter("owl_tasks_total", self._tries.items())
        yield counter("owl_task_failures_total", self._failures.items())
        for name, by_labels in (
            ("owl_task_duration_seconds", self._durations),
            ("owl_task_queue_wait_seconds", self._waits),
            ("owl_task_response_seconds", self._responses),
        ):
            yield histogram(
                name, ((labels, b.counts, b.seconds) for labels, b in by_labels.items())
            )


def reason_of(outcome: Outcome) -> str:
    """Why a try failed, in one of three words."""
    if outcome.out_of_memory:
        return "out_of_memory"
    return "lost" if outcome.state is TryState.LOST else "error"
