"""What routing adds to ``apply_async``: plain and routed publishing, interleaved in one run.

    python -m benchmarks.overhead --json overhead.json

A second process plays the controller: it publishes a load view every 30 ms and new knowledge ten
times a second, as with a busy fleet.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import time
from dataclasses import asdict, dataclass
from itertools import count
from multiprocessing.synchronize import Event as ProcessEvent
from pathlib import Path

import click
from celery import Celery, Task

from owl_celery import install
from owl_celery.embedded import EmbeddedRedis
from owl_celery.fleet import Fleet
from owl_celery.installation import parts_of, uninstall
from owl_celery.keys import Keys
from owl_celery.policies import make_policy
from owl_celery.redis_state import RedisState
from owl_celery.settings import Settings
from owl_celery.types import Outcome, QueueView, TaskView, TryState
from tests.published import Publisher

GPU_MODELS = ("k80", "p100", "v100")
TASK_TYPE = "benchmarks.overhead.work"
PURGE_EVERY = 500
EXPERIENCE = 45_000


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the result; times in microseconds, the ratio to plain in the same run."""

    case: str
    queues: int
    producers: int
    p50_us: float
    p99_us: float
    ratio_p50: float


def make_app(name: str, url: str) -> tuple[Celery, Task]:
    """Make an application with one task on a broker."""
    app = Celery(name, broker=url)
    app.conf.task_ignore_result = True

    @app.task(name=TASK_TYPE, shared=False)
    def work() -> None:
        """Never runs."""

    return app, work


def publish_views(url: str, namespace: str, queues: int, stop: ProcessEvent) -> None:
    """Play a busy controller: a view every 30 ms, new knowledge ten times a second."""
    publisher = Publisher(RedisState(url, Keys(namespace)))
    models = [GPU_MODELS[row % len(GPU_MODELS)] for row in range(queues)]
    views = [
        QueueView(f"gpu.host.{row}", model, 1, row % 3, float(row % 3), ((1.0, 0.2),))
        for row, model in enumerate(models)
    ]
    policy, fleet = make_policy(Settings()), Fleet.of(views)
    # What a fleet knows after a day: some 300 samples of each task type on each GPU model.
    for number in range(EXPERIENCE):
        outcome = outcome_of(number)
        policy.learn_one(outcome, now=float(number))
        if number % 10 == 0:
            policy.arrived(TaskView(outcome.task_type), float(number))
        if number % 100 == 0:
            policy.tick(fleet, float(number))
    snapshot = policy.snapshot()
    for number in count(EXPERIENCE):
        if stop.wait(0.03):
            return
        if number % 3 == 0:
            policy.learn_one(outcome_of(number), now=float(number))
            snapshot = policy.snapshot()
        publisher.publish(views, policy.name, snapshot)


def outcome_of(number: int) -> Outcome:
    """Make up one success."""
    model = GPU_MODELS[number % len(GPU_MODELS)]
    return Outcome(
        task_id=str(number),
        decision_id="",
        attempt=0,
        task_type=TASK_TYPE if number % 50 == 0 else f"{TASK_TYPE}.{number % 50}",
        size=1.0,
        queue=f"gpu.host.{GPU_MODELS.index(model)}",
        worker_id="gpu0@host",
        gpu_model=model,
        state=TryState.SUCCESS,
        service_seconds=1.0 + number % 7,
        finished_at=time.time(),
    )


def measure(url: str, queues: int, calls: int, producers: int) -> list[Row]:
    """Publish plain and routed in turn, with so many producer processes at a time."""
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    namespace = f"routed-{queues}-{producers}"
    publisher = context.Process(target=publish_views, args=(url, namespace, queues, stop))
    publisher.start()
    try:
        with context.Pool(producers) as pool:
            parts = pool.starmap(
                publish_in_turn, [(url, namespace, calls // producers)] * producers
            )
    finally:
        stop.set()
        publisher.join()
    plain = [microseconds for part in parts for microseconds in part[0]]
    routed = [microseconds for part in parts for microseconds in part[1]]
    return [
        row_of("plain", plain, plain, queues, producers),
        row_of("routed", routed, plain, queues, producers),
    ]


def row_of(case: str, times: list[float], plain: list[float], queues: int, producers: int) -> Row:
    """Summarise the times of one case, microseconds."""
    p50, p99 = statistics.median(times), statistics.quantiles(times, n=100)[98]
    ratio = p50 / statistics.median(plain)
    return Row(case, queues, producers, round(p50, 1), round(p99, 1), round(ratio, 3))


def publish_in_turn(url: str, namespace: str, calls: int) -> tuple[list[float], list[float]]:
    """Time ``apply_async`` of a plain and a routed application, in turn, microseconds each."""
    plain_app, plain_task = make_app("plain", url)
    routed_app, routed_task = make_app("routed", url)
    install(routed_app, namespace=namespace)
    sync = parts_of(routed_app).sync
    times: tuple[list[float], list[float]] = ([], [])
    deadline = time.monotonic() + 30.0
    while sync.snapshot() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    for number in range(calls + 50):
        for task, case in ((plain_task, times[0]), (routed_task, times[1])):
            began = time.perf_counter()
            task.apply_async()
            if number >= 50:  # The first ones open connections and declare queues.
                case.append((time.perf_counter() - began) * 1e6)
        if number % PURGE_EVERY == 0:
            plain_app.control.purge()
    routed = parts_of(routed_app).router.decisions[Settings().policy]
    if routed < calls:
        raise click.ClickException(f"only {routed} of {calls} tasks were routed by what is known")
    uninstall(routed_app)
    return times


@click.command()
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write the rows here.")
@click.option("--calls", default=3000, show_default=True, help="Publishes of each case.")
@click.option(
    "--producers",
    default=(1,),
    multiple=True,
    show_default=True,
    help="Processes that publish at a time; more than there are idle cores measures their queue.",
)
def main(path: Path | None, calls: int, producers: tuple[int, ...]) -> None:
    """Compare plain and routed publishing at 64 and 1,024 queues."""
    rows: list[Row] = []
    with EmbeddedRedis() as server:
        for queues in (64, 1024):
            for processes in producers:
                rows += measure(server.url, queues, calls, processes)
                for row in rows[-2:]:
                    click.echo(
                        f"{row.case:7} {row.queues:5} queues {row.producers} producers  "
                        f"p50 {row.p50_us:8.1f} us  p99 {row.p99_us:8.1f} us  "
                        f"ratio {row.ratio_p50:.3f}"
                    )
    if path is not None:
        path.write_text(json.dumps({"rows": [asdict(row) for row in rows]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
