"""Routers and policies of somebody's that are mistaken."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Final

from benchmarks.faults.application import WORK, make_app
from benchmarks.faults.cluster import Cluster
from benchmarks.faults.database import DatabaseFault
from benchmarks.faults.fault import Fault, Trial
from benchmarks.faults.ledger import Account
from benchmarks.faults.load import Publication, Publisher
from owl_celery.fleet import Fleet
from owl_celery.installation import parts_of, uninstall
from owl_celery.policies.base import Policy
from owl_celery.router import LearningRouterMixin
from owl_celery.snapshot import Snapshot
from owl_celery.sync import ProducerSync
from owl_celery.types import Decision, TaskView

NAN: Final = float("nan")
SIZES: Final = {"NaN size": NAN, "negative size": -1.0, "endless size": float("inf")}
SECONDS: Final = {"NaN seconds": NAN, "negative seconds": -5.0, "endless seconds": float("inf")}
DECISIONS: Final = ("policy raises", "unknown queue", "queue is no text", "no decision", *SECONDS)
MISTAKES: Final = ("router raises", "no view", *SIZES, *DECISIONS)


class MistakenPolicy(Policy):
    """Makes one of the mistakes with every task."""

    name = "mistaken"

    def __init__(self, mistake: str) -> None:
        self._mistake = mistake

    def choose(self, task: TaskView, fleet: Fleet, now: float) -> Decision:
        if self._mistake == "policy raises":
            raise ZeroDivisionError
        if self._mistake == "no decision":
            return None  # type: ignore[return-value]
        queue: Any = fleet.names[0]
        if self._mistake == "unknown queue":
            queue = "gpu.nowhere.0"
        elif self._mistake == "queue is no text":
            queue = 7
        seconds = SECONDS.get(self._mistake, 1.0)
        return Decision(queue, "k80", self.name, seconds, seconds, propensity=seconds)


class MistakenSync:
    """The load view of a process, with a mistaken policy in place of the best."""

    def __init__(self, sync: ProducerSync) -> None:
        self.sync = sync
        self.mistake = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sync, name)

    def snapshot(self) -> Snapshot | None:
        """The latest snapshot."""
        found = self.sync.snapshot()
        if found is None or self.mistake not in DECISIONS:
            return found
        return replace(found, policies=[MistakenPolicy(self.mistake), *found.policies[1:]])


class MistakenRouter(LearningRouterMixin):
    """A router of somebody's, which makes whatever mistake is set."""

    def __init__(self, sync: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(sync, *args, **kwargs)
        self.mistaken = MistakenSync(sync)
        self.sync: Any = self.mistaken

    def declines(self, name: str, options: Mapping[str, Any]) -> bool:
        if self.mistaken.mistake == "router raises":
            raise KeyError(name)
        return super().declines(name, options)

    def task_view(
        self,
        name: str,
        args: Sequence[Any] | None,
        kwargs: Mapping[str, Any] | None,
        task: object | None,
        tried: frozenset[str],
    ) -> TaskView:
        if self.mistaken.mistake == "no view":
            return None  # type: ignore[return-value]
        return TaskView(name, SIZES.get(self.mistaken.mistake, 1.0), tried=tried)


class RouterMistaken(Fault):
    """Routers and policies raise, and say NaN, negative numbers and queues that do not exist."""

    name = "router mistaken"
    strikes = (
        f"a router and a policy that make mistakes, each with some tasks: {', '.join(MISTAKES)}"
    )
    must = (
        "each mistake is counted, the task goes by a simpler policy or Celery's own route, and runs"
    )
    plan = DatabaseFault.plan
    limit_seconds = 10.0
    tasks = 10 * len(MISTAKES)
    over_seconds = 6.0
    most_seconds = 0.05
    window = (0.0, 0.1)
    each: ClassVar[int] = 10

    def publisher(self, cluster: Cluster, draw: random.Random) -> Publisher:
        self._app = make_app(cluster.addresses, "owl", router_class=MistakenRouter)
        self._parts = parts_of(self._app)
        router: Any = self._parts.router
        mistakes = list(MISTAKES) * self.each
        draw.shuffle(mistakes)
        cluster.wait(lambda: self._parts.sync.snapshot() is not None, "a view", 10.0)

        def send(one: Publication) -> None:
            router.mistaken.mistake = mistakes.pop()
            self._app.send_task(WORK, (one.number, one.seconds))

        return Publisher(self._app, self.publications(cluster, draw), send)

    def strike(self, cluster: Cluster, trial: Trial, draw: random.Random) -> None:
        """The publisher's router does."""

    def judge(self, cluster: Cluster, trial: Trial, publisher: Publisher, account: Account) -> None:
        found = self._parts.router.fallbacks.copy()
        trial.parameters["fallbacks"] = dict(found)
        counted = {
            "error": self.each,
            "bad_refinement": self.each * (1 + len(SIZES)),
            "policy_error": self.each * len(DECISIONS),
        }
        for reason, count in counted.items():
            trial.check(f"all {count} counted as {reason}", found[reason], found[reason] == count)
        trial.check("publishing raised nothing", trial.refused, trial.refused == 0)
        # What was said of it must be fit for Redis: else no view comes any more.
        before = self._parts.sync.failures
        time.sleep(0.2)
        self._parts.sync.flush()
        failures = self._parts.sync.failures
        trial.check("syncs that failed", failures, failures == before == 0)
        queues = set(cluster.redis.keys("gpu.*"))
        trial.check("nothing waits in a queue that nobody serves", sorted(queues), not queues)

    def close(self) -> None:
        uninstall(self._app)
        self._app.close()
