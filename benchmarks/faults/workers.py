"""Workers that are killed, gone with their host, or frozen."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from benchmarks.faults.cluster import KEYS, Cluster
from benchmarks.faults.fault import ALL_ARMS, Fault, Trial
from benchmarks.faults.ledger import Account
from benchmarks.faults.load import Publication, Publisher, steady
from benchmarks.faults.plan import Plan

ROUTES_STOP_SECONDS = 5.0
FROZEN_SECONDS = 20.0
LATE_BY = 0.75
"""What a round of the controller and a sync add to the time that a heartbeat counts."""


class WorkerRestarted(Fault):
    """The parent of a worker is killed; its supervisor starts it again a second later."""

    name = "worker killed, started again"
    strikes = "SIGKILL of the parent of one of three workers; it is started again after 1 s"
    must = "what it held runs again, everything else once"
    arms = ALL_ARMS
    plan = Plan(workers=3)
    least_seconds = 0.1
    most_seconds = 0.4

    def strike(self, cluster: Cluster, trial: Trial, draw: random.Random) -> None:
        number = draw.randrange(len(cluster.workers))
        trial.parameters["worker"] = number
        trial.held = len(cluster.ledger.read().running(cluster.node(number)))
        cluster.workers[number].kill()
        time.sleep(1.0)
        cluster.workers[number] = cluster.start_worker(number)


class WorkerGone(Fault):
    """All processes of a worker are killed at once, as with its host, with work queued there."""

    name = "worker and its host gone, 100 queued there"
    strikes = (
        "SIGKILL of all processes of one of three workers while about 100 tasks wait for each, "
        "and of the controller that leads; they never come back"
    )
    must = (
        "no new task is sent there 5 s after the last heartbeat; what waits there is rescued "
        "within 20 s, each task once, what ran at least once"
    )
    recovery = (
        "from the strike until nothing waits for, or is held by, the dead worker; with plain "
        "Celery until the last task has finished"
    )
    arms = ALL_ARMS
    plan = Plan(workers=3, controllers=2)
    spoils = True
    over_seconds = 10.0
    window = (1.0, 2.0)
    patience_seconds = 30.0
    burst: ClassVar[int] = 320

    def publications(self, cluster: Cluster, draw: random.Random) -> Sequence[Publication]:
        burst = steady(draw, cluster.numbers, self.burst, 0.9, 0.1, 0.2)
        return [
            *burst,
            *(
                one._replace(due=1.0 + one.due)
                for one in steady(draw, cluster.numbers, 90, self.over_seconds - 1.0, 0.02, 0.05)
            ),
        ]

    def publisher(self, cluster: Cluster, draw: random.Random) -> Publisher:
        self._publisher = super().publisher(cluster, draw)
        return self._publisher

    def strike(self, cluster: Cluster, trial: Trial, draw: random.Random) -> None:
        number = draw.randrange(len(cluster.workers))
        trial.parameters["worker"] = number
        sent = self._publisher.done
        cluster.wait(lambda: len(sent) >= self.burst, "the burst to be published", 60.0)
        trial.held = 1  # Killed between its end and its acknowledgement a task runs again.
        leader = cluster.leader()
        cluster.workers[number].kill_group()
        if leader is not None:
            leader.kill_group()
        if cluster.arm != "owl":
            return
        queue = cluster.queue(number)
        trial.parameters["waiting_there"] = cluster.waiting(queue)
        self._watch(cluster, trial, queue)

    def _watch(self, cluster: Cluster, trial: Trial, queue: str) -> None:
        """Watch until the queue is empty: when routes to it stop, and when it is rescued."""
        began, assigned, last = time.monotonic(), -1, 0.0
        while True:
            passed = time.monotonic() - began
            count = int(cluster.state.hget(KEYS.assigned_count, queue) or 0)
            if count != assigned:
                assigned, last = count, passed
            if passed > 8.0 and not cluster.waiting(queue) and not cluster.held(queue):
                break
            if passed > 2 * self.limit_seconds:
                break
            time.sleep(0.05)
        trial.check(
            "new routes stop within 5 s of the last heartbeat",
            f"{last:.1f} s after the strike",
            last <= ROUTES_STOP_SECONDS + LATE_BY,
            is_timing=True,
        )
        trial.recovery_seconds = round(passed, 2)


class WorkerFrozen(Fault):
    """A worker is stopped for 20 s and then goes on."""

    name = "worker frozen for 20 s"
    strikes = "SIGSTOP of all processes of one of three workers, SIGCONT 20 s later"
    must = "what waits there is rescued and runs once, what ran at least once; it works again after"
    recovery = (
        "from the strike until the last task published before the worker went on has finished"
    )
    arms = ALL_ARMS
    plan = Plan(workers=3)
    limit_seconds = FROZEN_SECONDS + 5.0
    least_seconds = 0.1
    most_seconds = 0.4

    def strike(self, cluster: Cluster, trial: Trial, draw: random.Random) -> None:
        number = draw.randrange(len(cluster.workers))
        trial.parameters["worker"] = number
        frozen = cluster.workers[number]
        frozen.signal_group(signal.SIGSTOP)
        trial.held = len(cluster.ledger.read().running(cluster.node(number)))
        time.sleep(FROZEN_SECONDS)
        frozen.signal_group(signal.SIGCONT)

    def mend(self, cluster: Cluster) -> None:
        for worker in cluster.workers:
            worker.signal_group(signal.SIGCONT)

    def judge(self, cluster: Cluster, trial: Trial, publisher: Publisher, account: Account) -> None:
        took = cluster.wait(cluster.is_ready, "the worker that was frozen", 10.0)
        trial.check("the worker serves its queue again", f"{took:.1f} s after", took <= 10.0)


class WorkerGoneRabbit(WorkerGone):
    """The same on RabbitMQ, which hands back by itself what a dead worker held."""

    name = "worker and its host gone, RabbitMQ"
    plan = replace(WorkerGone.plan, broker="rabbitmq")
