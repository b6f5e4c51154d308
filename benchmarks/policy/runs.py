"""Single runs of the benchmark, kept in a file so that it can be done in pieces."""

from __future__ import annotations

import ast
import hashlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import numpy as np

import owl_celery
from owl_celery.policies.base import Policy
from owl_celery.simulate import (
    Action,
    Conditions,
    Fault,
    Instance,
    Scenario,
    ServiceTable,
    Simulation,
    gavel_table,
    make_contender,
    parse_fleet,
)
from owl_celery.simulate.baselines import BASELINES
from owl_celery.simulate.results import figures
from owl_celery.types import Outcome, TryState

Figures = dict[str, Any]

FAULT_TASKS: Final = (30_000, 50_000)
"""The GPU is slow while these tasks arrive."""

PRIOR_SAMPLES: Final = 3
CURVE_TASKS: Final = 5_000
CURVE_BIN: Final = 100
SOURCE: Final = Path(owl_celery.__file__).parent


@dataclass(frozen=True, slots=True)
class Spec:
    """One run.

    Parameters
    ----------
    policy, load, seed, fleet, arrivals, size_cv, tasks, warmup
        As for ``owl simulate``, on Gavel's table.
    steal
        Seconds between two looks for idle queues; None: never.
    routers, view_age
        As for ``owl simulate``.
    slow_gpu
        Whether the last GPU runs at a quarter of its speed for a while.
    misfits
        Number of task types that run out of memory on the first GPU model.
    prior_error
        Above 0: the policy starts from service times that are off by a lognormal factor of this
        width, rather than from nothing.

    """

    policy: str
    load: float
    seed: int
    fleet: str = "k80=4,p100=4,v100=4"
    arrivals: str = "poisson"
    size_cv: float = 0.3
    tasks: int = 70_000
    warmup: int = 20_000
    steal: float | None = None
    routers: int = 1
    view_age: float = 0.0
    slow_gpu: bool = False
    misfits: int = 0
    prior_error: float = 0.0

    def key(self) -> str:
        """Identity of the result: what is run, and the code that runs it."""
        return json.dumps([asdict(self), fingerprint(self.policy)], sort_keys=True)


@cache
def fingerprint(policy: str) -> str:
    """Hash of the code that a run depends on, comments and layout aside."""
    simulate = SOURCE / "simulate"
    own = simulate / "baselines" if policy in BASELINES else SOURCE / "policies"
    sources = [SOURCE / "fleet.py", SOURCE / "types.py"]
    for folder in (simulate, own):
        sources += sorted(folder.glob("*.py"))
    digest = hashlib.sha256()
    for source in sources:
        digest.update(ast.dump(ast.parse(source.read_text(encoding="utf-8"))).encode())
    return digest.hexdigest()[:16]


