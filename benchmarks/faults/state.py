"""The Redis with load and learning state is slow, cut or a black hole; the broker is elsewhere."""

from __future__ import annotations

import random
import time
from typing import ClassVar

from benchmarks.faults.cluster import Cluster
from benchmarks.faults.fault import Fault, Trial, check_latencies
from benchmarks.faults.ledger import Account
from benchmarks.faults.load import Publisher
from benchmarks.faults.plan import Plan
from benchmarks.faults.proxy import Proxy

LEARN_SECONDS = 20.0


class StateFault(Fault):
    """Something is wrong with the state's Redis for 12 s; a proxy plays it."""

    must = (
        "publishing takes as long as before; every task runs, by simpler policies and then by "
        "Celery's own route; routing and learning recover by themselves"
    )
    recovery = "from the end of the fault until tasks go where the policy says again"
    plan = Plan(proxied="state")
    limit_seconds = 10.0
    # Many short ones: the 99th percentile is to be of some hundreds.
    tasks = 2_400
    over_seconds = 60.0
    least_seconds = 0.005
    most_seconds = 0.03
    until_mended = True
    lasts_seconds: ClassVar[float] = 12.0
    reasons: ClassVar[tuple[str, ...]] = ("stale_view", "dead_view")
    """Reasons of the router that must have been counted."""

    def hurt(self, proxy: Proxy) -> None:
        """Let the proxy be in the way."""
        raise NotImplementedError

    def strike(self, cluster: Cluster, trial: Trial, draw: random.Random) -> None:
        router = cluster.parts.router
        before = router.fallbacks.copy()
        self._since = time.monotonic()
        self.hurt(cluster.proxy)
        time.sleep(self.lasts_seconds)
        cluster.proxy.restore()
        self._until = time.monotonic()
        found = router.fallbacks - before
        trial.parameters["fallbacks"] = dict(found)
        for reason in self.reasons:
            trial.check(f"fallback {reason} is counted", found[reason], found[reason] > 0)
        decided = router.decisions.total()
        took = cluster.wait(
            lambda: (
                cluster.open_queues() == self.plan.workers
                and router.decisions.total() > decided + 5
            ),
            "routing by the policy",
            30.0,
        )
        trial.recovery_seconds = round(took, 2)

    def mend(self, cluster: Cluster) -> None:
        cluster.proxy.restore()

    def judge(self, cluster: Cluster, trial: Trial, publisher: Publisher, account: Account) -> None:
        check_latencies(trial, publisher, self._since, self._until)
        check_learned(cluster, trial, account)


def check_learned(cluster: Cluster, trial: Trial, account: Account) -> None:
    """Check that the outcome of every task is learned from, exactly once."""
    tries, deadline = -1, time.monotonic() + LEARN_SECONDS
    expected = len(account.finished)
    while tries != expected and time.monotonic() < deadline:
        time.sleep(0.2)
        tries = cluster.database.tries()
    trial.check(
        "outcomes learned from = tasks that finished", f"{tries} of {expected}", tries == expected
    )


class StateSlow(StateFault):
    name = "Redis of the state slow"
    strikes = "each word to and from the state's Redis takes 0.3 s, for 12 s"
    reasons = ("stale_view",)

    def hurt(self, proxy: Proxy) -> None:
        proxy.delay(0.3)


class StateCut(StateFault):
    name = "Redis of the state cut off"
    strikes = "connections to the state's Redis are closed and new ones refused, for 12 s"

    def hurt(self, proxy: Proxy) -> None:
        proxy.cut()


class StateHole(StateFault):
    name = "Redis of the state a black hole"
    strikes = "the state's Redis takes connections and words and answers none, for 12 s"

    def hurt(self, proxy: Proxy) -> None:
        proxy.black_hole()
