"""The learning side: outcomes become beliefs about service times, speeds, failures and memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from owl_celery.errors import StateError
from owl_celery.fleet import Fleet, Floats, Ints
from owl_celery.policies.beliefs import Beliefs, usable_size
from owl_celery.policies.cells import Cells
from owl_celery.policies.estimates import ServiceTimes
from owl_celery.policies.failures import FailureRates
from owl_celery.policies.speeds import SpeedFactors
from owl_celery.policies.warm import WarmModels
from owl_celery.prior import PRIOR_SAMPLES, PairPrior, Prior, TakenPrior
from owl_celery.types import Outcome

MAX_SECONDS: Final = 10.0 * 365 * 86_400
"""Ten years: no try takes longer."""

MIN_SECONDS: Final = 1e-4
"""Below this a clock measures itself."""

KNOWN_COUNT: Final = 5.0
"""Samples from which on a pair's mean is good enough to judge single GPUs by."""

MEAN_MEMORY: Final = 500
MAX_SHORT: Final = 100
"""Tries out of memory that wait for a reading of what was free."""


class Learner:
    """Learns from outcomes and keeps ``beliefs`` up to date.

    Parameters
    ----------
    max_types
        Task types kept; the one seen longest ago is forgotten first.

    Attributes
    ----------
    beliefs
        What is believed now; the same object all the time.
    refused_count
        Outcomes refused because a number in them made no sense.
    mean_seconds
        Mean service time over recent tries of all types, 1 before the first.

    """

    def __init__(self, max_types: int) -> None:
        self.beliefs = Beliefs()
        self.refused_count = 0
        self.mean_seconds = 1.0
        self.cells = Cells(
            (*ServiceTimes.matrices, *FailureRates.matrices, "size", "is_cold"), max_types
        )
        self.service_times = ServiceTimes(self.cells)
        self.speeds = SpeedFactors()
        self.failures = FailureRates(self.cells)
        self.warm = WarmModels()
        self._free_bytes: dict[str, float] = {}
        self._short: list[tuple[str, str, str]] = []
        self._publish()

    def learn_one(self, outcome: Outcome, now: float) -> None:
        """Learn from one outcome; one that is neither success nor failure teaches nothing.

        One that makes no sense counts as refused.
        """
        if not (outcome.state.succeeded or outcome.counts_as_failure):
            return
        column = self.cells.column(outcome.gpu_model) if _is_sane(outcome) else None
        if column is None:
            self.refused_count += 1
            return
        is_new = outcome.task_type not in self.cells.types or self._is_behind()
        row = self.cells.row(outcome.task_type)
        if is_new:
            self.service_times.refresh(row)
        self.failures.learn_one(
            row, column, outcome.queue, outcome.counts_as_failure, outcome.out_of_memory
        )
        if outcome.state.succeeded:
            self._learn_success(outcome, row, column, now)
        elif outcome.out_of_memory:
            self._short.append((outcome.task_type, outcome.gpu_model, outcome.queue))
            self._learn_shortages()
        self._publish()

    def _learn_shortages(self) -> None:
        """Learn from tries that ran out of memory, once it is known how much was free."""
        known = [short for short in self._short if short[2] in self._free_bytes]
        for task_type, gpu_model, queue in known:
            column = self.cells.column(gpu_model)
            if task_type in self.cells.types and column is not None:
                row = self.cells.row(task_type)
                self.failures.learn_shortage(row, column, self._free_bytes[queue])
        if known:
            self._short = [short for short in self._short if short not in known]
        del self._short[:-MAX_SHORT]

    def take_prior(self, seconds: Mapping[str, Mapping[str, float]], count: float) -> None:
        """Begin from service times known from elsewhere; own samples are kept where there are any.

        Parameters
        ----------
        seconds
            Service time of a task of size 1, > 0, by task type and GPU model.
        count
            Samples that each is worth, > 0.

        Raises
        ------
        ValueError
            When a service time makes no sense; nothing is changed then.

        """
        for by_model in seconds.values():
            for value in by_model.values():
                if not 0.0 < value <= MAX_SECONDS:
                    raise ValueError(f"A service time of {value} s makes no sense.")
        for task_type, by_model in seconds.items():
            row = self.cells.row(task_type)
            self.service_times.refresh(row)
            for gpu_model, value in by_model.items():
                column = self.cells.column(gpu_model)
                if column is None or self.cells["count"][row, column] > 0.0:
                    continue
                self.cells["count"][row, column] = count
                self.cells["mean"][row, column] = value
                self.cells["size"][row, column] = 1.0
                self.service_times.completed += 1
        self.service_times.refit()
        self._publish()

    def export_prior(self) -> Prior:
        """What was learned of pairs and models, without what concerns single GPUs."""
        cells = self.cells
        counts, means, is_cold = cells["count"], cells["mean"], cells["is_cold"]
        pairs = []
        for task_type, row in cells.types.items():
            for gpu_model, column in cells.models.items():
                # A mean of tries that all had to load a model first says little.
                is_known = bool(counts[row, column] > 0.0 and not is_cold[row, column])
                prior = PairPrior(
                    task_type,
                    gpu_model,
                    seconds=float(means[row, column]) if is_known else None,
                    successes=math.ceil(counts[row, column]) if is_known else 0,
                    mean_size=float(cells["size"][row, column]) if is_known else 1.0,
                    **self.failures.export_prior(row, column),
                )
                if is_known or prior.tries or prior.needed_memory_bytes is not None:
                    pairs.append(prior)
        return Prior(tuple(pairs), self.warm.export_prior())

    def import_prior(self, prior: Prior) -> TakenPrior:
        """Take what another site has learned, at most ``PRIOR_SAMPLES`` samples of each number.

        Own samples count alone where there are any.
        """
        cells, times = self.cells, self.service_times
        service_times = failure_rates = memory_needs = left = 0
        taken_seconds, shape = [], cells.shape
        for pair in prior.pairs:
            column = cells.column(pair.gpu_model)
            if column is None:
                left += 1
                continue
            row = cells.row(pair.task_type)
            if pair.seconds is not None and pair.successes > 0:
                if cells["count"][row, column] > 0.0:
                    left += 1
                else:
                    cells["count"][row, column] = min(float(pair.successes), PRIOR_SAMPLES)
                    cells["mean"][row, column] = pair.seconds
                    cells["size"][row, column] = usable_size(pair.mean_size)
                    taken_seconds.append(pair.seconds * usable_size(pair.mean_size))
                    service_times += 1
            tried, sized, kept = self.failures.import_prior(row, column, pair)
            failure_rates += tried
            memory_needs += sized
            left += kept
        if taken_seconds and not times.completed:
            self.mean_seconds = float(np.mean(taken_seconds))
        times.completed += service_times
        if service_times or cells.shape != shape:
            times.refit()
        load_times = self.warm.import_prior(prior.loads)
        self._publish()
        return TakenPrior(
            service_times,
            failure_rates,
            memory_needs,
            load_times,
            left + len(prior.loads) - load_times,
        )

    def _learn_success(self, outcome: Outcome, row: int, column: int, now: float) -> None:
        times, speeds = self.service_times, self.speeds
        duration = max(outcome.service_seconds, MIN_SECONDS)
        self.mean_seconds += (duration - self.mean_seconds) / min(times.completed + 1, MEAN_MEMORY)
        if outcome.model is not None and self._learn_load(
            outcome, outcome.model, row, column, duration
        ):
            return
        seconds = duration / usable_size(outcome.size)
        sizes, seen = self.cells["size"], self.cells["count"][row, column]
        sizes[row, column] += (usable_size(outcome.size) - sizes[row, column]) / (seen + 1.0)
        is_known = bool(self.cells["count"][row, column] >= KNOWN_COUNT)
        if is_known:
            ratio = seconds / float(self.cells["mean"][row, column])
            speeds.learn_one(outcome.queue, outcome.gpu_model, ratio, self.mean_seconds, now)
            times.expect(speeds.noise_variance)
        factor = speeds.factor(outcome.queue)
        # One odd GPU must not teach its model; when most are odd it is the model that changed.
        if factor == 1.0 or not is_known:
            times.learn_one(row, column, seconds / factor)
        elif speeds.is_most_of_model(outcome.gpu_model):
            times.learn_one(row, column, seconds)
        if outcome.peak_memory_bytes is not None and outcome.peak_memory_bytes > 0:
            self.failures.learn_peak(row, column, outcome.peak_memory_bytes)

    def _learn_load(
        self, outcome: Outcome, model: str, row: int, column: int, duration: float
    ) -> bool:
        """Learn from a try that names its model; whether nothing else can be learned from it."""
        cells = self.cells
        was_cold = self.warm.observe(outcome.queue, model)
        is_cold, counts = cells["is_cold"], cells["count"]
        if not was_cold:
            if is_cold[row, column]:
                # So far only tries that loaded the model were known: they no longer count.
                is_cold[row, column] = counts[row, column] = 0.0
            return False
        if counts[row, column] == 0.0:
            is_cold[row, column] = 1.0
        if is_cold[row, column]:
            return False
        factor = self.speeds.factor(outcome.queue)
        known = usable_size(outcome.size) * float(cells["service"][row, column]) * factor
        self.warm.learn_load(model, duration - known)
        return True

    def tick(self, fleet: Fleet, now: float) -> None:
        """Let what is not confirmed fade, and note how much memory is free."""
        known = np.flatnonzero(np.isfinite(fleet.free_memory_bytes)).tolist()
        self._free_bytes = {fleet.names[r]: float(fleet.free_memory_bytes[r]) for r in known}
        self._learn_shortages()
        self.speeds.relax(self.mean_seconds, now)
        self.failures.fade(self.mean_seconds, now)
        self._publish()

    def mean_sizes(self, rows: Ints) -> Floats:
        """Mean size of the tasks of some types, 1 where none has been seen, shape (len(rows),)."""
        counts, sizes = self.cells["count"][rows], self.cells["size"][rows]
        total = counts.sum(axis=1)
        means: Floats = np.where(
            total > 0.0, (counts * sizes).sum(axis=1) / np.maximum(total, 1.0), 1.0
        )
        return means

    def _is_behind(self) -> bool:
        """Whether a GPU model has been given a column that has no predictions yet."""
        return self.cells.shape[1] != int(self.beliefs.service.shape[1])

    def _publish(self) -> None:
        beliefs, cells = self.beliefs, self.cells
        beliefs.types, beliefs.models = cells.types, cells.models
        beliefs.service, beliefs.count = cells["service"], cells["count"]
        beliefs.failure, beliefs.needed = cells["failure"], cells["needed"]
        beliefs.warm = self.warm
        beliefs.completed = self.service_times.completed
        version = self.speeds.version + self.failures.version
        if version != beliefs.version:
            beliefs.speeds, beliefs.confirmed = self.speeds.factors(), self.speeds.confirmed()
            beliefs.failing = self.failures.queues()
            beliefs.version = version

    def state(self) -> dict[str, Any]:
        """Everything learned, exactly, as JSON values."""
        return {
            "cells": self.cells.state(),
            "service_times": self.service_times.state(),
            "speeds": self.speeds.state(),
            "failures": self.failures.state(),
            "refused_count": self.refused_count,
            "mean_seconds": self.mean_seconds,
            "warm": self.warm.state(),
            "free_bytes": self._free_bytes,
            "short": [list(short) for short in self._short],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state()``.

        Raises
        ------
        StateError
            When it is damaged; nothing is changed then.

        """
        fresh = Learner(self.cells.max_types)
        try:
            fresh.cells.restore(state["cells"])
            fresh.service_times.restore(state["service_times"])
            fresh.speeds.restore(state["speeds"])
            fresh.failures.restore(state["failures"])
            fresh.refused_count = int(state["refused_count"])
            fresh.mean_seconds = float(state["mean_seconds"])
            fresh.warm = WarmModels.of(state["warm"])
            fresh._short = [(str(t), str(m), str(q)) for t, m, q in state.get("short", ())]
            fresh._free_bytes = {str(k): float(v) for k, v in state["free_bytes"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StateError("The saved policy state lacks a part.") from error
        fresh.beliefs.version = -1
        fresh._publish()
        self.__dict__.update(fresh.__dict__)


def _is_sane(outcome: Outcome) -> bool:
    seconds, size = outcome.service_seconds, outcome.size
    return (
        math.isfinite(seconds)
        and 0.0 <= seconds <= MAX_SECONDS
        and math.isfinite(size)
        and size > 0.0
    )