def run(spec: Spec) -> Figures:
    """Simulate; the figures of a ``Row`` and those that only this benchmark has."""
    table = gavel_table()
    gpus = parse_fleet(spec.fleet)
    if spec.misfits:
        table = _with_misfits(table, sorted(gpus)[0], spec)
    conditions = Conditions(steal_seconds=spec.steal, routers=spec.routers, view_age=spec.view_age)
    scenario = Scenario(
        table,
        gpus,
        load=spec.load,
        arrivals=spec.arrivals,
        tasks=spec.tasks,
        warmup=spec.warmup,
        size_cv=spec.size_cv,
    )
    instance, tasks, rate = scenario.world(spec.seed)
    if spec.slow_gpu:
        begin, end = (float(tasks.times[index]) for index in FAULT_TASKS)
        victim = instance.fleet().names[-1]
        conditions = replace(
            conditions,
            faults=(
                Fault(begin, Action.THROTTLE, victim, value=0.25),
                Fault(end, Action.THROTTLE, victim, value=1.0),
            ),
        )
    contender = make_contender(spec.policy, instance, rate, spec.seed)
    if spec.prior_error > 0.0 and isinstance(contender, Policy):
        _teach_prior(contender, instance, spec)
    began = time.perf_counter()
    result = Simulation(instance, tasks, contender, conditions, spec.seed).run()
    speed = len(tasks) / (time.perf_counter() - began)
    row = figures(result, spec.policy, spec.load, spec.seed, spec.warmup, speed)
    first = result.response[:CURVE_TASKS]
    bins = first[: len(first) // CURVE_BIN * CURVE_BIN].reshape(-1, CURVE_BIN)
    extra: Figures = {"curve": [round(float(value), 4) for value in bins.mean(axis=1)]}
    if spec.slow_gpu:
        extra["p99_in_fault"] = float(np.percentile(result.response[slice(*FAULT_TASKS)], 99))
    return {**row.as_json(), **extra}


def _with_misfits(table: ServiceTable, model: str, spec: Spec) -> ServiceTable:
    rows = np.random.default_rng([spec.seed, 6]).choice(
        len(table.types), spec.misfits, replace=False
    )
    seconds = table.seconds.copy()
    seconds[rows, table.models.index(model)] = math.nan
    return ServiceTable(table.types, table.models, seconds)


def _teach_prior(policy: Policy, instance: Instance, spec: Spec) -> None:
    """Have the policy learn a few wrong samples of each pair before the first task."""
    rng = np.random.default_rng([spec.seed, 7])
    fleet = instance.fleet()
    queue_of = {fleet.gpu_model(row): name for row, name in enumerate(fleet.names)}
    for kind, name in enumerate(instance.table.types):
        for column, model in enumerate(instance.table.models):
            seconds = float(instance.table.seconds[kind, column])
            seconds *= float(np.exp(spec.prior_error * rng.standard_normal()))
            for sample in range(PRIOR_SAMPLES):
                outcome = Outcome(
                    task_id=f"prior.{kind}.{column}.{sample}",
                    decision_id="prior",
                    attempt=0,
                    task_type=name,
                    size=1.0,
                    queue=queue_of[model],
                    worker_id=queue_of[model],
                    gpu_model=model,
                    state=TryState.SUCCESS,
                    service_seconds=seconds,
                    finished_at=0.0,
                )
                policy.learn_one(outcome, 0.0)


class Results:
    """Figures of the runs that were made with the code as it is now.

    Parameters
    ----------
    path
        A file of one JSON value a line, ``[key, figures]``; made when missing.

    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, Figures] = {}
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                key, value = json.loads(line)
                self._known[key] = value

    def get(self, spec: Spec) -> Figures | None:
        """Figures of a run; None when it is still to be made."""
        return self._known.get(spec.key())

    def complete(
        self, specs: Sequence[Spec], processes: int, until: float
    ) -> Iterator[tuple[Spec, Figures]]:
        """Make the runs that are missing, and yield and keep each as it ends.

        Parameters
        ----------
        specs
            In order of importance.
        processes
            Processes to use.
        until
            Time by ``time.monotonic`` after which no run is begun.

        """
        missing = [spec for spec in dict.fromkeys(specs) if self.get(spec) is None]
        if processes == 1:
            for spec in missing:
                if time.monotonic() >= until:
                    return
                yield spec, self._keep(spec, run(spec))
            return
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            queue = iter(missing)
            waiting: dict[Future[Figures], Spec] = {}
            for spec in queue:
                waiting[pool.submit(run, spec)] = spec
                if len(waiting) < processes:
                    continue
                for future in as_completed(list(waiting)):
                    done = waiting.pop(future)
                    yield done, self._keep(done, future.result())
                    break
                if time.monotonic() >= until:
                    break
            for future in as_completed(list(waiting)):
                yield waiting[future], self._keep(waiting[future], future.result())

    def _keep(self, spec: Spec, value: Figures) -> Figures:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps([spec.key(), value]) + "\n")
        self._known[spec.key()] = value
        return value
