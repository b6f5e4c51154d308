"""One run: rounds of publishing and draining, with somebody killed every few seconds."""

from __future__ import annotations

import json
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final

import psutil
from celery import Celery
from redis import Redis

from benchmarks.load_view import processes
from benchmarks.load_view.truth import FRESH_SECONDS, Error, Sample, Sampler, errors_of
from owl_celery.controller.events import read_last_events
from owl_celery.keys import Keys
from owl_celery.redis_state import RedisState
from owl_celery.types import Outcome

KEYS: Final = Keys("load_view")
START_SECONDS: Final = 120.0
DOWN_SECONDS: Final = (0.0, 0.5, 3.0, 25.0)
"""How long a killed worker stays away: at once, noticed by a restart, gone, and rescued."""

AGAIN_SECONDS: Final = 1.0
STAYS_SECONDS: Final = 1.0
WARM_UP_TASKS: Final = 200
"""Before the first sample: nothing can be predicted before anything has run."""

ZERO_WITHIN_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run.

    Parameters
    ----------
    tasks, rounds
        So many tasks, and so many times until all is idle.
    workers, producers, controllers
        Processes of each kind.
    depth
        Tasks that wait in each queue before the producers pause.
    kill_tasks
        Tasks that are published between two strikes.
    longest_away_seconds
        A killed worker is started again after this, at the latest.
    share
        Of tasks that expire at once, later, or are revoked: each.
    seed
        Of everything that is drawn.
    limit_seconds
        The run is given up after this.
    """

    tasks: int = 100_000
    rounds: int = 10
    workers: int = 6
    producers: int = 2
    controllers: int = 2
    depth: int = 100
    kill_tasks: int = 800
    longest_away_seconds: float = 25.0
    share: float = 0.03
    sample_seconds: float = 0.1
    seed: int = 1
    limit_seconds: float = 1_200.0


@dataclass(slots=True)
class Result:
    """What a run has shown.

    Parameters
    ----------
    is_complete
        Whether every task was published, and every round came to rest.
    service_seconds
        What tasks took, by the milliseconds that they were meant to: a busy machine is late.
    strikes
        How often each thing was done to the processes.
    errors, errors_at_any_age
        Of the view while it was in use, and with those views that routing passes over as stale.
    zero_seconds
        From the moment when nothing waited or ran until the view said exactly 0 of every queue,
        a number for each round; None when it did not within 30 s.
    not_zero
        Samples of rest, after that, in which it said anything else.
    """

    plan: Plan
    is_complete: bool = False
    seconds: float = 0.0
    published: int = 0
    samples: int = 0
    stale_ratio: float = 0.0
    service_seconds: dict[int, float] = field(default_factory=dict)
    strikes: dict[str, int] = field(default_factory=dict)
    errors: list[Error] = field(default_factory=list)
    errors_at_any_age: list[Error] = field(default_factory=list)
    zero_seconds: list[float | None] = field(default_factory=list)
    not_zero: int = 0
    controller: dict[str, int] = field(default_factory=dict)

    def encode(self) -> str:
        """JSON text."""
        return json.dumps(asdict(self), indent=1) + "\n"


class OutOfTimeError(Exception):
    """The run takes longer than it may."""


class LoadViewRun:
    """The processes of a run, and what is done with them."""

    def __init__(self, plan: Plan, url: str, folder: Path, say: Callable[[str], None]) -> None:
        # Not sooner: its broker is that of the environment.
        from benchmarks.load_view.app import app

        self.plan = plan
        self.result = Result(plan)
        self.samples: list[Sample] = []
        self.redis = Redis.from_url(url, decode_responses=True, protocol=2)
        self._app: Celery = app
        self._draw = random.Random(plan.seed)
        self._url = url
        self._folder = folder
        self._log = folder / "log"
        self._say = say
        self._began = time.monotonic()
        self._sampler = Sampler(self.redis, KEYS)
        self._is_open = processes.CONTEXT.Value("i", 1, lock=False)
        self._published = [
            processes.CONTEXT.Value("i", 0, lock=False) for _ in range(plan.producers)
        ]
        self._due = [0] * plan.producers
        self._workers: list[BaseProcess | None] = [
            self._start_worker(index) for index in range(plan.workers)
        ]
        self._controllers = [self._start_controller() for _ in range(plan.controllers)]
        self._producers: list[BaseProcess | None] = [None] * plan.producers
        self._restart_at: dict[int, float] = {}
        self._strike_at = plan.tasks
        self._next_strikes: list[Callable[[], str]] = []
        self._said_at = self._began

    def run(self) -> None:
        """Do all rounds; raises ``OutOfTimeError`` when they take too long."""
        plan = self.plan
        self._until(self._is_ready, START_SECONDS)
        self._say(f"{plan.workers} workers are ready after {self._elapsed():.0f} s")
        self._due = [WARM_UP_TASKS // plan.producers] * plan.producers
        self._until(self._is_published)
        self._until(self._is_at_rest)
        for counted in self._published:
            counted.value = 0
        self._strike_at = plan.kill_tasks
        self.samples.clear()
        self._say(f"warmed up after {self._elapsed():.0f} s")
        for number in range(1, plan.rounds + 1):
            total = plan.tasks * number // plan.rounds
            for index in range(plan.producers):
                self._due[index] = total // plan.producers
            self._until(self._is_published)
            self._until(self._is_at_rest)
            self._come_to_zero()
        self.result.is_complete = True

    def _come_to_zero(self) -> None:
        """Measure when the view says exactly 0, and watch that it stays so."""
        began = time.monotonic()
        try:
            self._until(lambda: self.samples[-1].says_empty, ZERO_WITHIN_SECONDS)
        except OutOfTimeError:
            self.result.zero_seconds.append(None)
            return
        self.result.zero_seconds.append(round(time.monotonic() - began, 2))
        first = len(self.samples)
        until = time.monotonic() + STAYS_SECONDS
        self._until(lambda: time.monotonic() >= until)
        rest = [sample for sample in self.samples[first:] if sample.is_empty]
        self.result.not_zero += sum(not sample.says_empty for sample in rest)

    def finish(self) -> Result:
        """Sum up."""
        result, samples = self.result, self.samples
        fresh = [sample for sample in samples if sample.age_seconds <= FRESH_SECONDS]
        result.seconds = round(self._elapsed(), 1)
        result.published = self._published_count()
        result.samples = len(samples)
        result.stale_ratio = round(1.0 - len(fresh) / len(samples), 4) if samples else 0.0
        result.service_seconds = self._seconds()
        result.errors = errors_of(fresh, result.service_seconds)
        result.errors_at_any_age = errors_of(samples, result.service_seconds)
        result.controller = self._health().get("counters", {})
        return result

    def left(self) -> str:
        """What keeps the run from its end."""
        held: Any = self.redis.hgetall("unacked")
        due: Any = dict(self.redis.zrange("unacked_index", 0, -1, withscores=True))  # type: ignore[arg-type]
        lines = [f"last sample: {self.samples[-1] if self.samples else None}"]
        for tag, text in held.items():
            message, _, queue = json.loads(text)
            age = time.time() - due.get(tag, 0.0)
            lines.append(f"held from {queue} for {age:.0f} s: {message['headers']}")
        return "\n".join(lines)

    def close(self) -> None:
        """End every process."""
        everybody = [*self._producers, *self._workers, *self._controllers]
        processes.end([process for process in everybody if process is not None])
        self.redis.close()

    def _until(self, holds: Callable[[], bool], patience_seconds: float = float("inf")) -> None:
        """Sample, strike and mend until something holds."""
        deadline = time.monotonic() + patience_seconds
        while True:
            began = time.monotonic()
            if began - self._began > self.plan.limit_seconds or began > deadline:
                raise OutOfTimeError(f"after {self._elapsed():.0f} s")
            sample = self._sampler.read()
            if sample is not None:
                self.samples.append(sample)
                waiting = sum(queue.waiting for queue in sample.queues.values())
                self._is_open.value = waiting < self.plan.depth * self.plan.workers
            self._mend(began)
            if self._published_count() >= self._strike_at:
                self._strike_at += self.plan.kill_tasks
                self._strike()
            if holds():
                return
            self._report(began)
            time.sleep(max(self.plan.sample_seconds - (time.monotonic() - began), 0.001))

    def _report(self, now: float) -> None:
        if now - self._said_at < 10.0 or not self.samples:
            return
        self._said_at = now
        last = self.samples[-1]
        self._say(
            f"{self._elapsed():5.0f} s: {self._published_count()} published, "
            f"{sum(queue.count for queue in last.queues.values())} wait or run, the view says "
            f"{sum(queue.said_count for queue in last.queues.values())} "
            f"({last.age_seconds:.2f} s old); {sum(self.result.strikes.values())} strikes"
        )

    def _elapsed(self) -> float:
        return time.monotonic() - self._began

    def _published_count(self) -> int:
        return sum(number.value for number in self._published)

    def _is_ready(self) -> bool:
        return bool(self.samples) and len(self.samples[-1].queues) == self.plan.workers

    def _is_published(self) -> bool:
        return all(
            number.value >= due for number, due in zip(self._published, self._due, strict=True)
        )

    def _is_at_rest(self) -> bool:
        return not self._restart_at and self._is_ready() and self.samples[-1].is_empty

    # Starting and mending

    def _start_worker(self, index: int) -> BaseProcess:
        return processes.start(processes.run_worker, self._log, index)

    def _start_controller(self) -> BaseProcess:
        return processes.start(processes.run_controller, self._log, str(self._folder), "127.0.0.1")

    def _mend(self, now: float) -> None:
        """Start again what was killed and is due; a producer at once, if it has more to do."""
        for index, worker in enumerate(self._workers):
            if worker is not None and not worker.is_alive():
                self._workers[index] = None
                self._restart_at[index] = now + AGAIN_SECONDS
                self._count("worker ended by itself")
        for index in [index for index, at in self._restart_at.items() if now >= at]:
            del self._restart_at[index]
            self._workers[index] = self._start_worker(index)
        self._controllers = [
            one if one.is_alive() else self._start_controller() for one in self._controllers
        ]
        for index, producer in enumerate(self._producers):
            number, due = self._published[index], self._due[index]
            if number.value < due and (producer is None or not producer.is_alive()):
                arguments = (self._draw.random(), due, number, self._is_open, self.plan.share)
                self._producers[index] = processes.start(
                    processes.run_producer, self._log, *arguments
                )

    # Striking

    def _strike(self) -> None:
        """Do the next thing; each of them once, in an order drawn anew, before any again."""
        if not self._next_strikes:
            self._next_strikes = [
                self._kill_worker,
                self._kill_worker,
                self._kill_child,
                self._kill_child,
                self._terminate_running,
                self._terminate_running,
                self._kill_producer,
                self._kill_leader,
            ]
            self._draw.shuffle(self._next_strikes)
        self._count(self._next_strikes.pop()())

    def _count(self, what: str) -> None:
        self.result.strikes[what] = self.result.strikes.get(what, 0) + 1

    def _kill_worker(self) -> str:
        standing = [index for index in range(self.plan.workers) if index not in self._restart_at]
        if len(standing) <= self.plan.workers // 2:
            return "too few workers to kill one"
        index = self._draw.choice(standing)
        worker = self._workers[index]
        assert worker is not None
        worker.kill()
        worker.join()
        self._workers[index] = None
        longest = self.plan.longest_away_seconds
        away = self._draw.choice([seconds for seconds in DOWN_SECONDS if seconds <= longest])
        self._restart_at[index] = time.monotonic() + away
        return f"worker killed, back after {away:g} s"

    def _kill_child(self) -> str:
        standing = [worker for worker in self._workers if worker is not None and worker.is_alive()]
        worker = self._draw.choice(standing)
        try:
            children = psutil.Process(worker.pid).children()
            self._draw.choice(children).kill()
        except (psutil.NoSuchProcess, IndexError):
            return "no pool process to kill"
        return "pool process killed"

    def _terminate_running(self) -> str:
        """Revoke a task that runs, by signal."""
        held: Any = self.redis.hvals("unacked")
        if not held:
            return "no task to terminate"
        task_id = json.loads(self._draw.choice(held))[0]["headers"]["id"]
        self._app.control.revoke(task_id, terminate=True, signal="SIGKILL")
        return "running task terminated"

    def _kill_producer(self) -> str:
        standing = [one for one in self._producers if one is not None and one.is_alive()]
        if not standing:
            return "no producer to kill"
        self._draw.choice(standing).kill()
        return "producer killed"

    def _kill_leader(self) -> str:
        pid = int(str(self._health().get("controller", ":0")).rpartition(":")[2])
        if pid not in [one.pid for one in self._controllers]:
            return "no controller to kill"
        os.kill(pid, signal.SIGKILL)
        return "leading controller killed"

    def _seconds(self) -> dict[int, float]:
        """What tasks took by their length, as workers have measured it on the latest of them."""
        state = RedisState(self._url, KEYS)
        events = [entry.event for entry in read_last_events(state, 20_000)]
        state.client.close()
        seconds: dict[int, list[float]] = {length: [] for length in processes.MILLISECONDS}
        for event in events:
            if isinstance(event, Outcome) and event.state.succeeded:
                seconds[int(event.task_type.rpartition(".")[2])].append(event.service_seconds)
        return {
            length: round(sum(some) / len(some), 5) if some else length / 1e3
            for length, some in seconds.items()
        }

    def _health(self) -> dict[str, Any]:
        text: Any = self.redis.get(KEYS.health)
        health: dict[str, Any] = json.loads(text) if text else {}
        return health


def run(plan: Plan, url: str, say: Callable[[str], None]) -> Result:
    """Run it on an empty Redis, the broker of ``app``; incomplete when it takes too long."""
    with tempfile.TemporaryDirectory() as folder:
        one = LoadViewRun(plan, url, Path(folder), say)
        try:
            one.run()
        except OutOfTimeError as error:
            say(f"Given up {error}; the last words of the processes:")
            say(one.left())
            say((Path(folder) / "log").read_text(errors="replace")[-4000:])
        except KeyboardInterrupt:
            say("Interrupted.")
        finally:
            result = one.finish()
            one.close()
        return result
