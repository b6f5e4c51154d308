"""The event loop: queues served one task at a time in order of arrival, on a virtual clock."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from owl_celery.errors import NoOpenQueueError
from owl_celery.fleet import WaitingTasks
from owl_celery.policies.base import Policy
from owl_celery.simulate.arrivals import Arrivals
from owl_celery.simulate.book import TaskBook
from owl_celery.simulate.central import Central
from owl_celery.simulate.conditions import Conditions, Run
from owl_celery.simulate.faults import Action, Fault
from owl_celery.simulate.instance import Instance
from owl_celery.simulate.servers import Servers
from owl_celery.simulate.views import StaleViews
from owl_celery.types import TryState


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

    Examples
    --------
    >>> from owl_celery.simulate import gavel_table, make_contender, poisson
    >>> instance = Instance.draw(gavel_table(), {"k80": 2, "v100": 2}, seed=0)
    >>> rate = 0.5 * instance.capacity.rate
    >>> tasks = poisson(rate, instance.mix, count=2000, size_cv=0.3, seed=0)
    >>> means = []
    >>> for name in ("shortest_queue", "jsed_oracle"):
    ...     policy = make_contender(name, instance, rate, seed=0)
    ...     means.append(Simulation(instance, tasks, policy).run().response.mean())
    >>> bool(means[1] < means[0])
    True

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
        self.fleet = instance.fleet()
        self._policy = policy if isinstance(policy, Policy) else None
        self._central = policy if isinstance(policy, Central) else None
        self._name = policy.name
        self._predict = policy.predict_seconds
        self._learns = self._overrides("learn_one")
        self._counts = self._overrides("arrived")

        self._book = TaskBook(arrivals, instance.table.types, self.conditions.size_feature)
        self._servers = Servers(self.fleet)
        self._row = {name: row for row, name in enumerate(self.fleet.names)}
        self._model_of = [self.fleet.gpu_model(row) for row in range(len(self.fleet))]
        self._types = instance.table.types
        by_queue = instance.table.seconds[:, self.fleet.model_index]
        self._seconds: list[list[float]] = by_queue.tolist()
        self._failing = np.zeros(by_queue.shape)
        self._can_fail = False
        self._random = np.random.default_rng([seed, 4])
        age = self.conditions.view_age
        self._views = StaleViews(self.fleet, self.conditions.routers, age) if age > 0.0 else None

        self._events: list[tuple[float, int, Callable[..., None], Any]] = []
        self._scheduled = 0
        self._stolen = 0
        self._parked: list[int] = []
        self._faults_left = len(self.conditions.faults)

    def run(self, progress: Callable[[int], None] | None = None) -> Run:
        """Run until every task has ended or can never end; once for each object.

        Parameters
        ----------
        progress
            Called now and then with the number of tasks that have arrived since the last call.

        """
        self._schedule_regular()
        book, events, times = self._book, self._events, self._book.times
        count, arrived, told = len(times), 0, 0
        while book.unsettled and (arrived < count or events):
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
            if arrived == count and len(self._parked) == book.unsettled and not self._faults_left:
                break
        if progress is not None and arrived > told:
            progress(arrived - told)
        return book.run(self._stolen)

    def _overrides(self, method: str) -> bool:
        """Whether the policy has its own version of a method; the base's needs no call."""
        policy = self._policy
        return policy is not None and getattr(type(policy), method) is not getattr(Policy, method)

    def _at(self, time: float, act: Callable[..., None], argument: Any = None) -> None:
        self._scheduled += 1
        heapq.heappush(self._events, (time, self._scheduled, act, argument))

    def _schedule_regular(self) -> None:
        for fault in self.conditions.faults:
            self._at(fault.time, self._strike, fault)
        if self._overrides("tick"):
            self._at(0.0, self._tick)
        if self.conditions.steal_seconds is not None and self._overrides("steal"):
            self._at(self.conditions.steal_seconds, self._look_for_idle)
        if self._views is not None:
            self._at(self._views.interval, self._publish)

    # From arrival to start.

    def _arrive(self, index: int, now: float) -> None:
        if self._counts and self._policy is not None:
            self._policy.arrived(self._book.views[index], now)
        self._route(index, now)

    def _route(self, index: int, now: float) -> None:
        """Choose the queue of a new task or of another try."""
        view = self._book.views[index]
        if self._policy is None:
            if self._central is not None:
                self._central.hold(index, view)
            return
        router = index % self.conditions.routers
        fleet = self.fleet if self._views is None else self._views.seen_by(router, now)
        try:
            decision = self._policy.choose(view, fleet, now)
        except NoOpenQueueError:
            self._parked.append(index)
            return
        row = self._row[decision.queue]
        self._book.decided(index, decision)
        seconds = self._book.counted_seconds(index)
        if self._views is not None:
            self._views.assigned(router, row, seconds, now)
        server = self._servers[row]
        if not server.is_up:
            # An old view showed a queue that is gone; its tasks are routed again.
            self._at(now + self.conditions.view_age, self._route, index)
        elif server.running < 0:
            self._start(index, row, now)
        else:
            self._servers.join(row, index, seconds)

    def _release(self, central: Central, now: float) -> None:
        while self._servers.idle:
            released = central.release(self._servers.idle, self.fleet, now)
            if released is None:
                return
            index, row = released
            view = self._book.views[index]
            self._book.predict(index, self._predict(view, self._model_of[row]))
            self._start(index, row, now)

    def _start(self, index: int, row: int, now: float) -> None:
        server = self._servers[row]
        kind = self._book.kinds[index]
        mean = self._seconds[kind][row]
        server.fails = math.isnan(mean) or (
            self._can_fail and float(self._random.random()) < self._failing[kind, row]
        )
        work = self.conditions.failure_seconds if server.fails else mean * self._book.sizes[index]
        wanted = self._book.views[index].model
        if wanted is not None and wanted != server.loaded:
            work += self.conditions.switch_seconds
            server.loaded = wanted
        self._servers.start(row, index, work, self._book.counted_seconds(index), now)
        self._at(server.ends, self._finish, (row, server.starts))

    # From the end of a try to the next start.

    def _finish(self, which: tuple[int, int], now: float) -> None:
        row, starts = which
        server = self._servers[row]
        if server.starts != starts or server.running < 0:
            return
        index = self._servers.end(row)
        failed = server.fails
        if failed:
            is_short = math.isnan(self._seconds[self._book.kinds[index]][row])
            self._end_try(index, row, TryState.RETRY, is_short, now)
        else:
            self._end_try(index, row, TryState.SUCCESS, False, now)
        if server.waiting:
            self._start(self._servers.leave(row)[0], row, now)
        if failed:
            self._retry(index, now)

    def _end_try(
        self, index: int, row: int, state: TryState, out_of_memory: bool, now: float
    ) -> None:
        model = self._model_of[row]
        if self._learns and self._policy is not None:
            started = self._servers[row].started
            outcome = self._book.outcome(
                index, self.fleet.names[row], model, self._name, state, out_of_memory, started, now
            )
            self._policy.learn_one(outcome, now)
        self._book.end_try(index, row, model, state, out_of_memory, now)

    def _retry(self, index: int, now: float) -> None:
        if self._book.tries(index) >= self.conditions.max_tries:
            self._book.give_up(index, now)
        else:
            self._book.published[index] = now
            self._route(index, now)

    # What happens regularly, and what goes wrong.

    def _tick(self, _: None, now: float) -> None:
        if self._policy is not None:
            self._policy.tick(self.fleet, now)
        self._at(now + self.conditions.policy_tick_seconds, self._tick)

    def _publish(self, _: None, now: float) -> None:
        if self._views is not None:
            self._views.publish(now)
            self._at(now + self._views.interval, self._publish)

    def _look_for_idle(self, _: None, now: float) -> None:
        waiting: WaitingTasks | None = None
        for row in list(self._servers.idle):
            if not self._servers.waiting_count:
                break
            if waiting is None:
                book = self._book
                waiting = self._servers.waiting_tasks(book.views, book.published, now)
            if self._steal(row, waiting, now):
                waiting = None
        if self.conditions.steal_seconds is not None:
            self._at(now + self.conditions.steal_seconds, self._look_for_idle)

    def _steal(self, row: int, waiting: WaitingTasks, now: float) -> bool:
        """Have an idle queue take the waiting task that the policy names; False for none."""
        taken = None
        if self._policy is not None:
            taken = self._policy.steal(row, waiting, self.fleet, now)
        if taken is None:
            return False
        source = int(waiting.rows[taken])
        position = len(self._servers[source].waiting) - 1 - int(waiting.behind_count[taken])
        index, _ = self._servers.leave(source, position)
        predicted = self._predict(self._book.views[index], self._model_of[row])
        if predicted is not None:
            self._book.predict(index, predicted)
        self._stolen += 1
        self._start(index, row, now)
        return True

    def _strike(self, fault: Fault, now: float) -> None:
        self._faults_left -= 1
        if fault.action is Action.FAIL:
            kinds = [k for k, name in enumerate(self._types) if fault.task_type in ("", name)]
            for row, name in enumerate(self.fleet.names):
                if fault.target in (name, self._model_of[row]):
                    self._failing[kinds, row] = fault.value
            self._can_fail = bool(self._failing.any())
            return
        row = self._row[fault.target]
        server = self._servers[row]
        if fault.action is Action.THROTTLE:
            self._servers.throttle(row, fault.value, now)
            if server.running >= 0:
                self._at(server.ends, self._finish, (row, server.starts))
        elif fault.action is Action.STOP and server.is_up:
            waiting = self._servers.close(row)
            if server.running >= 0:
                index = self._servers.end(row)
                self._end_try(index, row, TryState.LOST, False, now)
                self._retry(index, now)
            for index in waiting:
                self._route(index, now)
        elif fault.action is Action.RETURN and not server.is_up:
            self._servers.open(row)
            parked, self._parked = self._parked, []
            for index in parked:
                self._route(index, now)
