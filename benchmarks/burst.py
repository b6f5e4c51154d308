"""How evenly a burst of many producers spreads: ``python -m benchmarks.burst``.

32 processes, each with its own view of the load, send 1,000 tasks of five learned types within a
second to 12 queues whose workers take nothing. A second later the predicted seconds in the messages
of each queue are compared with the ideal.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
from celery import Celery
from redis import Redis

from owl_celery import install
from owl_celery.brokers import open_broker
from owl_celery.controller.controller import Controller
from owl_celery.embedded import EmbeddedRedis
from owl_celery.fleet import Fleet
from owl_celery.installation import parts_of
from owl_celery.keys import Keys
from owl_celery.policies import make_policy
from owl_celery.records import FleetRecord, Knowledge, View, decode_record
from owl_celery.redis_state import RedisState
from owl_celery.settings import Settings
from owl_celery.snapshot import Snapshot
from owl_celery.types import Outcome, TaskView, TryState
from owl_celery.wire import Heartbeat, encode_event

CONTEXT: Final = multiprocessing.get_context("fork")
KEYS: Final = Keys("burst")
QUEUES: Final = 12
FLEETS: Final = {"identical": ("v100",), "mixed": ("k80", "p100", "v100")}
SECONDS: Final = {
    "train": {"k80": 12.0, "p100": 5.0, "v100": 2.0},
    "tune": {"k80": 8.0, "p100": 4.0, "v100": 3.0},
    "embed": {"k80": 3.0, "p100": 1.5, "v100": 1.0},
    "rank": {"k80": 1.0, "p100": 0.8, "v100": 0.9},
    "resize": {"k80": 0.5, "p100": 0.4, "v100": 0.4},
}
SAMPLES: Final = 40
"""Tasks of each type on each GPU model that have run before."""

BURST_SECONDS: Final = 1.0
LOOK_SECONDS: Final = 2.0
ARMS: Final = ("routed", "blind to the others", "random")
"""With ``blind`` each producer reckons as if it were the only one."""


@dataclass(frozen=True, slots=True)
class Burst:
    """What one burst has led to.

    Parameters
    ----------
    sent_seconds
        From the first task to the last.
    seconds
        Predicted seconds in each queue, in order of their names.
    deviation
        Largest ``|seconds - ideal| / ideal`` of all queues.
    view_error
        Of the published view, against the messages, in total.
    view_age_seconds
        Since a producer's view came, on average over all decisions.
    simpler
        Tasks that were routed by a simpler policy, or not at all, since the view was too old.
    waiting
        Messages in all queues, the default one included.
    """

    fleet: str
    arm: str
    seed: int
    producers: int
    tasks: int
    sent_seconds: float
    seconds: list[float]
    ideal: list[float]
    deviation: float
    view_error: float
    view_age_seconds: float
    simpler: int
    waiting: int


def models_of(fleet: str) -> list[str]:
    """GPU model of each queue."""
    kinds = FLEETS[fleet]
    return [kinds[row % len(kinds)] for row in range(QUEUES)]


def queue_names() -> list[str]:
    """All queues, in order."""
    return [f"gpu.burst.{row:02}" for row in range(QUEUES)]


def task_types(seed: int, tasks: int) -> list[str]:
    """The types of all tasks, in the order in which they are dealt out to the producers."""
    return random.Random(seed).choices(list(SECONDS), k=tasks)


def make_app(url: str, arm: str, folder: str) -> Celery:
    """The application, with a task that never runs."""
    app = Celery("burst", broker=url, set_as_current=False)
    app.conf.task_ignore_result = True

    @app.task(name="work", shared=False, owl_type=lambda args, _: args[0])
    def work(kind: str) -> None:
        """Never runs."""

    install(
        app,
        policy="random" if arm == "random" else "q_learning",
        namespace=KEYS.namespace,
        continuous_learning_storage_path=Path(folder),
    )
    return app


def beat(url: str, fleet: str) -> None:
    """Play the workers, which live and take nothing, and the arrivals that prices are made of."""
    state = RedisState(url, KEYS)
    while True:
        pipe = state.client.pipeline(transaction=False)
        for row, (name, model) in enumerate(zip(queue_names(), models_of(fleet), strict=True)):
            node = f"gpu{row}@burst"
            pipe.sadd(KEYS.nodes, node)
            pipe.set(KEYS.heartbeat(node), Heartbeat(node, name, model).encode(), px=5_000)
        for kind in SECONDS:
            pipe.hincrby(KEYS.arrivals, kind, 2)
        pipe.execute()
        time.sleep(1.0)


def teach(url: str, fleet: str) -> int:
    """Report tasks that have run; how many."""
    state, number = RedisState(url, KEYS), 0
    pipe = state.client.pipeline(transaction=False)
    for _ in range(SAMPLES):
        for kind, times in SECONDS.items():
            for row, model in enumerate(models_of(fleet)[: len(FLEETS[fleet])]):
                outcome = Outcome(
                    task_id=str(number),
                    decision_id=f"d{number}",
                    attempt=0,
                    task_type=kind,
                    size=1.0,
                    queue=queue_names()[row],
                    worker_id=f"gpu{row}@burst",
                    gpu_model=model,
                    state=TryState.SUCCESS,
                    service_seconds=times[model],
                    finished_at=time.time(),
                    wait_seconds=0.0,
                    algorithm="q_learning",
                )
                pipe.xadd(KEYS.events, {"e": encode_event(outcome)})
                number += 1
    pipe.execute()
    return number


def control(app: Celery) -> None:
    """A controller."""
    parts = parts_of(app)
    Controller(parts.state, open_broker(app), parts.settings).run(threading.Event())


def produce(
    app: Celery, arm: str, kinds: list[str], seed: int, barrier: Barrier, told: Any
) -> None:
    """One producer: know the load, wait for the others, and send its part within a second."""
    if arm.startswith("blind"):
        Snapshot.unseen_seconds = lambda *_: None  # type: ignore[method-assign]
    # Redis and the controller would have cores of their own.
    os.nice(10)
    draw, task, sync = random.Random(seed), app.tasks["work"], parts_of(app).sync
    task.apply_async(("train",), queue="elsewhere")  # Opens the connection.
    deadline = time.monotonic() + 60.0
    while (snapshot := sync.snapshot()) is None or not all(
        policy.ready for policy in snapshot.policies
    ):
        if time.monotonic() > deadline:
            sys.exit("no view of the load")
        time.sleep(0.05)
    known = sum(parts_of(app).router.fallbacks.values())
    ages = []
    times = sorted(draw.uniform(0.0, BURST_SECONDS) for _ in kinds)
    barrier.wait(120.0)
    began = time.monotonic()
    for at, kind in zip(times, kinds, strict=True):
        time.sleep(max(began + at - time.monotonic(), 0.0))
        ages.append(time.monotonic() - sync.snapshot().changed_at)  # type: ignore[union-attr]
        task.apply_async((kind,))
    told[1] = sum(ages)
    told[2] = sum(parts_of(app).router.fallbacks.values()) - known
    told[0] = time.monotonic() - began
    sync.flush()


def ideal_seconds(url: str, fleet: str, kinds: list[str]) -> list[float]:
    """What each queue would hold if one producer had sent all, knowing all.

    By GPU model, on average over several orders of the tasks: of queues that are alike each should
    hold the same.
    """
    text: Any = RedisState(url, KEYS).client.get(KEYS.knowledge)
    knowledge = decode_record(Knowledge, text)
    assert knowledge is not None
    models = models_of(fleet)
    total = np.zeros(QUEUES)
    for seed in range(3):
        policy = make_policy(Settings(seed=seed, policy=knowledge.policy))
        policy.apply_snapshot(knowledge.snapshot)
        queues = Fleet(queue_names(), models)
        for kind in random.Random(seed).sample(kinds, len(kinds)):
            decision = policy.choose(TaskView(kind), queues, 0.0)
            row = queues.names.index(decision.queue)
            queues.waiting_count[row] += 1
            queues.waiting_seconds[row] += decision.service_seconds or 0.0
        total += queues.waiting_seconds / 3
    return [
        float(np.mean([total[row] for row in range(QUEUES) if models[row] == model]))
        for model in models
    ]


def seconds_waiting(client: Redis, fleet: str) -> list[float]:
    """Predicted seconds in the messages of each queue; the true ones where none were predicted."""
    found = []
    for name, model in zip(queue_names(), models_of(fleet), strict=True):
        texts: Any = client.lrange(name, 0, -1)
        headers = [json.loads(text)["headers"]["owl"] for text in texts]
        found.append(sum(header.get("s", SECONDS[header["k"]][model]) for header in headers))
    return found


def view_seconds(client: Redis) -> float:
    """Predicted seconds in all queues, by the view."""
    view = decode_record(View, client.get(KEYS.view))  # type: ignore[arg-type]
    fleet = decode_record(FleetRecord, client.get(KEYS.fleet))  # type: ignore[arg-type]
    assert view is not None
    assert fleet is not None
    return float(np.sum(view.waiting_seconds))


@contextmanager
def processes() -> Iterator[Callable[..., BaseProcess]]:
    """Start functions in processes of their own, and end these."""
    running: list[BaseProcess] = []

    def start(target: Callable[..., None], *arguments: Any) -> BaseProcess:
        process = CONTEXT.Process(target=target, args=arguments, daemon=True)
        process.start()
        running.append(process)
        return process

    try:
        yield start
    finally:
        for process in running:
            process.kill()
            process.join()


def wait_for(holds: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise click.ClickException(f"waited in vain for {what}")
        time.sleep(0.05)


def run_burst(fleet: str, arm: str, seed: int, producers: int, tasks: int) -> Burst:
    """One burst, on a Redis of its own."""
    with EmbeddedRedis() as server, tempfile.TemporaryDirectory() as folder, processes() as start:
        app = make_app(server.url, arm, folder)
        client = Redis.from_url(server.url, decode_responses=True, protocol=2)
        start(beat, server.url, fleet)
        start(control, app)
        learned = teach(server.url, fleet)
        wait_for(lambda: has_learned(client, learned, arm), "the policy to learn")
        kinds = task_types(seed, tasks)
        ideal = ideal_seconds(server.url, fleet, kinds)
        barrier = CONTEXT.Barrier(producers + 1)
        told = [CONTEXT.Array("d", 3, lock=False) for _ in range(producers)]
        for index in range(producers):
            part = kinds[index::producers]
            start(produce, app, arm, part, 1_000 * seed + index, barrier, told[index])
        barrier.wait(120.0)
        began = time.monotonic()
        wait_for(lambda: time.monotonic() - began >= LOOK_SECONDS, "the time to look")
        wait_for(lambda: all(one[0] for one in told), "the producers")
        seconds, said = seconds_waiting(client, fleet), view_seconds(client)
        waiting = sum(int(client.llen(name)) for name in (*queue_names(), "celery"))
        client.close()
        app.close()
    if arm == "random":
        ideal = [sum(seconds) / QUEUES] * QUEUES
    return Burst(
        fleet,
        arm,
        seed,
        producers,
        tasks,
        sent_seconds=round(max(one[0] for one in told), 3),
        seconds=[round(value, 3) for value in seconds],
        ideal=[round(value, 3) for value in ideal],
        deviation=max(
            abs(value - wanted) / wanted for value, wanted in zip(seconds, ideal, strict=True)
        ),
        view_error=said / sum(seconds) - 1.0 if sum(seconds) else 0.0,
        view_age_seconds=round(sum(one[1] for one in told) / tasks, 3),
        simpler=int(sum(one[2] for one in told)),
        waiting=waiting,
    )


def has_learned(client: Redis, count: int, arm: str) -> bool:
    """Whether the published knowledge rests on so many tasks, and has prices."""
    text: Any = client.get(KEYS.knowledge)
    knowledge = decode_record(Knowledge, text) if text else None
    if knowledge is None:
        return False
    known = knowledge.snapshot
    return arm == "random" or (known.get("completed", 0) >= count and bool(known.get("prices")))


def table(bursts: list[Burst]) -> str:
    """All seeds of each case, as Markdown."""
    lines = [
        "| GPUs | producers | largest deviation of a queue, by seed | median | sent within, s "
        "| age of the views, ms |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for fleet, arm in dict.fromkeys((burst.fleet, burst.arm) for burst in bursts):
        some = [burst for burst in bursts if (burst.fleet, burst.arm) == (fleet, arm)]
        deviations = [burst.deviation for burst in some]
        shown = ", ".join(f"{deviation:.0%}" for deviation in deviations)
        times = [burst.sent_seconds for burst in some]
        lines.append(
            f"| {fleet} | {arm} | {shown} | {statistics.median(deviations):.0%} | "
            f"{min(times):.1f} to {max(times):.1f} | "
            f"{1e3 * statistics.mean(burst.view_age_seconds for burst in some):.0f} |"
        )
    return "\n".join(lines)


def page(bursts: list[Burst]) -> str:
    """The document."""
    first = bursts[0]
    return f"""# A burst from many producers

