"""Controllers that are killed while they move tasks."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from typing import ClassVar

from benchmarks.faults.cluster import KEYS, Cluster
from benchmarks.faults.fault import Fault, Trial
from benchmarks.faults.ledger import Account
from benchmarks.faults.load import Publisher
from benchmarks.faults.plan import Plan


class ControllerKilled(Fault):
    """The controller that leads is killed again and again, while it drains and steals."""

    name = "controller killed while it moves tasks"
    strikes = (
        "four times SIGKILL of the controller that leads, at random moments while queues are "
        "drained in turn and idle workers steal; each is started again"
    )
    must = "no task is lost or runs twice; another one takes the lease within 10 s"
    recovery = "from a kill until another controller leads, the longest of them"
    plan = Plan(workers=3, controllers=2)
    limit_seconds = 10.0
    # More than the workers can do, so that something waits to be moved.
    tasks = 800
    over_seconds = 26.0
    least_seconds = 0.05
    most_seconds = 0.15
    patience_seconds = 60.0
    window = (1.0, 3.0)
    kills: ClassVar[int] = 4

    def strike(self, cluster: Cluster, trial: Trial, draw: random.Random) -> None:
        longest, self._moved = 0.0, 0
        for _ in range(self.kills):
            drained = cluster.queue(draw.randrange(len(cluster.workers)))
            cluster.state.delete(KEYS.drained)
            cluster.state.sadd(KEYS.drained, drained)
            # Within the first rounds of emptying that queue.
            time.sleep(draw.uniform(0.0, 0.4))
            leader = cluster.leader()
            if leader is None:
                continue
            fence = int(cluster.state.get("owl:faults:lease:fencing") or 0)
            self._moved += moved_by(cluster)
            leader.kill_group()
            cluster.controllers.remove(leader)
            cluster.controllers.append(cluster.start_controller())
            taken = self._taken_over(cluster, fence)
            longest = max(longest, taken)
        trial.recovery_seconds = round(longest, 2)

    def _taken_over(self, cluster: Cluster, fence: int) -> float:
        """Seconds until another controller leads."""
        longest = 3 * self.limit_seconds
        return cluster.wait(lambda: cluster.health().fence > fence, "another controller", longest)

    def mend(self, cluster: Cluster) -> None:
        cluster.state.delete(KEYS.drained)

    def judge(self, cluster: Cluster, trial: Trial, publisher: Publisher, account: Account) -> None:
        moved = self._moved + moved_by(cluster)
        trial.check("tasks that the controllers moved, at least", moved, moved > 0)
        trial.check("no task started twice", trial.run_again, trial.run_again == 0)


def moved_by(cluster: Cluster) -> int:
    """Tasks that the leading controller has moved, as of its latest health."""
    counters = cluster.health().counters
    return counters.get("stolen", 0) + counters.get("tasks_drained", 0)


class ControllerKilledRabbit(ControllerKilled):
    """The same on RabbitMQ."""

    name = "controller killed while it moves tasks, RabbitMQ"
    plan = replace(ControllerKilled.plan, broker="rabbitmq")
