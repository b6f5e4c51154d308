"""Tasks that kill who runs them: how often, and giving up on them; in the worker's parent.

Celery asks a task for the class of its requests, and here that class is extended. What it counts is
tries that have begun and not ended, so that a worker which is killed has counted already.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from billiard.einfo import ExceptionWithTraceback
from billiard.exceptions import WorkerLostError
from celery import Celery
from celery.utils.imports import symbol_by_name
from celery.worker.state import task_ready
from redis.exceptions import RedisError

from owl_celery.brokers.poison import announce_failure, too_many_losses
from owl_celery.memory_errors import KernelKills
from owl_celery.redis_state import RedisState
from owl_celery.wire import AGAIN_HEADER, Heartbeat

log = logging.getLogger(__name__)

REMEMBERED_SECONDS: Final = 86_400
ASK_AGAIN_SECONDS: Final = 5.0
"""Pause after a Redis that did not answer: who asks is the event loop, which waits for it."""

KILLED: Final = "signal 9"


class MemoryErrorOfTask(Exception):
    """A task's own ``MemoryError``, by a name for which Celery does not end the worker."""


class Losses:
    """Counts the tries of each task that began and never ended.

    Beginnings and ends go to Redis with the next heartbeat; of a short task neither does. Where
    Redis does not answer nothing counts, and tasks run.

    Parameters
    ----------
    state
        Where the counts are.
    limit
        Tries that may be lost before a task is given up; 0 for no limit, and then nothing counts.
    changed
        Asks for a heartbeat.
    may_run_on
        Whether a task that is delivered again may still run: on Redis, when it takes longer than
        the ``visibility_timeout``. RabbitMQ does so when a connection is lost, at once.
    clock
        Monotonic seconds.

    """

    def __init__(
        self,
        state: RedisState,
        limit: int,
        changed: Callable[[], None],
        may_run_on: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limit = limit
        self._may_run_on = may_run_on
        self._state = state
        self._changed = changed
        self._clock = clock
        self._ask_at = float("-inf")
        self._lock = threading.Lock()
        self._is_told: dict[str, bool] = {}
        self._ended: set[str] = set()
        self._returned: list[str] = []

    def begin(self, task_id: str) -> None:
        """Note that a try begins."""
        if self.limit:
            with self._lock:
                self._is_told[task_id] = False
            self._changed()

    def end(self, task_id: str, has_count: bool = False) -> None:
        """Note that a try ended as it should; ``has_count`` when earlier ones were lost."""
        with self._lock:
            if self._is_told.pop(task_id, False) or (has_count and self.limit):
                self._ended.add(task_id)

    def write(self, pipe: Any) -> None:
        """Add to a pipeline what Redis has not been told."""
        with self._lock:
            begun = [task_id for task_id, is_told in self._is_told.items() if not is_told]
            self._is_told.update(dict.fromkeys(begun, True))
            ended, self._ended = self._ended, set()
            returned, self._returned = self._returned, []
        for task_id in returned:
            self._add(pipe, task_id, -1)
        for task_id in begun:
            self._add(pipe, task_id)
        if ended:
            pipe.delete(*map(self._state.keys.lost, ended))

    def lost(self, task_id: str) -> int:
        """Note that a try was lost; how many were, this one included, and 0 if unknown."""
        if not self.limit:
            return 0
        with self._lock:
            is_told = self._is_told.pop(task_id, False)
        return self._ask(task_id, has_to_add=not is_told)

    def count(self, task_id: str, node: str) -> int:
        """Tries that were lost before one that is to begin on a node; 0 if unknown.

        None counts as lost while another worker runs the task.
        """
        if not self.limit:
            return 0
        count = self._ask(task_id)
        has_to_ask = self._may_run_on and count >= self.limit
        return 0 if has_to_ask and self._runs_elsewhere(task_id, node) else count

    def _runs_elsewhere(self, task_id: str, node: str) -> bool:
        keys, client = self._state.keys, self._state.client
        try:
            nodes: Any = client.smembers(keys.nodes)
            others = [keys.heartbeat(other) for other in nodes if other != node]
            texts: Any = client.mget(others) if others else []
        except RedisError:
            return True
        beats = [Heartbeat.decode(text) for text in texts if text]
        return any(beat is not None and task_id in beat.active for beat in beats)

    def disconnected(self) -> None:
        """Note that what this worker holds is the broker's again: should it die, none is lost.

        Others may run it while the tries that have begun here go on.
        """
        with self._lock:
            self._returned += [task_id for task_id, is_told in self._is_told.items() if is_told]
            self._is_told.clear()

    def hand_back(self) -> None:
        """Note that this worker stops, and what it holds is not lost."""
        self.disconnected()
        try:
            with self._state.client.pipeline(transaction=False) as pipe:
                self.write(pipe)
                pipe.execute()
        except RedisError:
            return  # The heartbeat has said that Redis is away; each counts as lost once.

    def _add(self, pipe: Any, task_id: str, count: int = 1) -> None:
        key = self._state.keys.lost(task_id)
        pipe.incrby(key, count)
        pipe.expire(key, REMEMBERED_SECONDS)

    def _ask(self, task_id: str, has_to_add: bool = False) -> int:
        if self._clock() < self._ask_at:
            return 0
        try:
            with self._state.client.pipeline(transaction=False) as pipe:
                if has_to_add:
                    self._add(pipe, task_id)
                pipe.get(self._state.keys.lost(task_id))
                return int(pipe.execute()[-1] or 0)
        except (RedisError, ValueError):
            self._ask_at = self._clock() + ASK_AGAIN_SECONDS
            return 0


def count_losses(app: Celery, losses: Losses, prepare: Callable[[str], None]) -> None:
    """Have the requests of all tasks count; called before the worker consumes.

    Parameters
    ----------
    prepare
        Called before a task is sent again whose process was killed, with the queue that it came
        from: the router needs that, and a view.

    """
    for task in app.tasks.values():
        task.Request = counted(symbol_by_name(task.Request), losses, KernelKills(), prepare)


def counted(
    base: Any, losses: Losses, kills: KernelKills, prepare: Callable[[str], None] = lambda _: None
) -> Any:
    """Extend a class of requests."""

    class CountedRequest(base):  # type: ignore[misc]  # Celery has no types
        """Gives up on a task that was lost too often."""

        _owl_kills = 0
        _owl_is_lost = False

        def on_accepted(self, pid: int, time_accepted: float) -> None:
            self._owl_kills = kills.count()
            if self.task.acks_late:
                losses.begin(self.id)
            super().on_accepted(pid, time_accepted)

        def acknowledge(self) -> None:
            super().acknowledge()
            self._owl_end()

        def reject(self, requeue: bool = False) -> None:
            super().reject(requeue)
            self._owl_end()

        def revoked(self) -> bool:
            """Celery asks just before a task runs; most have never been delivered before."""
            if super().revoked():
                return True
            if not self._owl_is_again():
                return False
            count = losses.count(self.id, self.hostname)
            if not losses.limit or count < losses.limit:
                return False
            if not self._owl_give_up(count):
                self.reject(requeue=True)
            self._already_revoked = True
            return True

        def on_failure(
            self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False
        ) -> Any:
            error = exc_info.exception
            if isinstance(error, ExceptionWithTraceback):
                error = error.exc
            is_lost = isinstance(error, WorkerLostError | SystemExit | KeyboardInterrupt)
            if isinstance(error, MemoryError):
                exc_info.exception = MemoryErrorOfTask(*error.args)
            if not is_lost or self._already_cancelled or self._already_revoked:
                return super().on_failure(exc_info, send_failed_event, return_ok)
            if KILLED in str(error) and kills.count() > self._owl_kills:
                error.__cause__ = MemoryError("Linux has killed a process for lack of memory.")
            self._owl_is_lost = True
            count = losses.lost(self.id)
            is_over = bool(losses.limit) and count >= losses.limit
            # A process that was killed after the result was stored is a success to Celery.
            if is_over and not self._success_was_stored() and self._owl_give_up(count, error):
                return None
            prepare(self.delivery_info.get("routing_key") or "")
            try:
                # So that the router, when the task is sent again, sees why.
                raise error
            except BaseException:
                return super().on_failure(exc_info, send_failed_event, return_ok)

        def _owl_end(self) -> None:
            if not self._owl_is_lost:
                has_count = self._owl_is_again() or bool(self.request_dict.get("retries"))
                losses.end(self.id, has_count)

        def _owl_is_again(self) -> bool:
            """Whether it was delivered before, also as the message that this is a copy of."""
            known = self.request_dict.get(AGAIN_HEADER)
            return bool(self.delivery_info.get("redelivered") or known)

        def _owl_give_up(self, count: int, cause: BaseException | None = None) -> bool:
            """Let the task fail; False when its result cannot be stored, and it goes on."""
            error = too_many_losses(count)
            error.__cause__ = cause
            log.error("owl: task %r (%r): %s", self.name, self.id, error)
            try:
                self.task.backend.mark_as_failure(
                    self.id, error, request=self._context, store_result=self.store_errors
                )
            except Exception as problem:
                log.error("owl: the failure of a task cannot be stored: %r", problem)
                return False
            task_ready(self)
            self.acknowledge()
            losses.end(self.id, has_count=True)
            self.send_event("task-failed", exception=repr(error), traceback="")
            announce_failure(self.task, self.id, error, self._context)
            return True

    return CountedRequest
