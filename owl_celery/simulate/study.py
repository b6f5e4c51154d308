"""Many runs: policies by loads by seeds, spread over all cores."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

from owl_celery.errors import InputError
from owl_celery.simulate.arrivals import Arrivals, mmpp, poisson, read_trace
from owl_celery.simulate.baselines import make_contender
from owl_celery.simulate.conditions import Conditions, Run
from owl_celery.simulate.engine import Simulation
from owl_celery.simulate.instance import Instance
from owl_celery.simulate.results import Row, figures
from owl_celery.simulate.table import ServiceTable

STREAMS: Final = {"poisson": poisson, "mmpp": mmpp}


@dataclass(frozen=True, eq=False)
class Scenario:
    """A world to compare policies in.

    Parameters
    ----------
    table
        Service times; see ``Instance.draw`` for what a seed makes of them.
    fleet
        GPUs by model.
    load
        Arrival rate over the capacity of the fleet; None for a trace as it was recorded.
    arrivals
        ``poisson``, ``mmpp``, or the path of a trace. With a trace the table's own seconds count.
    tasks, warmup
        Number of tasks, and how many of the first are left out of the figures.
    size_cv
        Coefficient of variation of the sizes.
    conditions
        How the world behaves besides.
    settings
        Fields of ``Settings`` for production policies.

    """

    table: ServiceTable
    fleet: Mapping[str, int]
    load: float | None = 0.7
    arrivals: str | Path = "poisson"
    tasks: int = 70_000
    warmup: int = 20_000
    size_cv: float = 0.3
    conditions: Conditions = field(default_factory=Conditions)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def world(self, seed: int) -> tuple[Instance, Arrivals, float]:
        """Instance, tasks and mean arrival rate of a seed: the same for every policy.

        Raises
        ------
        InputError
            When table, fleet and trace do not go together.

        """
        if isinstance(self.arrivals, str) and self.arrivals in STREAMS:
            if self.load is None or self.load <= 0.0:
                raise InputError("Random arrivals need a load above 0.")
            instance = Instance.draw(self.table, self.fleet, seed)
            rate = self.load * instance.capacity.rate
            stream = STREAMS[self.arrivals]
            tasks = stream(rate, instance.mix, self.tasks, self.size_cv, seed)
            if self.conditions.switch_seconds > 0.0:
                tasks = tasks.with_models(instance.table.types)
            return instance, tasks, rate
        trace = read_trace(Path(self.arrivals), self.table.types)
        mix = trace.mix(len(self.table.types))
        instance = Instance.as_measured(self.table, self.fleet, mix)
        span = float(trace.times[-1])
        if span <= 0.0:
            raise InputError(f"All tasks of trace {self.arrivals} arrive at the same time.")
        if self.load is not None:
            work = float(trace.sizes.sum()) / instance.capacity.rate
            trace = trace.stretched(work / (self.load * span))
        return instance, trace, len(trace) / float(trace.times[-1])

    def run(
        self, policy: str, seed: int, progress: Callable[[int], None] | None = None
    ) -> tuple[Row, Run]:
        """Simulate one policy on one seed.

        Parameters
        ----------
        policy
            One of ``contender_names()``.
        seed
            Of the instance, of the tasks and of the policy.
        progress
            As in ``Simulation.run``.

        Raises
        ------
        InputError
            When an input cannot be used.

        """
        instance, tasks, rate = self.world(seed)
        if self.warmup >= len(tasks):
            raise InputError(f"A warm-up of {self.warmup} leaves none of {len(tasks)} tasks.")
        contender = make_contender(policy, instance, rate, seed, **self.settings)
        began = time.perf_counter()
        run = Simulation(instance, tasks, contender, self.conditions, seed).run(progress)
        speed = len(tasks) / max(time.perf_counter() - began, 1e-9)
        load = float(tasks.sizes.sum()) / instance.capacity.rate / float(tasks.times[-1])
        shown = load if self.load is None else self.load
        return figures(run, policy, shown, seed, self.warmup, speed), run


@dataclass(frozen=True, slots=True)
class Job:
    """One run of a study."""

    scenario: Scenario
    policy: str
    seed: int

    def row(self) -> Row:
        """Simulate, in whichever process this is."""
        return self.scenario.run(self.policy, self.seed)[0]


def run_jobs(jobs: Sequence[Job], processes: int | None = None) -> Iterator[tuple[Job, Row]]:
    """Run jobs on all cores, and yield each as it ends.

    Parameters
    ----------
    jobs
        In any order.
    processes
        Processes to use; all cores when omitted, and none but this one for 1.

    Raises
    ------
    InputError
        When an input cannot be used.

    """
    processes = min(processes or _cores(), len(jobs))
    if processes <= 1:
        for job in jobs:
            yield job, job.row()
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(job.row): job for job in jobs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