Generated by `python -m benchmarks.burst --page docs/benchmarks/burst.md`.

{first.producers} processes send {first.tasks} tasks of five types, whose times are learned, at
random moments of one second, or as fast as two cores can for all of them, with Redis and the
controller before the producers, to {QUEUES} queues. The workers take nothing, so that nothing is
stolen either. Two seconds after the first task, or when the last is sent, the predicted seconds in
the messages of each queue are compared with the ideal: what one producer that knew all would have
put there, on average over the queues of the same GPU model; for identical GPUs that is the same for
every queue. The age of a view is since it came to the producer, on average over the decisions.
`blind to the others` does not reckon with what other producers send between two
views; `random` is the policy of that name, compared with equal shares.

{table(bursts)}

Each producer sees the load as it was some tens of milliseconds ago. All that see the same queue as
the least loaded would send to it, until the next view shows too much there. So each reckons with
what the others have sent since: their pace, by GPU model, is the growth of what all have reported
less what it has reported itself. It fills the least loaded queues with that, like water, and
chooses among those that are level. A producer that is alone finds no others, and chooses exactly as
if it did not look for them.
"""


@click.command()
@click.option("--fleet", "fleets", multiple=True, type=click.Choice(list(FLEETS)))
@click.option("--arm", "arms", multiple=True, type=click.Choice(ARMS))
@click.option("--seeds", default=5, show_default=True)
@click.option("--producers", default=32, show_default=True)
@click.option("--tasks", default=1_000, show_default=True, help="Of all producers together.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write all bursts here.")
@click.option("--page", "page_path", type=click.Path(path_type=Path), help="Write the page here.")
def main(
    fleets: tuple[str, ...],
    arms: tuple[str, ...],
    seeds: int,
    producers: int,
    tasks: int,
    json_path: Path | None,
    page_path: Path | None,
) -> None:
    """Send bursts, and print how evenly they spread."""
    os.environ["ENABLE_METRICS"] = "false"
    bursts = []
    for fleet in fleets or FLEETS:
        for arm in arms or ARMS:
            for seed in range(1, seeds + 1):
                burst = run_burst(fleet, arm, seed, producers, tasks)
                shares = [
                    round(had / wanted, 2)
                    for had, wanted in zip(burst.seconds, burst.ideal, strict=True)
                ]
                click.echo(
                    f"{fleet}, {arm}, seed {seed}: {burst.deviation:.1%}, sent in "
                    f"{burst.sent_seconds} s by views of {1e3 * burst.view_age_seconds:.0f} ms, "
                    f"{burst.simpler} not by them; {shares}",
                    err=True,
                )
                bursts.append(burst)
    click.echo(table(bursts))
    if json_path is not None:
        json_path.write_text(json.dumps([asdict(burst) for burst in bursts], indent=1) + "\n")
    if page_path is not None:
        page_path.write_text(page(bursts))


if __name__ == "__main__":
    main()
