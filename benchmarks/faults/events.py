"""Messages delivered twice, events out of order and again, and clocks that jump by an hour."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any, Final

from benchmarks.faults.clock import shift_clock, shifted_here
from benchmarks.faults.cluster import KEYS, Cluster
from benchmarks.faults.fault import Fault, Trial
from benchmarks.faults.ledger import Account
from benchmarks.faults.load import Publication, Publisher, steady
from benchmarks.faults.plan import Plan
from benchmarks.faults.state import check_learned

HOUR: Final = 3600.0
BURST: Final = 60
COPIES: Final = 20
JUMP_SECONDS: Final = 1.5
LONGEST_SECONDS: Final = 60.0
IDLE_SECONDS: Final = 15.0


class EventsDisturbed(Fault):
    """Deliveries and events are repeated and shuffled while clocks jump."""

    name = "delivered twice, out of order, clocks jump"
    strikes = (
        f"{COPIES} waiting messages are put in their queue a second time; all events of the stream "
        "are added again in random order; the clocks of a worker and of the producer jump by an "
        "hour, forward and backward"
    )
    must = (
        "one outcome is learned of each task; no duration is negative or absurd; nothing seems to "
        "run when all is idle"
    )
    recovery = "from the first of it until the last task has finished"
    plan = Plan(clock=True)
    limit_seconds = 30.0
    tasks = 120
    over_seconds = 12.0
    most_seconds = 0.1
    window = (1.1, 1.2)

    def publications(self, cluster: Cluster, draw: random.Random) -> Sequence[Publication]:
        burst = steady(draw, cluster.numbers, BURST, 0.1, 0.05, 0.1)
        plan = [*super().publications(cluster, draw), *(b._replace(due=1.0 + b.due) for b in burst)]
        return sorted(plan)

    def strike(self, cluster: Cluster, trial: Trial, draw: random.Random) -> None:
        trial.held = self._deliver_twice(cluster)
        trial.check("messages delivered twice", trial.held, trial.held > 0)
        jumps = [(place, sign * HOUR) for place in ("worker", "producer") for sign in (1.0, -1.0)]
        draw.shuffle(jumps)
        for place, seconds in jumps:
            if place == "worker":
                shift_clock(cluster.clock, seconds)
                time.sleep(JUMP_SECONDS)
                shift_clock(cluster.clock, 0.0)
            else:
                with shifted_here(seconds):
                    time.sleep(JUMP_SECONDS)
            self._repeat_events(cluster, draw)

    def _deliver_twice(self, cluster: Cluster) -> int:
        copied = 0
        for number in range(len(cluster.workers)):
            queue = cluster.queue(number)
            texts: Any = cluster.redis.lrange(queue, 0, COPIES // len(cluster.workers) - 1)
            if texts:
                cluster.redis.lpush(queue, *texts)
            copied += len(texts)
        return copied

    def _repeat_events(self, cluster: Cluster, draw: random.Random) -> None:
        entries: Any = cluster.state.xrange(KEYS.events)
        draw.shuffle(entries)
        for _, body in entries:
            cluster.state.xadd(KEYS.events, body)

    def mend(self, cluster: Cluster) -> None:
        shift_clock(cluster.clock, 0.0)

    def judge(self, cluster: Cluster, trial: Trial, publisher: Publisher, account: Account) -> None:
        check_learned(cluster, trial, account)
        took = cluster.wait(
            lambda: (
                cluster.health().running_count == 0
                and cluster.health().waiting_count == 0
                and bool(cluster.health().controller)
            ),
            "nothing to wait or to run",
            IDLE_SECONDS,
        )
        trial.check("idle: nothing waits or runs in the load view", f"after {took:.1f} s", True)
        outcomes = cluster.database.outcomes()
        # Backward an outcome is left as it is: it may have waited for Redis for an hour.
        early = sum(one.finished_at < cluster.ledger.now() - HOUR / 2 for one in outcomes)
        trial.check("tasks ended while the worker's clock was behind", early, early > 0)
        for what, values in (
            ("service", [one.service_seconds for one in outcomes]),
            ("wait", [one.wait_seconds for one in outcomes if one.wait_seconds is not None]),
        ):
            least, most = min(values, default=-1.0), max(values, default=-1.0)
            trial.check(
                f"every {what} time lies in 0 to {LONGEST_SECONDS:g} s",
                f"{least:.2f} to {most:.2f} s",
                least >= 0.0 and most <= LONGEST_SECONDS,
            )
        duplicates = cluster.health().counters.get("duplicates", 0)
        trial.check("duplicates are counted", duplicates, duplicates > 0)
