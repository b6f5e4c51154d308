"""The load of every queue: what waits, what runs, and which queues are there at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from owl_celery.brokers.base import Contents
from owl_celery.controller.load import Load, Move
from owl_celery.controller.running import Recent, Running, RunningTasks
from owl_celery.controller.waiting import Waiting
from owl_celery.controller.wedged import Wedged, takes_tasks
from owl_celery.types import Outcome
from owl_celery.wire import Discarded, Heartbeat, Started

SHORTEST_SECONDS: Final = 1e-3
IDLE_SECONDS: Final = 5.0
NEWER_BY_SECONDS: Final = 0.2
SILENT_SHARE: Final = 0.2
LOOK_SECONDS: Final = 0.5
"""Pause between two looks for wedged workers, which need not be in every tick."""


class Beat(NamedTuple):
    """A heartbeat, and when it expires by the ledger's clock."""

    heartbeat: Heartbeat
    expires_at: float


class _Server(NamedTuple):
    """A worker of a queue: its node name, slots, and until when it takes work."""

    node: str
    concurrency: int
    open_until: float


@dataclass(slots=True)
class _Queue:
    """A queue that live workers name, and the workers."""

    servers: list[_Server]
    gpu_model: str
    waiting: Waiting | None = None
    touched_at: float = 0.0
    free_memory_bytes: int | None = None
    kept_bytes: int = 0
    wedged: Wedged = field(default_factory=Wedged)

    def note_memory(self, beat: Heartbeat, is_busy: bool) -> None:
        """Work out what a task could have: all but what foreign processes hold."""
        free, own = beat.memory_free_bytes, beat.memory_own_bytes
        if free is None:
            self.free_memory_bytes = None
        elif own is not None:
            self.free_memory_bytes = free + own
        elif not is_busy:
            # PyTorch keeps what the last task had, for the next one.
            most = beat.memory_total_bytes
            kept = free + self.kept_bytes
            self.free_memory_bytes = kept if most is None else max(free, min(kept, most))


