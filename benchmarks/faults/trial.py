"""One trial: publish, strike at a random moment, and account for every task."""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from celery import Celery

from benchmarks.faults.cluster import FaultCluster
from owl_celery.embedded import EmbeddedRedis

WORKERS = 3
TASKS = 60
PUBLISH_SECONDS = 8.0
PATIENCE_SECONDS = 40.0
RESTART_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Trial:
    """The account of one trial.

    Parameters
    ----------
    lost
        Tasks published that have not finished 40 s after the last was published.
    doubled
        Tasks that finished more than once.
    run_again
        Tasks that started more than once.
    recovery_seconds
        From the fault until the last task finished; None when some never did.

    """

    fault: str
    arm: str
    seed: int
    published: int
    lost: int
    doubled: int
    run_again: int
    recovery_seconds: float | None


def kill_and_restart(cluster: FaultCluster, draw: random.Random) -> None:
    """Kill a worker, and start it again a second later."""
    number = draw.randrange(WORKERS)
    cluster.workers[number].kill()
    cluster.workers[number].wait()
    time.sleep(RESTART_SECONDS)
    cluster.workers[number] = cluster.start_worker(number)


def kill_for_good(cluster: FaultCluster, draw: random.Random) -> None:
    """Kill a worker."""
    number = draw.randrange(WORKERS)
    cluster.workers[number].kill()
    cluster.workers[number].wait()


def kill_controllers(cluster: FaultCluster, draw: random.Random) -> None:
    """Kill the controller that leads, or the one that waits."""
    controller = draw.choice(cluster.controllers)
    controller.send_signal(signal.SIGKILL)
    controller.wait()


FAULTS: dict[str, tuple[Callable[[FaultCluster, random.Random], None], tuple[str, ...]]] = {
    "worker killed, started again": (kill_and_restart, ("owl", "celery", "celery_late")),
    "worker killed for good": (kill_for_good, ("owl", "celery", "celery_late")),
    "controller killed": (kill_controllers, ("owl",)),
}


def run_trial(fault: str, arm: str, seed: int) -> Trial:
    """Run one trial; in a process of its own, since the application is imported for one broker."""
    strike, _ = FAULTS[fault]
    draw = random.Random(seed)
    sizes = [draw.uniform(0.05, 0.6) for _ in range(TASKS)]
    at = draw.uniform(0.3, 0.8) * PUBLISH_SECONDS
    with EmbeddedRedis() as server, tempfile.TemporaryDirectory() as folder:
        os.environ.update(FAULTS_BROKER_URL=server.url, FAULTS_ARM=arm)
        cluster = FaultCluster(server.url, arm, WORKERS, Path(folder))
        try:
            cluster.wait_until_ready()
            from benchmarks.faults.app import app, work

            if arm == "owl":
                wait_for_view(app)
            began, struck_at = time.monotonic(), 0.0
            for number, seconds in enumerate(sizes):
                due = began + number * PUBLISH_SECONDS / TASKS
                time.sleep(max(due - time.monotonic(), 0.0))
                work.delay(number, seconds)
                if not struck_at and time.monotonic() - began >= at:
                    struck_at = time.time()
                    strike(cluster, draw)
            deadline = time.monotonic() + PATIENCE_SECONDS
            while len(cluster.noted("finished")) < TASKS and time.monotonic() < deadline:
                time.sleep(0.1)
            started, finished = cluster.noted("started"), cluster.noted("finished")
            ended = max((float(t) for t in cluster.redis.lrange("finished_at", 0, -1)), default=0.0)
            lost = TASKS - len(finished)
            app.close()
        finally:
            cluster.close()
    return Trial(
        fault,
        arm,
        seed,
        published=TASKS,
        lost=lost,
        doubled=sum(count > 1 for count in finished.values()),
        run_again=sum(count > 1 for count in started.values()),
        recovery_seconds=None if lost else round(ended - struck_at, 1),
    )


def wait_for_view(app: Celery) -> None:
    """Wait until this producer sees the queues."""
    from owl_celery.installation import parts_of

    sync = parts_of(app).sync
    deadline = time.monotonic() + 20.0
    while (snapshot := sync.snapshot()) is None or snapshot.fleet.open_count < WORKERS:
        if time.monotonic() > deadline:
            raise RuntimeError("The controller publishes no view of the queues.")
        time.sleep(0.05)
