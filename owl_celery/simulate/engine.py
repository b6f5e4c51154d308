"""The event loop: queues served one task at a time in order of arrival, on a virtual clock."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from owl_celery.errors import NoOpenQueueError
from owl_celery.fleet import WaitingTasks
from owl_celery.policies.base import Policy
from owl_celery.simulate.arrivals import Arrivals
from owl_celery.simulate.central import Central
from owl_celery.simulate.faults import Action, Fault
from owl_celery.simulate.instance import Instance
from owl_celery.simulate.views import StaleViews
from owl_celery.types import Outcome, TaskView, TryState

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

UNPREDICTED_SECONDS: Final = 1.0
"""Counted for a task whose policy does not predict."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """How the world behaves besides its service times.

    Parameters
    ----------
    size_feature
        Whether policies are told the size of a task.
    steal_seconds
        Pause between two looks for waiting tasks that an idle queue could take; None: never.
    routers
        Number of routers that tasks come from in turn.
    view_age
        Age in seconds of the load that routers see; 0: always fresh.
    switch_seconds
        Time to load another model than that of the queue's last task.
    failure_seconds
        Time that a failing try wastes.
    max_tries
        Tries after which a task is given up.
    policy_tick_seconds
        Pause between two calls of the policy's ``tick``.
    faults
        Events, in order of time.

    """

    size_feature: bool = False
    steal_seconds: float | None = None
    routers: int = 1
    view_age: float = 0.0
    switch_seconds: float = 0.0
    failure_seconds: float = 0.1
    max_tries: int = 10
    policy_tick_seconds: float = 1.0
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True, eq=False)
class Run:
    """What happened to each of n tasks, in order of arrival.

    Parameters
    ----------
    arrived
        Seconds, shape (n,).
    response
        Seconds from arrival to the end of the last try; NaN while none can run, shape (n,).
    tries
        Tries of each task, shape (n,).
    queues
        Row of the queue that served the last try, shape (n,).
    lost
        Tasks given up after ``max_tries``.
    stolen
        Tasks moved to an idle queue while they waited.
    explored
        Decisions that the policy called exploration.

    """

    arrived: Floats
    response: Floats
    tries: Ints
    queues: Ints
    lost: int
    stolen: int
    explored: int


@dataclass(slots=True)
class _Queue:
    """One GPU."""

    speed: float = 1.0
    is_up: bool = True
    running: int = -1
    ends: float = 0.0
    started: float = 0.0
    fails: bool = False
    generation: int = 0
    loaded: str | None = None
    waiting: deque[int] = field(default_factory=deque)


class Simulation:
    """One run of one policy on one instance.

    Parameters
    ----------
    instance
        What is true.
    arrivals
        The tasks.
    policy
        Chooses, and learns; a ``Central`` holds the tasks itself.
    conditions
        How the world behaves.
    seed
        Of what is drawn while the run goes on (random failures).

    """

    def __init__(
        self,
        instance: Instance,
        arrivals: Arrivals,
        policy: Policy | Central,
        conditions: Conditions | None = None,
        seed: int = 0,
    ) -> None:
        self.conditions = conditions or Conditions()
        self.policy = policy
        self.fleet = instance.fleet()
        self._central = policy if isinstance(policy, Central) else None
        self._types = instance.table.types
        self._models = self.fleet.models
        self._model_of = [int(m) for m in self.fleet.model_index]
        self._seconds: list[list[float]] = instance.table.seconds.tolist()
        self._failing = np.zeros(instance.table.seconds.shape)
        self._can_fail = False
        self._rng = np.random.default_rng([seed, 4])
        self._row = {name: row for row, name in enumerate(self.fleet.names)}
        self._queues = [_Queue() for _ in self.fleet.names]
        self._idle = dict.fromkeys(range(len(self.fleet)))
        self._waiting = 0
        self._events: list[tuple[float, int, Callable[..., None], Any]] = []
        self._sequence = 0
        self._unsettled = len(arrivals)
        self._parked: list[int] = []
        age = self.conditions.view_age
        self._views = StaleViews(self.fleet, self.conditions.routers, age) if age > 0.0 else None

        count = len(arrivals)
        self._times: list[float] = arrivals.times.tolist()
        self._type: list[int] = arrivals.types.tolist()
        self._size: list[float] = arrivals.sizes.tolist()
        self._model = list(arrivals.models) if arrivals.models else [None] * count
        plain: dict[tuple[int, str | None], TaskView] = {}
        if self.conditions.size_feature:
            self._view = [
                TaskView(self._types[k], size, model)
                for k, size, model in zip(self._type, self._size, self._model, strict=True)
            ]
        else:
            for key in zip(self._type, self._model, strict=True):
                if key not in plain:
                    plain[key] = TaskView(self._types[key[0]], 1.0, key[1])
            self._view = [plain[key] for key in zip(self._type, self._model, strict=True)]
        self._predicted: list[float | None] = [None] * count
        self._explored = [False] * count
        self._tries = [0] * count
        self._end = [float("nan")] * count
        self._served_by = [-1] * count
        self._lost = 0
        self._stolen = 0
        self._explorations = 0

        self._learns = isinstance(policy, Policy) and _overrides(policy, "learn_one")
        self._counts = isinstance(policy, Policy) and _overrides(policy, "arrived")

    def run(self, progress: Callable[[int], None] | None = None) -> Run:
        """Run until every task has ended or can never end.

        Parameters
        ----------
        progress
            Called now and then with the number of tasks that have arrived since the last call.

        """
        self._schedule_regular()
        events, times = self._events, self._times
        count, arrived, told = len(times), 0, 0
        while self._unsettled and (arrived < count or events):
            if arrived < count and (not events or times[arrived] <= events[0][0]):
                now = times[arrived]
                self._arrive(arrived, now)
                arrived += 1
                if progress is not None and arrived - told >= 1000:
                    progress(arrived - told)
                    told = arrived
            else:
                now, _, act, argument = heapq.heappop(events)
                act(argument, now)
            if self._central is not None:
                self._release(self._central, now)
            if arrived == count and len(self._parked) == self._unsettled and not self._faults_left:
                break
        if progress is not None and arrived > told:
            progress(arrived - told)
        ends = np.array(self._end)
        return Run(
            arrived=np.array(times),
            response=ends - np.array(times),
            tries=np.array(self._tries),
            queues=np.array(self._served_by),
            lost=self._lost,
            stolen=self._stolen,
            explored=self._explorations,
        )

    def _at(self, time: float, act: Callable[..., None], argument: Any = None) -> None:
        self._sequence += 1
        heapq.heappush(self._events, (time, self._sequence, act, argument))

    def _schedule_regular(self) -> None:
        self._faults_left = len(self.conditions.faults)
        for fault in self.conditions.faults:
            self._at(fault.time, self._strike, fault)
        if isinstance(self.policy, Policy):
            if _overrides(self.policy, "tick"):
                self._at(0.0, self._tick)
            if self.conditions.steal_seconds is not None and _overrides(self.policy, "steal"):
                self._at(self.conditions.steal_seconds, self._look_for_idle)
        if self._views is not None:
            self._at(self._views.interval, self._publish)

    # Arrival to start

    def _arrive(self, index: int, now: float) -> None:
        if self._counts:
            self.policy.arrived(self._view[index], now)  # type: ignore[union-attr]
        self._route(index, now)

    def _route(self, index: int, now: float) -> None:
        """Choose the queue of a new task or of another try."""
        view = self._view[index]
        if self._central is not None:
            self._central.hold(index, view)
            return
        policy = self.policy
        assert isinstance(policy, Policy)
        router = index % self.conditions.routers
        fleet = self.fleet if self._views is None else self._views.seen_by(router, now)
        try:
            decision = policy.choose(view, fleet, now)
        except NoOpenQueueError:
            self._parked.append(index)
            return
        row = self._row[decision.queue]
        predicted = decision.service_seconds
        self._predicted[index] = predicted
        self._explored[index] = decision.explored
        self._explorations += decision.explored
        seconds = UNPREDICTED_SECONDS if predicted is None else predicted
        if self._views is not None:
            self._views.assigned(router, row, seconds, now)
        queue = self._queues[row]
        if not queue.is_up:
            # A router with an old view chose a queue that is gone: it is routed again.
            self._at(now + self.conditions.view_age, self._reroute, index)
        elif queue.running < 0:
            self._start(index, row, now)
        else:
            queue.waiting.append(index)
            self._waiting += 1
            self.fleet.waiting_count[row] += 1
            self.fleet.waiting_seconds[row] += seconds

    def _reroute(self, index: int, now: float) -> None:
        self._route(index, now)

    def _release(self, central: Central, now: float) -> None:
        while self._idle:
            released = central.release(self._idle, self.fleet, now)
            if released is None:
                return
            index, row = released
            view = self._view[index]
            self._predicted[index] = central.predict_seconds(
                view, self._models[self._model_of[row]]
            )
            self._start(index, row, now)

    def _start(self, index: int, row: int, now: float) -> None:
        queue = self._queues[row]
        kind, model = self._type[index], self._model_of[row]
        mean = self._seconds[kind][model]
        queue.fails = mean != mean or (
            self._can_fail and float(self._rng.random()) < self._failing[kind, model]
        )
        work = self.conditions.failure_seconds if queue.fails else mean * self._size[index]
        wanted = self._model[index]
        if wanted is not None and wanted != queue.loaded:
            work += self.conditions.switch_seconds
            queue.loaded = wanted
        queue.running = index
        queue.started = now
        queue.ends = now + work / queue.speed
        queue.generation += 1
        self._idle.pop(row, None)
        predicted = self._predicted[index]
        fleet = self.fleet
        fleet.running_seconds[row, 0] = (
            UNPREDICTED_SECONDS if predicted is None else max(predicted, 1e-9)
        )
        fleet.running_since[row, 0] = now
        self._at(queue.ends, self._finish, (row, queue.generation))

    # End to the next start

    def _finish(self, which: tuple[int, int], now: float) -> None:
        row, generation = which
        queue = self._queues[row]
        if queue.generation != generation or queue.running < 0:
            return
        index = queue.running
        queue.running = -1
        self.fleet.running_seconds[row, 0] = 0.0
        out_of_memory = (
            queue.fails
            and self._seconds[self._type[index]][self._model_of[row]]
            != (self._seconds[self._type[index]][self._model_of[row]])
        )
        state = TryState.RETRY if queue.fails else TryState.SUCCESS
        self._end_try(index, row, state, out_of_memory, now)
        self._next(row, now)
        if queue.fails or state is not TryState.SUCCESS:
            self._retry(index, now)

    def _next(self, row: int, now: float) -> None:
        """Start what waits at a queue that has nothing to do, or have it take work elsewhere."""
        queue = self._queues[row]
        if not queue.is_up or queue.running >= 0:
            return
        if queue.waiting:
            self._start(self._leave(row, 0), row, now)
        else:
            self._idle[row] = None

    def _leave(self, row: int, position: int) -> int:
        """Take a task out of the waiting line of a queue."""
        queue, fleet = self._queues[row], self.fleet
        index = queue.waiting[position]
        del queue.waiting[position]
        self._waiting -= 1
        predicted = self._predicted[index]
        fleet.waiting_count[row] -= 1
        if queue.waiting:
            fleet.waiting_seconds[row] -= UNPREDICTED_SECONDS if predicted is None else predicted
        else:
            fleet.waiting_seconds[row] = 0.0
        return index

    def _end_try(
        self, index: int, row: int, state: TryState, out_of_memory: bool, now: float
    ) -> None:
        queue = self._queues[row]
        attempt = self._tries[index]
        self._tries[index] += 1
        self._served_by[index] = row
        view = self._view[index]
        if self._learns:
            outcome = Outcome(
                task_id=str(index),
                decision_id=f"{index}.{attempt}",
                attempt=attempt,
                task_type=view.task_type,
                size=view.size,
                queue=self.fleet.names[row],
                worker_id=self.fleet.names[row],
                gpu_model=self._models[self._model_of[row]],
                state=state,
                service_seconds=now - queue.started,
                finished_at=now,
                wait_seconds=queue.started - self._times[index],
                predicted_seconds=self._predicted[index],
                algorithm=self.policy.name,
                explored=self._explored[index],
                error=None if state is TryState.SUCCESS else "RuntimeError",
                out_of_memory=out_of_memory,
                model=view.model,
            )
            self.policy.learn_one(outcome, now)  # type: ignore[union-attr]
        if state is TryState.SUCCESS:
            self._end[index] = now
            self._unsettled -= 1
        elif out_of_memory and self._central is None:
            tried = view.tried | {self._models[self._model_of[row]]}
            self._view[index] = TaskView(view.task_type, view.size, view.model, tried)

    def _retry(self, index: int, now: float) -> None:
        if self._tries[index] >= self.conditions.max_tries:
            self._end[index] = now
            self._lost += 1
            self._unsettled -= 1
        else:
            self._route(index, now)

    # What happens regularly, and what goes wrong

    def _tick(self, _: None, now: float) -> None:
        self.policy.tick(self.fleet, now)  # type: ignore[union-attr]
        self._at(now + self.conditions.policy_tick_seconds, self._tick)

    def _publish(self, _: None, now: float) -> None:
        assert self._views is not None
        self._views.publish(now)
        self._at(now + self._views.interval, self._publish)

    def _look_for_idle(self, _: None, now: float) -> None:
        for row in list(self._idle):
            if not self._waiting:
                break
            self._steal(row, now)
        assert self.conditions.steal_seconds is not None
        self._at(now + self.conditions.steal_seconds, self._look_for_idle)

    def _steal(self, row: int, now: float) -> None:
        policy = self.policy
        assert isinstance(policy, Policy)
        waiting = self._waiting_tasks(now)
        taken = policy.steal(row, waiting, self.fleet, now)
        if taken is None:
            return
        source = int(waiting.rows[taken])
        position = len(self._queues[source].waiting) - 1 - int(waiting.behind_count[taken])
        index = self._leave(source, position)
        predicted = policy.predict_seconds(self._view[index], self._models[self._model_of[row]])
        self._predicted[index] = self._predicted[index] if predicted is None else predicted
        self._stolen += 1
        self._start(index, row, now)

    def _waiting_tasks(self, now: float) -> WaitingTasks:
        lines = [queue.waiting for queue in self._queues]
        indices = list(chain.from_iterable(lines))
        counts = np.array([len(line) for line in lines])
        ends = np.cumsum(counts)
        rows = np.repeat(np.arange(len(lines)), counts)
        seconds = np.array(
            [UNPREDICTED_SECONDS if (p := self._predicted[i]) is None else p for i in indices]
        )
        before = np.concatenate([[0.0], np.cumsum(seconds)])
        ahead = before[:-1] - before[(ends - counts)[rows]] + self.fleet.residual_seconds(now)[rows]
        return WaitingTasks(
            tasks=[self._view[i] for i in indices],
            rows=rows,
            service_seconds=seconds,
            ahead_seconds=ahead,
            behind_count=ends[rows] - 1 - np.arange(len(indices)),
            published_at=np.array([self._times[i] for i in indices]),
        )

    def _strike(self, fault: Fault, now: float) -> None:
        self._faults_left -= 1
        if fault.action is Action.FAIL:
            kinds = [k for k, name in enumerate(self._types) if fault.task_type in ("", name)]
            self._failing[kinds, self._models.index(fault.target)] = fault.value
            self._can_fail = bool(self._failing.any())
            return
        row = self._row[fault.target]
        queue = self._queues[row]
        if fault.action is Action.THROTTLE:
            rest = max(queue.ends - now, 0.0) * queue.speed / fault.value
            queue.speed = fault.value
            if queue.running >= 0:
                queue.ends = now + rest
                queue.generation += 1
                self._at(queue.ends, self._finish, (row, queue.generation))
        elif fault.action is Action.STOP and queue.is_up:
            queue.is_up = False
            self.fleet.is_open[row] = False
            self._idle.pop(row, None)
            moved = [self._leave(row, 0) for _ in range(len(queue.waiting))]
            if queue.running >= 0:
                index, queue.running = queue.running, -1
                self.fleet.running_seconds[row, 0] = 0.0
                self._end_try(index, row, TryState.LOST, False, now)
                self._retry(index, now)
            for index in moved:
                self._route(index, now)
        elif fault.action is Action.RETURN and not queue.is_up:
            queue.is_up = True
            queue.loaded = None
            self.fleet.is_open[row] = True
            self._idle[row] = None
            parked, self._parked = self._parked, []
            for index in parked:
                self._route(index, now)


def _overrides(policy: Policy, method: str) -> bool:
    """Whether a policy has its own version of a method; the base's needs no call."""
    return getattr(type(policy), method) is not getattr(Policy, method)
