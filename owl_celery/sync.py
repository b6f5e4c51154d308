"""What one producer process knows of the load, and what it tells of its own assignments.

The router reads and writes memory only. One daemon thread a process, started at the first task
and again after a fork, talks to Redis: one round trip every few tens of milliseconds while tasks
are published, one a second otherwise.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
import weakref
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from owl_celery.breaker import Breaker
from owl_celery.counters import RoutingTally, Teller
from owl_celery.fleet import Fleet
from owl_celery.others import Others
from owl_celery.policies import make_policy
from owl_celery.policies.base import Policy
from owl_celery.records import FleetRecord, Knowledge, View, decode_record
from owl_celery.redis_state import RedisState
from owl_celery.redis_trouble import trouble_of
from owl_celery.settings import Settings
from owl_celery.snapshot import Snapshot, add_assignments, add_by_model, load_fleet, policy_chain
from owl_celery.wire import mode_of

log = logging.getLogger(__name__)

BUSY_FOR_SECONDS: Final = 2.0
UNUSED_SECONDS: Final = 4.0
"""Pause between two syncs of a process that has never sent a task: the pool children of a fleet."""

IN_FLIGHT_LIMIT_SECONDS: Final = 5.0
LEAST_RETRY_SECONDS: Final = 0.1
COUNTERS_SECONDS: Final = 1.0
"""Pause between two reports of what was counted: it costs as much as the rest of a sync."""
KNOWLEDGE_SECONDS: Final = 0.25
"""Pause between two readings of the policy's knowledge; each costs as much as ten syncs."""

SHARE_OF_TIME: Final = 0.05
"""Most of the process's time that the thread takes: with many queues it syncs less often."""


@dataclass(slots=True)
class Batch:
    """Assignments that were told to Redis together.

    Parameters
    ----------
    sent_at
        Redis clock when they were told, seconds.
    told_at
        Our monotonic clock then.
    count, seconds
        By queue.

    """

    sent_at: float
    told_at: float
    count: Counter[str]
    seconds: dict[str, float]


@dataclass(slots=True)
class _Untold:
    """Assignments and arrivals not yet told to Redis."""

    count: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    arrivals: Counter[str] = field(default_factory=Counter)

    def __bool__(self) -> bool:
        return bool(self.count or self.arrivals)


