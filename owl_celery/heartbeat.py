"""The worker bootstep behind heartbeats, claims and draining; runs in the worker's parent."""

from __future__ import annotations

import logging
import multiprocessing
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from types import FrameType
from typing import Any, ClassVar, Final

from celery import bootsteps
from celery.worker import state as worker_state

from owl_celery.brokers import open_broker
from owl_celery.brokers.base import Owner
from owl_celery.claims import Claims
from owl_celery.draining import Draining
from owl_celery.gpus import FakeGpus, GpuReader, NvmlReader, current_gpu, fake_gpu
from owl_celery.losses import Losses, count_losses
from owl_celery.pulse import Pulse
from owl_celery.recovery import recover
from owl_celery.redis_state import RedisState
from owl_celery.settings import Settings
from owl_celery.wire import Heartbeat

log = logging.getLogger(__name__)

TICK_SECONDS: Final = 1.0
MAX_CONCURRENCY: Final = 1024
ORPHAN_SECONDS: Final = 10.0
SAME_REQUEST_SECONDS: Final = 2.0


class HeartbeatStep(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery has no types
    """Says what this worker is and does; ``make_heartbeat_step`` gives it what it uses.

    A worker with a GPU of its own is announced as closed until it consumes, so that no task waits
    for one that fails to start. A plain worker is announced without a queue: never a candidate.
    """

    state: ClassVar[RedisState]
    settings: ClassVar[Settings]
    reader: ClassVar[GpuReader | None]

    @staticmethod
    def prepare_retry(queue: str) -> None:
        """Called before a task of a queue is sent again whose process was killed."""

    def __init__(self, parent: Any, **_: Any) -> None:
        super().__init__(parent)
        self._gpu = current_gpu()
        self._worker = parent
        self._life = secrets.token_hex(4)
        self._active: tuple[str, ...] = ()
        self._is_ready = False
        self._is_closing = False
        self._is_draining = False
        self._is_drained = False
        self._has_said_draining = False
        self._left_queues: list[str] | None = None
        self._last_tick = time.monotonic()
        self._orphan_since: float | None = None
        self._parent_pid = os.getppid()
        self._terminate_requested_at = 0.0
        self._on_terminate: Callable[[int, FrameType | None], Any] | None = None

    def include(self, parent: Any) -> bool:
        """Start first and stop last: a worker that finishes its last task still lives."""
        included = bool(super().include(parent))
        parent.steps.remove(self)
        parent.steps.insert(0, self)
        return included

    def create(self, parent: Any) -> None:
        """Claim GPU and queue.

        Raises
        ------
        ClaimedError
            When another worker has one of them; nothing has started yet.

        """
        owner = self.settings.worker_owner or secrets.token_hex(8)
        ttl = self.settings.heartbeat_ttl_seconds
        claims = Claims(self.state, self._gpu.uuid, self._gpu.queue, parent.hostname, owner, ttl)
        is_owner, broker = claims.take(), open_broker(parent.app)
        if self.settings.rescue and is_owner and self._gpu.queue:
            owner_of_queue = Owner(self.state.keys.claim(self._gpu.queue), claims.value)
            recover(broker, self._gpu.queue, owner_of_queue, self.settings.max_worker_losses)
        self._draining = Draining(
            broker,
            self._gpu.queue,
            parent.app.conf.task_default_queue,
            self.settings.drain_timeout_seconds,
        )
        self._reader = self.reader or self._own_reader()
        self._losses = Losses(
            self.state,
            self.settings.max_worker_losses,
            lambda: self._pulse.changed(),
            may_run_on=parent.app.connection_for_read().transport.driver_type == "redis",
        )
        self._pulse = Pulse(
            self.state,
            self.settings,
            self._describe,
            claims,
            self._reader,
            self._gpu.uuid,
            self._on_round,
            self._losses.write,
        )
        count_losses(parent.app, self._losses, self.prepare_retry)

    def start(self, parent: Any) -> None:
        """Begin to beat; drain on SIGTERM in a worker with a queue of its own."""
        if self._gpu.queue:
            self._take_over_terminate()
        if not parent.use_eventloop:
            parent.timer.call_repeatedly(TICK_SECONDS, self._tick)
        if not parent.use_eventloop or parent.pool_start_method == "spawn":
            self._pulse.start()

    def register_with_event_loop(self, parent: Any, hub: Any) -> None:
        """Follow the event loop; called again after a lost connection."""
        self._losses.disconnected()
        hub.on_tick.add(self._tick)
        # Wakes the loop while nothing happens, and runs on while the pool finishes its last tasks.
        hub.timer.call_repeatedly(TICK_SECONDS, self._tick)
        if self._pulse.ident is None:
            # Not sooner where the pool forks: a forked child must not find a lock held by a thread.
            self._pulse.start()

    def close(self, parent: Any) -> None:
        """Announce the end: the worker consumes no more."""
        self._is_closing = True
        self._pulse.changed()

    def stop(self, parent: Any) -> None:
        """Take back heartbeat and claims; leave nothing in a queue that nobody serves."""
        self._pulse.stop()
        self._losses.hand_back()
        if self._gpu.queue:
            self._draining.leave()

    def terminate(self, parent: Any) -> None:
        """Do the same after a cold stop."""
        self.stop(parent)

    def _describe(self) -> Heartbeat:
        return Heartbeat(
            node=self._worker.hostname,
            queue=self._gpu.queue,
            gpu_model=self._gpu.model,
            gpu_uuid=self._gpu.uuid,
            concurrency=min(max(int(self._worker.concurrency or 1), 1), MAX_CONCURRENCY),
            active=self._active,
            draining=self._is_closing or self._is_draining or not self._is_ready,
            tick_age_seconds=self._tick_age_seconds(),
            consuming=self._is_consuming(),
            life=self._life,
            is_simulated=self._gpu.is_simulated,
        )

    def _tick_age_seconds(self) -> float:
        """How long the event loop has stood still; from the heartbeat thread."""
        if not self._worker.use_eventloop and worker_state.reserved_requests:
            return 0.0  # A pool without processes blocks it while a task runs.
        return round(time.monotonic() - self._last_tick, 3)

    def _is_consuming(self) -> bool:
        """Whether the broker gives us what waits in our queue; from the heartbeat thread."""
        if not self._gpu.queue or not self._is_ready:
            return True
        consumer = getattr(getattr(self._worker, "consumer", None), "task_consumer", None)
        return consumer is not None and bool(consumer.consuming_from(self._gpu.queue))

    def _tick(self) -> None:
        """Look at the worker, in its event loop; some microseconds, since it runs at every turn."""
        self._last_tick = time.monotonic()
        if not self._gpu.queue:
            self._is_ready = True
            return
        # Celery tells nobody in the parent that a task ended, but each end is a turn of the loop.
        active = held_by(getattr(self._worker, "consumer", None))
        if active != self._active or not self._is_ready:
            self._active = active
            self._is_ready = True
            self._simulate_load()
            self._pulse.changed()
        must_leave = self._is_draining or self._pulse.is_queue_drained
        if must_leave != (self._left_queues is not None):
            self._leave_other_queues() if must_leave else self._return_to_other_queues()

    def _own_reader(self) -> GpuReader | None:
        gpu = self._gpu
        if gpu.is_simulated:
            return FakeGpus([replace(fake_gpu(0, gpu.model, host=""), uuid=gpu.uuid)])
        return NvmlReader() if gpu.uuid else None

    def _simulate_load(self) -> None:
        """Let a virtual GPU look busy while its worker is."""
        if self._gpu.is_simulated and isinstance(self._reader, FakeGpus):
            ratio = min(len(self._active) / self._gpu.concurrency, 1.0)
            readings = replace(self._reader.read(self._gpu.uuid), utilization_ratio=ratio)
            self._reader.set_readings(self._gpu.uuid, readings)

    def _take_over_terminate(self) -> None:
        """Drain before the warm shutdown that SIGTERM means to Celery."""
        if threading.current_thread() is threading.main_thread():
            handler = signal.getsignal(signal.SIGTERM)
            if callable(handler) and self.settings.drain_timeout_seconds > 0:
                self._on_terminate = handler
                signal.signal(signal.SIGTERM, self._terminate_requested)

    def _terminate_requested(self, signum: int, frame: FrameType | None) -> None:
        """Handle SIGTERM; takes no lock, which the interrupted code might hold."""
        assert self._on_terminate is not None
        now = time.monotonic()
        if not self._is_draining and self._is_ready and not self._is_closing:
            self._terminate_requested_at = now
            self._is_draining = True
        elif self._is_drained or now - self._terminate_requested_at > SAME_REQUEST_SECONDS:
            # Drained, or asked again; a process manager that signals every process of a service
            # has our supervisor ask a second time for the same stop.
            self._on_terminate(signum, frame)

    def _leave_other_queues(self) -> None:
        """Serve the own queue alone, so that it and the GPU run empty."""
        consumer = self._worker.consumer
        if getattr(consumer, "task_consumer", None) is None:
            return  # Not connected; asked again at the next turn.
        names = list(self._worker.app.amqp.queues.consume_from)
        self._left_queues = [name for name in names if name != self._gpu.queue]
        for name in self._left_queues:
            consumer.cancel_task_queue(name)

    def _return_to_other_queues(self) -> None:
        consumer = self._worker.consumer
        if getattr(consumer, "task_consumer", None) is None:
            return
        for name in self._left_queues or ():
            consumer.add_task_queue(name)
        self._left_queues = None

    def _on_round(self) -> None:
        """Some times a second, in the heartbeat thread."""
        if not self._gpu.queue:
            return
        self._watch_supervisor()
        if not self._is_draining or self._is_drained or self._is_closing:
            return
        if not self._has_said_draining:
            self._has_said_draining = True
            self._pulse.changed()
        if self._draining.is_done(is_idle=not self._active):
            self._is_drained = True
            self._signal_worker(signal.SIGTERM)

    def _watch_supervisor(self) -> None:
        """Stop at once, and give back what is held, when the supervisor was killed."""
        supervisor = multiprocessing.parent_process()
        if supervisor is None or (supervisor.is_alive() and os.getppid() == self._parent_pid):
            return
        if self._orphan_since is None:
            self._orphan_since = time.monotonic()
            log.error("owl: the supervisor of this worker is gone; the worker stops")
            self._signal_worker(signal.SIGQUIT)
        elif time.monotonic() - self._orphan_since > ORPHAN_SECONDS:
            os.kill(os.getpid(), signal.SIGKILL)

    def _signal_worker(self, signum: signal.Signals) -> None:
        """Signal the main thread, and wake its event loop to act on it."""
        main_thread = threading.main_thread().ident
        assert main_thread is not None
        signal.pthread_kill(main_thread, signum)
        hub = getattr(self._worker, "hub", None)
        if hub is not None:
            hub.call_soon(self._tick)


def held_by(consumer: Any) -> tuple[str, ...]:
    """Ids of the tasks that a worker runs, or keeps back for the sake of a rate limit.

    While it keeps one back it may take no other: it is not idle, nor does it leave alone what
    waits.
    """
    buckets = getattr(consumer, "task_buckets", None) or {}
    limited = [request for bucket in buckets.values() if bucket for request, _ in bucket.contents]
    return tuple(sorted(request.id for request in (*worker_state.reserved_requests, *limited)))


def make_heartbeat_step(
    state: RedisState,
    settings: Settings,
    reader: GpuReader | None = None,
    prepare_retry: Callable[[str], None] = HeartbeatStep.prepare_retry,
) -> type[HeartbeatStep]:
    """Make the bootstep for ``app.steps["worker"]``.

    Parameters
    ----------
    state
        Redis that producers, workers and controller share.
    settings
        Pauses and time limits.
    reader
        How to read the GPU; NVML, or made-up values for a virtual GPU, when omitted.
    prepare_retry
        Called in the parent before a task is sent again whose process was killed.

    """
    return type(
        "OwlHeartbeat",
        (HeartbeatStep,),
        {
            "state": state,
            "settings": settings,
            "reader": reader,
            "prepare_retry": staticmethod(prepare_retry),
            "__module__": __name__,
        },
    )