class LoadLedger:
    """Keeps account of the load from what producers, workers and the broker say.

    Nothing here is a bare counter: waiting work goes by the true depth of each queue, running
    work by the heartbeats of its worker, so that an idle fleet shows exactly 0 whatever was lost.
    Pure: no I/O; times are of one clock of the caller that never goes back.

    Parameters
    ----------
    beat_ttl_seconds
        How long a heartbeat counts.
    predict
        Service time of ``(task type, GPU model)`` for tries that carry no prediction; None when
        unknown.

    Attributes
    ----------
    drained
        Queues that an operator has closed, whatever their workers say.

    """

    def __init__(
        self,
        beat_ttl_seconds: float = 5.0,
        predict: Callable[[str, str], float | None] | None = None,
    ) -> None:
        self.drained: frozenset[str] = frozenset()
        self._ttl = beat_ttl_seconds
        self._predict = predict
        self._beats: dict[str, Beat] = {}
        self._queues: dict[str, _Queue] = {}
        self._running = RunningTasks()
        self._moved: Recent[str] = Recent()
        self._served: dict[str, float] = {}
        self._counted_at: float | None = None
        self._next_expiry = float("inf")
        self._looked_at = float("-inf")

    @property
    def queue_names(self) -> list[str]:
        """Queues that live workers name, sorted."""
        return sorted(self._queues)

    @property
    def heartbeats(self) -> list[Heartbeat]:
        """The latest of each worker that lives."""
        return [beat.heartbeat for beat in self._beats.values()]

    @property
    def wedged(self) -> dict[str, str]:
        """Queues whose worker takes no tasks though it lives, and what is wrong, in a clause."""
        return {name: q.wedged.reason for name, q in self._queues.items() if q.wedged.reason}

    def hear(self, beats: Iterable[Beat], now: float) -> None:
        """Take in the heartbeats of all workers, as read at ``now``; who is missing is gone."""
        heard = set()
        for beat in beats:
            node = beat.heartbeat.node
            heard.add(node)
            before = self._beats.get(node)
            is_newer = (
                before is None
                or beat.heartbeat != before.heartbeat
                or beat.expires_at > before.expires_at + NEWER_BY_SECONDS
            )
            if is_newer:
                self._beats[node] = beat
                sent_at = beat.expires_at - self._ttl
                self._running.reconcile(node, set(beat.heartbeat.active), sent_at)
        for node in self._beats.keys() - heard:
            self._forget(node)
        self._running.forget_orphans(self._beats.keys(), now)
        self._next_expiry = now
        self.expire(now)

    def expire(self, now: float) -> None:
        """Drop the workers whose heartbeat has expired, and the queues that nobody serves."""
        if now < self._next_expiry:
            return
        for node in [n for n, beat in self._beats.items() if beat.expires_at <= now]:
            self._forget(node)
        self._next_expiry = min(
            (beat.expires_at for beat in self._beats.values()), default=float("inf")
        )
        serving: dict[str, list[Beat]] = {}
        for node in sorted(self._beats):
            beat = self._beats[node]
            if beat.heartbeat.queue:
                serving.setdefault(beat.heartbeat.queue, []).append(beat)
        for name in self._queues.keys() - serving.keys():
            del self._queues[name]
        for name, beats in serving.items():
            queue = self._queues.get(name)
            if queue is None:
                queue = self._queues[name] = _Queue([], "", touched_at=now)
            queue.servers = [
                _Server(beat.heartbeat.node, beat.heartbeat.concurrency, self._open_until(beat))
                for beat in beats
            ]
            queue.gpu_model = beats[0].heartbeat.gpu_model
            is_busy = any(beat.heartbeat.active for beat in beats)
            queue.note_memory(beats[0].heartbeat, is_busy)

    def start(self, event: Started, at: float) -> None:
        """Note that a try began at ``at``."""
        key = f"{event.task_id}:{event.decision_id}:{event.attempt}"
        counted = seconds = self.counted_seconds(event.decision_id, event.service_seconds)
        if seconds is None and self._predict is not None:
            seconds = self._predict(event.task_type, event.gpu_model)
        task = Running(event.task_id, key, event.worker_id, seconds, at)
        if self._running.start(task):
            self._leave(event.queue, counted, at)

    def end(self, outcome: Outcome, at: float) -> None:
        """Note that a try ended at ``at``, or was never begun."""
        queue = self._queues.get(outcome.queue)
        if queue is not None and outcome.peak_memory_bytes is not None:
            queue.kept_bytes = outcome.peak_memory_bytes
        if outcome.state.succeeded:
            mean = self._served.get(outcome.gpu_model, outcome.service_seconds)
            self._served[outcome.gpu_model] = mean + 0.05 * (outcome.service_seconds - mean)
        if self._running.end(outcome.worker_id, outcome.task_id, outcome.key, at):
            counted = self.counted_seconds(outcome.decision_id, outcome.predicted_seconds)
            self._leave(outcome.queue, counted, at)

    def discard(self, event: Discarded, at: float) -> None:
        """Note that a worker took a task and did not run it, at ``at``."""
        key = f"{event.task_id}:{event.decision_id}:{event.attempt}"
        if self._running.end(event.worker_id, event.task_id, key, at):
            counted = self.counted_seconds(event.decision_id, event.service_seconds)
            self._leave(event.queue, counted, at)

    def waiting_names(self) -> list[str]:
        """Queues in which tasks wait."""
        return [name for name, q in self._queues.items() if q.waiting and q.waiting.count]

    def audit(self, name: str, contents: Contents) -> None:
        """Go by what the messages say that wait in a queue."""
        queue = self._queues.get(name)
        if queue is not None and queue.waiting is not None and contents.messages:
            queue.waiting.audited(*contents)

    def counted_seconds(self, decision_id: str, predicted: float | None) -> float | None:
        """What a task counts in the queue it is in; ``predicted`` when it was first sent."""
        return self._moved.get(decision_id, predicted)

    def move(self, move: Move, at: float) -> None:
        """Note that a waiting task was moved at ``at``."""
        self._leave(move.source, move.seconds_there, at)
        # Its start tells what was predicted where it came from.
        self._moved.add(move.decision_id, move.seconds_here)
        queue = self._queues.get(move.destination)
        if queue is not None and queue.waiting is not None:
            queue.waiting.came(move.seconds_here)
            queue.touched_at = at

    def free_rows(self, load: Load) -> list[int]:
        """Rows of open queues in which nothing waits and a process has nothing to do."""
        # A busy host takes long from taking a task out of its queue to telling that it runs.
        between = {name for name, q in self._queues.items() if q.waiting and q.waiting.is_between}
        closed = frozenset(load.closed)
        return [
            row
            for row, name in enumerate(load.names)
            if not load.waiting_count[row]
            and row not in closed
            and name not in between
            and self.held_count(name) < load.concurrency[row]
        ]

    def held_count(self, name: str) -> int:
        """Tasks that the workers of a queue hold."""
        queue = self._queues.get(name)
        servers = queue.servers if queue is not None else []
        return sum(self._running.count_on(server.node) for server in servers)

    def count(
        self,
        assigned_count: Mapping[str, int],
        assigned_seconds: Mapping[str, float],
        depths: Mapping[str, int],
        now: float,
    ) -> None:
        """Bring what waits up to date.

        Parameters
        ----------
        assigned_count, assigned_seconds
            Tasks and predicted seconds ever sent, by queue.
        depths
            Tasks that wait, by queue; a queue that is missing has an unknown depth.
        now
            When they were read.

        """
        elapsed = 0.0 if self._counted_at is None else max(now - self._counted_at, 0.0)
        self._counted_at = now
        for name, queue in self._queues.items():
            total = assigned_count.get(name, 0), assigned_seconds.get(name, 0.0)
            if queue.waiting is None:
                queue.waiting = Waiting(*total)
            elif queue.waiting.assigned(*total):
                queue.touched_at = now
            served = self._served.get(queue.gpu_model, 0.0)
            if name in depths:
                queue.waiting.correct(max(depths[name], 0), elapsed, served)
            elif self._is_idle(queue, now):
                queue.waiting.clear()
            else:
                queue.waiting.guess(served)
        if now - self._looked_at >= LOOK_SECONDS:
            self._looked_at = now
            self._look_for_wedged(depths, now)

    def _look_for_wedged(self, depths: Mapping[str, int], now: float) -> None:
        for name, queue in self._queues.items():
            if name not in self.drained:
                beats = [self._beats[server.node].heartbeat for server in queue.servers]
                is_idle = not self.held_count(name)
                queue.wedged.look(beats, depths.get(name), is_idle, now)

    def load(self, now: float) -> Load:
        """The load of every queue as it stands."""
        load = Load()
        for row, name in enumerate(self.queue_names):
            queue, waiting = self._queues[name], self._queues[name].waiting
            taking = [server for server in queue.servers if server.open_until > now]
            concurrency = sum(server.concurrency for server in taking or queue.servers)
            held = [task for server in queue.servers for task in self._running.on(server.node)]
            count, seconds = (waiting.count, waiting.seconds) if waiting else (0, 0.0)
            if held:
                running = self._running_rows(row, queue, held)
                load.running += running[:concurrency]
                # What a worker holds beyond its slots waits inside the worker.
                for _, extra, _ in running[concurrency:]:
                    count, seconds = count + 1, seconds + extra
            load.names.append(name)
            load.gpu_models.append(queue.gpu_model)
            load.concurrency.append(concurrency)
            load.waiting_count.append(count)
            load.waiting_seconds.append(seconds)
            load.free_memory_bytes.append(queue.free_memory_bytes)
            if not taking or queue.wedged.reason or name in self.drained:
                load.closed.append(row)
        return load

    def _running_rows(
        self, row: int, queue: _Queue, held: list[Running]
    ) -> list[tuple[int, float, float]]:
        """Row, predicted seconds and start of what runs, longest running first."""
        waiting = queue.waiting or Waiting(0, 0.0)
        mean = waiting.mean_seconds(self._served.get(queue.gpu_model, 0.0))
        held.sort(key=lambda task: task.since)
        return [
            (row, max(mean if task.seconds is None else task.seconds, SHORTEST_SECONDS), task.since)
            for task in held
        ]

    def _forget(self, node: str) -> None:
        del self._beats[node]
        self._running.forget_node(node)

    def _open_until(self, beat: Beat) -> float:
        """When a worker stops taking tasks, as far as its heartbeat tells."""
        if beat.heartbeat.draining or not takes_tasks(beat.heartbeat):
            return float("-inf")
        # Silence for most of that time is a bad sign.
        return beat.expires_at - SILENT_SHARE * self._ttl

    def _is_idle(self, queue: _Queue, now: float) -> bool:
        """Whether the workers of a queue have had nothing to do for a while."""
        is_busy = any(
            self._beats[server.node].heartbeat.active or self._running.on(server.node)
            for server in queue.servers
        )
        return not is_busy and now - queue.touched_at > IDLE_SECONDS

    def _leave(self, name: str, seconds: float | None, at: float) -> None:
        queue = self._queues.get(name)
        if queue is not None and queue.waiting is not None:
            queue.waiting.left(seconds)
            queue.touched_at = at