class ProducerSync:
    """The load view of this process.

    Parameters
    ----------
    state
        Where the controller publishes its view.
    settings
        Pauses and ages.
    clock
        Monotonic seconds.

    Attributes
    ----------
    mode
        The kill switch as last read: ``on``, ``shadow`` or ``off``.
    failures
        Syncs that failed since the start of the process.
    tally
        What the router counts, and the syncs tell.

    """

    def __init__(
        self,
        state: RedisState,
        settings: Settings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._state = state
        self._settings = settings
        self._clock = clock
        self.tally = RoutingTally()
        self._begin()
        forget = weakref.WeakMethod(self._begin)
        os.register_at_fork(after_in_child=lambda: (begin := forget()) and begin())

    def _begin(self) -> None:
        """Start from nothing: at the start, and in a child, whose parent's state is not its own."""
        # Another thread of the parent may have held the lock at the fork.
        self._lock = threading.Lock()
        self._sync_lock = threading.Lock()
        self.mode = "on"
        self.failures = 0
        self._snapshot: Snapshot | None = None
        self._untold = _Untold()
        self.tally.clear()
        self._teller = Teller()
        self._tally_due = 0.0
        self._in_flight: deque[Batch] = deque()
        self._others = Others()
        self._view: View | None = None
        self._fleet_record: FleetRecord | None = None
        self._queues: Fleet | None = None
        self._rows: dict[str, int] = {}
        self._knowledge_version = -1
        self._knowledge_due = 0.0
        self._policies: list[Policy] = []
        self._unreadable: set[str] = set()
        self._changed_at = 0.0
        self._redis_origin: float | None = None
        self._last_use = -BUSY_FOR_SECONDS
        self._redis = Breaker(
            "producer",
            "redis",
            "owl: no load view: {reason} Tasks go the simpler way until it is back.",
            "owl: the load view is back",
            least_seconds=LEAST_RETRY_SECONDS,
            most_seconds=self._settings.sync_idle_seconds,
            logger=log,
            clock=self._clock,
        )
        self._has_synced = threading.Event()
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def lock(self) -> threading.Lock:
        """Held while a decision reads and writes the snapshot."""
        return self._lock

    def snapshot(self) -> Snapshot | None:
        """The latest snapshot; None until the first view has arrived. Starts the thread."""
        if self._thread is None:
            self._start()
        now = self._clock()
        if now - self._last_use > BUSY_FOR_SECONDS:
            self._wake.set()
        self._last_use = now
        return self._snapshot

    def first_snapshot(self, patience_seconds: float) -> Snapshot | None:
        """The latest snapshot, once the first sync has ended; None when that takes longer."""
        self.start()
        self._has_synced.wait(patience_seconds)
        return self._snapshot

    def start(self) -> None:
        """Fetch views from now on, now and then: for a process that may have to choose one day."""
        if self._thread is None:
            self._start()

    def free_memory_bytes(self, queue: str) -> float:
        """Free GPU memory behind an idle queue by the latest view; 0 where unknown."""
        snapshot = self._snapshot
        row = snapshot.rows.get(queue) if snapshot else None
        if snapshot is None or row is None:
            return 0.0
        free = snapshot.fleet.free_memory_bytes.item(row)
        return 0.0 if math.isnan(free) else free

    def published(self, task_type: str, queue: str | None, seconds: float | None) -> None:
        """Count a task that is being published.

        Parameters
        ----------
        task_type
            Its type, wherever it goes.
        queue
            The one of our queues in which it will wait; None when it goes elsewhere.
        seconds
            Predicted service time; None without a prediction. The controller puts its own in, and
            until then the task counts here as the mean of what waits there.

        """
        with self._lock:
            untold = self._untold
            untold.arrivals[task_type] += 1
            if queue is None:
                return
            untold.count[queue] += 1
            untold.seconds[queue] += seconds or 0.0
            snapshot = self._snapshot
            row = snapshot.rows.get(queue) if snapshot else None
            if snapshot is not None and row is not None:
                fleet = snapshot.fleet
                if seconds is None:
                    waiting = fleet.waiting_count.item(row)
                    seconds = fleet.waiting_seconds.item(row) / waiting if waiting else 0.0
                snapshot.sent(row, seconds)

    def wall_time(self) -> float:
        """Unix time by the clock of Redis; by our own until it was asked.

        All producers share it, and it does not jump when the clock of a host is set.
        """
        origin = self._redis_origin
        return time.time() if origin is None else origin + self._clock()

    def flush(self) -> None:
        """Sync once, now, in the calling thread."""
        self._sync_logged(has_to_tell=True)

    def close(self) -> None:
        """Tell what is untold and stop the thread; the next task starts it again."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._stop.set()
        self._wake.set()
        thread.join(timeout=3.0)

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._stop = threading.Event()
                self._thread = threading.Thread(target=self._run, name="owl-sync", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        stop, wake = self._stop, self._wake
        while not stop.is_set():
            began = time.thread_time()
            self._sync_logged()
            cost = time.thread_time() - began
            is_busy = self._clock() - self._last_use < BUSY_FOR_SECONDS
            if is_busy:
                pause = max(self._settings.sync_busy_seconds, cost / SHARE_OF_TIME)
                stop.wait(max(pause, self._redis.pause_seconds))
            else:
                was_used = self._last_use >= 0.0
                wake.wait(self._settings.sync_idle_seconds if was_used else UNUSED_SECONDS)
            wake.clear()
        if self._untold or self._teller.untold(self._totals()):
            self.flush()

    def _sync_logged(self, has_to_tell: bool = False) -> None:
        """Sync; a failure is counted, and logged when it begins and when it ends."""
        with self._sync_lock:
            try:
                if has_to_tell:
                    self._tally_due = self._knowledge_due = 0.0
                self._sync()
            except Exception as error:
                # Whatever it is: a thread that ends here would leave this process without a view.
                self.failures += 1
                self._redis.fails(trouble_of(error))
            else:
                self._redis.works()
            self._has_synced.set()

    def _totals(self) -> dict[str, float]:
        return {**self.tally.totals(), **self._redis.totals()}

    def _sync(self) -> None:
        keys, counted = self._state.keys, {}
        with self._lock:
            untold, self._untold = self._untold, _Untold()
        pipe = self._state.client.pipeline(transaction=False)
        if self._clock() >= self._tally_due:
            counted = self._teller.untold(self._totals())
            self._teller.write(pipe, keys.counters, counted)
        for queue, count in untold.count.items():
            pipe.hincrby(keys.assigned_count, queue, count)
            pipe.hincrbyfloat(keys.assigned_seconds, queue, untold.seconds[queue])
        for task_type, count in untold.arrivals.items():
            pipe.hincrby(keys.arrivals, task_type, count)
        pipe.time()
        pipe.get(keys.view)
        pipe.get(keys.mode)
        try:
            replies = pipe.execute(raise_on_error=False)
            *_, (seconds, microseconds), view_text, mode = self._without_counters(counted, replies)
        except Exception:
            with self._lock:
                # Counting a batch twice is corrected by the queue's true depth, losing it is not.
                self._untold.count.update(untold.count)
                for queue, told in untold.seconds.items():
                    self._untold.seconds[queue] += told
                self._untold.arrivals.update(untold.arrivals)
            raise
        self.mode = mode_of(mode)
        now = self._clock()
        self._redis_origin = seconds + microseconds / 1e6 - now
        if untold.count:
            batch = Batch(seconds + microseconds / 1e6, now, untold.count, untold.seconds)
            self._in_flight.append(batch)
        view = decode_record(View, view_text) if view_text else None
        if view is None or (self._view is not None and view.version == self._view.version):
            return
        self._receive(view, now)

    def _without_counters(self, counted: dict[str, float], replies: list[Any]) -> list[Any]:
        """Note what was counted as told, and give the other replies; an error among them raises.

        Counters that Redis refuses are tried again, and keep nobody from the view.
        """
        if counted:
            self._teller.confirm(counted, replies[: len(counted)])
            self._tally_due = self._clock() + COUNTERS_SECONDS
        others = replies[len(counted) :]
        for reply in others:
            if isinstance(reply, Exception):
                raise reply
        return others

    def _receive(self, view: View, now: float) -> None:
        """Make the next snapshot of a new view."""
        if self._view is not None and view.version < self._view.version:
            # Redis has lost its data, and numbers start over: ours may name other records now.
            self._fleet_record, self._knowledge_version = None, -1
        fleet_record, knowledge = self._fetch(view)
        if fleet_record is None or fleet_record.version != view.fleet_version:
            return
        if fleet_record is not self._fleet_record or self._queues is None:
            self._queues = Fleet(
                fleet_record.names, fleet_record.gpu_models, fleet_record.concurrency
            )
            self._rows = {name: row for row, name in enumerate(self._queues.names)}
            self._fleet_record = fleet_record
            self._others.forget()
        fleet, rows = load_fleet(self._queues, view, now), self._rows
        ours = np.zeros(len(fleet.models))
        while self._in_flight and (
            self._in_flight[0].sent_at <= view.ledger_time
            or now - self._in_flight[0].told_at > IN_FLIGHT_LIMIT_SECONDS
        ):
            add_by_model(ours, self._queues, rows, self._in_flight.popleft().seconds)
        if len(view.assigned_seconds) == len(ours):
            self._others.counted(np.asarray(view.assigned_seconds), view.ledger_time, ours)
        with self._lock:
            for told in self._in_flight:
                add_assignments(fleet, rows, told.count, told.seconds)
            add_assignments(fleet, rows, self._untold.count, self._untold.seconds)
            if knowledge is not None and knowledge.version != self._knowledge_version:
                self._learn(knowledge)
            self._view, self._changed_at = view, now
            self._snapshot = Snapshot(
                fleet,
                rows,
                self._policies,
                self._knowledge_version,
                self._changed_at,
                others_pace=self._others.pace,
            )

    def _fetch(self, view: View) -> tuple[FleetRecord | None, Knowledge | None]:
        """Get the records that go with a view, when they are newer than ours."""
        keys, record = self._state.keys, self._fleet_record
        needs_fleet = record is None or record.version != view.fleet_version
        is_new = view.knowledge_version != self._knowledge_version
        needs_knowledge = is_new and self._clock() >= self._knowledge_due
        names = [keys.fleet] * needs_fleet + [keys.knowledge] * needs_knowledge
        texts = self._state.client.mget(names) if names else []
        knowledge = None
        if needs_fleet:
            record = decode_record(FleetRecord, texts[0]) if texts[0] else None
        if needs_knowledge:
            self._knowledge_due = self._clock() + KNOWLEDGE_SECONDS
        if needs_knowledge and texts[-1]:
            knowledge = decode_record(Knowledge, texts[-1])
        return record, knowledge

    def _learn(self, knowledge: Knowledge) -> None:
        """Take over the controller's policy and all that it knows."""
        names = policy_chain(knowledge.policy)
        if [policy.name for policy in self._policies] != names:
            self._policies = [
                make_policy(self._settings.model_copy(update={"policy": name})) for name in names
            ]
        for policy in self._policies:
            try:
                policy.apply_snapshot(knowledge.snapshot)
            except Exception as error:
                # A policy without knowledge is not ready: the next simpler one takes over.
                if policy.name not in self._unreadable:
                    self._unreadable.add(policy.name)
                    log.warning("owl: %s cannot read what was published: %s", policy.name, error)
        self._knowledge_version = knowledge.version
