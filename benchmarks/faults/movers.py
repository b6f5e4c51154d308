"""Movers that are killed at any instruction while workers take what they move."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Sequence
from typing import Final

from celery import Celery
from redis import Redis

from benchmarks.faults.cluster import Cluster
from benchmarks.faults.controllers import ControllerKilled, ControllerKilledRabbit
from benchmarks.faults.fault import Fault, Trial
from benchmarks.faults.ledger import Account
from benchmarks.faults.load import Publication, Publisher, steady
from owl_celery.brokers import open_broker
from owl_celery.brokers.base import Permit
from owl_celery.controller.stealing import header_of

MOVED: Final = "moved"
BURST: Final = 300


def move_for_ever(broker_url: str, ledger_url: str, queues: Sequence[str], seed: str) -> None:
    """Move tasks between queues at random, as for a thief and for a drained queue."""
    draw, counted = random.Random(seed), Redis.from_url(ledger_url)
    broker = open_broker(Celery("mover", broker=broker_url, set_as_current=False))
    permit = Permit("owl:faults-mover:lease", "", "owl:faults-mover:moves", 1)
    while True:
        source, destination = draw.sample(list(queues), 2)
        moved = 0
        if draw.random() < 0.5:
            moved = broker.redirect(source, lambda _, to=destination: to, 20)  # type: ignore[misc]
        else:
            for seen in broker.peek([source], 8, 8)[source]:
                header = header_of(seen.text)
                moved += header is not None and broker.take(
                    source, seen, header.decision_id, destination, permit
                )
            broker.release()
        counted.incrby(MOVED, moved)


class MoverKilled(Fault):
    """One mover after the other is killed, each at a random moment of its work."""

    name = "mover killed at any instruction"
    strikes = (
        "25 processes one after the other that move tasks between the queues without end, beside "
        "the controllers; each gets SIGKILL within 0.1 s of its first move"
    )
    must = "no task is lost or runs twice"
    recovery = "from the first kill until the last task has finished"
    plan = ControllerKilled.plan
    limit_seconds = 60.0
    tasks = 100
    over_seconds = 10.0
    window = (1.0, 1.1)
    patience_seconds = 40.0
    kills = 25

    def publications(self, cluster: Cluster, draw: random.Random) -> Sequence[Publication]:
        burst = steady(draw, cluster.numbers, BURST, 1.0, 0.05, 0.15)
        rest = super().publications(cluster, draw)
        return [*burst, *(one._replace(due=1.0 + one.due) for one in rest)]

    def strike(self, cluster: Cluster, trial: Trial, draw: random.Random) -> None:
        context = multiprocessing.get_context("forkserver")
        queues = [cluster.queue(number) for number in range(len(cluster.workers))]
        moved = 0
        with Redis.from_url(cluster.addresses.ledger) as counted:
            for kill in range(self.kills):
                before = int(counted.get(MOVED) or 0)
                seed = f"{trial.seed} {kill}"
                arguments = (cluster.addresses.broker, cluster.addresses.ledger, queues, seed)
                mover = context.Process(target=move_for_ever, args=arguments, daemon=True)
                mover.start()
                until = time.monotonic() + 5.0
                while int(counted.get(MOVED) or 0) == before and time.monotonic() < until:
                    time.sleep(0.001)
                time.sleep(draw.uniform(0.0, 0.1))
                mover.kill()
                mover.join()
            moved = int(counted.get(MOVED) or 0)
        trial.check(
            f"tasks moved by movers that were killed, in {self.kills} kills", moved, moved > 0
        )

    def judge(self, cluster: Cluster, trial: Trial, publisher: Publisher, account: Account) -> None:
        trial.check("no task started twice", trial.run_again, trial.run_again == 0)


class MoverKilledRabbit(MoverKilled):
    """The same on RabbitMQ."""

    name = "mover killed at any instruction, RabbitMQ"
    plan = ControllerKilledRabbit.plan
