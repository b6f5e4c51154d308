"""The router: a pure function of a task and the in-memory snapshot; no I/O, and it never raises."""

from __future__ import annotations

import logging
import os
import secrets
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import count
from time import perf_counter
from typing import Any, Final

from celery import current_task
from kombu.entity import Queue

from owl_celery.errors import NoOpenQueueError
from owl_celery.memory_errors import is_out_of_memory
from owl_celery.sanity import sane_decision, sane_view
from owl_celery.settings import Settings
from owl_celery.snapshot import Snapshot
from owl_celery.sync import ProducerSync
from owl_celery.task_view import view_of_task
from owl_celery.types import Decision, TaskView
from owl_celery.wire import HEADER, TaskHeader, header_in

log = logging.getLogger(__name__)

RETRY_OPTIONS: Final = ("queue", "exchange", "routing_key", "redelivered")
NOTHING_TRIED: Final[tuple[frozenset[str], float]] = (frozenset(), 0.0)
INTERNAL_PREFIX: Final = "celery."

RETRY_PATIENCE_SECONDS: Final = 0.25
"""How long a retry that ran out of memory waits for the first view of its process."""


@dataclass(slots=True)
class Routed:
    """What the router concluded about the task that this thread is sending.

    Parameters
    ----------
    router
        The router that concluded it.
    name
        Celery task name.
    task
        The task as the policy saw it.
    algorithm
        Name of the policy, ``celery`` when declined, ``user`` for an explicit destination.
    decision
        What the policy chose; None when it was not asked. In shadow mode the task goes elsewhere.
    policy_version
        Version of the knowledge behind the decision.

    """

    router: LearningRouterMixin
    name: str
    task: TaskView
    algorithm: str
    decision: Decision | None = None
    policy_version: int = 0


_routed: ContextVar[Routed | None] = ContextVar("owl_routed", default=None)
_lost_from: ContextVar[str] = ContextVar("owl_lost_from", default="")


class LearningRouterMixin:
    """Routing by what was learned, for a router class of your own.

    An instance is a callable for ``task_routes``. Override ``task_view`` to describe tasks
    otherwise, or ``declines`` to leave some to Celery; keep both free of I/O.

    Parameters
    ----------
    sync
        The load view of this process.
    settings
        Ages at which a view is stale or dead.
    make_queue
        Turns the name of one of our queues into the object that Celery publishes to.
    current_gpu_model, current_queue
        GPU model that this process runs on, and its queue; empty in a producer.
    clock
        Monotonic seconds.

    Attributes
    ----------
    tally
        What was decided since the start of the process.

    """

    def __init__(
        self,
        sync: ProducerSync,
        settings: Settings,
        make_queue: Callable[[str], Queue] = Queue,
        current_gpu_model: Callable[[], str] = str,
        clock: Callable[[], float] = time.monotonic,
        current_queue: Callable[[], str] = str,
    ) -> None:
        self.sync = sync
        self.settings = settings
        self.tally = sync.tally
        self._make_queue = make_queue
        self._current_gpu_model = current_gpu_model
        self._current_queue = current_queue
        self._clock = clock
        self._queues: dict[str, Queue] = {}

    @property
    def decisions(self) -> Counter[str]:
        """Tasks routed since the start of the process, by algorithm."""
        return self.tally.decisions

    @property
    def fallbacks(self) -> Counter[str]:
        """Tasks left to Celery or to a simpler policy, by reason."""
        return self.tally.fallbacks

    def task_view(
        self,
        name: str,
        args: Sequence[Any] | None,
        kwargs: Mapping[str, Any] | None,
        task: object | None,
        tried: frozenset[str],
    ) -> TaskView:
        """Describe a task to the policy; override to describe it otherwise."""
        return view_of_task(name, args, kwargs, task, tried)

    def declines(self, name: str, options: Mapping[str, Any]) -> bool:
        """Whether to leave this task to Celery; override to leave more."""
        return name.startswith(INTERNAL_PREFIX)

    def __call__(
        self,
        name: str,
        args: Sequence[Any] | None,
        kwargs: Mapping[str, Any] | None,
        options: dict[str, Any],
        task: object | None = None,
        **_: Any,
    ) -> dict[str, Any] | None:
        """Choose the queue of a task; None leaves it to Celery. Called by Celery on every send."""
        _routed.set(None)
        try:
            if self.declines(name, options):
                return None
            return self._route(name, args, kwargs, options, task)
        except Exception as error:
            # An exception here would make apply_async fail, and lose the task inside a retry.
            # Its message may quote arguments of the task, which are not ours to log.
            if not self.fallbacks["error"]:
                where = "".join(traceback.format_tb(error.__traceback__))
                log.error("owl: %s in the router; Celery routes\n%s", type(error).__name__, where)
            self._fall_back("error", type(error).__name__)
            return None

    def _route(
        self,
        name: str,
        args: Sequence[Any] | None,
        kwargs: Mapping[str, Any] | None,
        options: dict[str, Any],
        task: object | None,
    ) -> dict[str, Any] | None:
        began = perf_counter()
        headers = options.get("headers")
        header = header_in(headers) if headers else None
        is_pinned = has_destination(options)
        if is_pinned and header and is_pinned_by_retry(header, options):
            for option in RETRY_OPTIONS:
                options.pop(option, None)
            is_pinned = False
        tried, exceeded_bytes = self._tried(header) if header else NOTHING_TRIED
        view = self._describe(name, args, kwargs, task, tried)
        if exceeded_bytes:
            view = view._replace(exceeded_bytes=exceeded_bytes)
        if is_pinned:
            _routed.set(Routed(self, name, view, "user"))
            return None
        snapshot, mode = self.sync.snapshot(), self.sync.mode
        if snapshot is None and tried:
            # The only wait in here: by the default queue it could come to the same GPU again.
            snapshot = self.sync.first_snapshot(RETRY_PATIENCE_SECONDS)
        decision, reason = self._decide(view, snapshot)
        tally = self.tally
        tally.observe(perf_counter() - began)
        if snapshot is None or decision is None or mode != "on":
            self._fall_back(reason or mode)
            if decision is not None and mode == "shadow":
                tally.shadowed[decision.algorithm] += 1
            _routed.set(Routed(self, name, view, "celery", decision if mode == "shadow" else None))
            return None
        if reason is not None:
            self._fall_back(reason)
        tally.decisions[decision.algorithm] += 1
        _routed.set(Routed(self, name, view, decision.algorithm, decision, snapshot.policy_version))
        return {"queue": self.queue(decision.queue)}

    def _decide(
        self, task: TaskView, snapshot: Snapshot | None
    ) -> tuple[Decision | None, str | None]:
        """Ask the policies, best first; also say why it was not the best one."""
        if self.sync.mode == "off":
            return None, "mode_off"
        if snapshot is None:
            return None, "no_view"
        now = self._clock()
        age = now - snapshot.changed_at
        if age > self.settings.view_dead_seconds:
            return None, "dead_view"
        policies, reason = snapshot.policies, None
        if age > self.settings.view_stale_seconds and len(policies) > 1:
            policies, reason = policies[1:], "stale_view"
        with self.sync.lock:
            snapshot.fleet.unseen_seconds = snapshot.unseen_seconds(now)
            for policy in policies:
                if not policy.ready:
                    reason = reason or "no_knowledge"
                    continue
                try:
                    decision = sane_decision(policy.choose(task, snapshot.fleet, now))
                    # An unknown queue would swallow the task.
                    if not snapshot.fleet.is_open[snapshot.rows[decision.queue]]:
                        raise ValueError("a queue that is not open")
                    return decision, reason
                except NoOpenQueueError:
                    return None, "no_open_queue"
                except Exception as error:
                    if not self.fallbacks["policy_error"]:
                        log.error("owl: %s in policy %s", type(error).__name__, policy.name)
                    reason = "policy_error"
        return None, reason or "no_policy"

    def _describe(
        self,
        name: str,
        args: Sequence[Any] | None,
        kwargs: Mapping[str, Any] | None,
        task: object | None,
        tried: frozenset[str],
    ) -> TaskView:
        try:
            return sane_view(self.task_view(name, args, kwargs, task, tried))
        except Exception as error:
            if not self.fallbacks["bad_refinement"]:
                log.warning(
                    "owl: %s in the owl_ options of task %s; it is routed by its name alone",
                    type(error).__name__,
                    name,
                )
            self._fall_back("bad_refinement")
            return TaskView(name, tried=tried)

    def _tried(self, header: TaskHeader) -> tuple[frozenset[str], float]:
        """GPU models that this task must not see again, and free memory that was too little.

        Those of this process included, when the failed try ran here and out of memory.
        """
        tried, exceeded = frozenset(header.tried), header.exceeded_bytes
        if is_out_of_memory(sys.exc_info()[1], self.settings.out_of_memory_errors):
            tried |= {self._current_gpu_model()}
            exceeded = max(exceeded, self.sync.free_memory_bytes(self._current_queue()))
        return tried - {""}, exceeded

    def queue(self, name: str) -> Queue:
        """The object that Celery publishes to; made once for each of our queues."""
        queue = self._queues.get(name)
        if queue is None:
            queue = self._queues[name] = self._make_queue(name)
        return queue

    def _fall_back(self, reason: str, detail: str = "") -> None:
        if not self.fallbacks[reason]:
            log.info("owl: first fallback for reason %s %s", reason, detail)
        self.fallbacks[reason] += 1


class LearningRouter(LearningRouterMixin):
    """The router that ``install`` puts at the end of ``task_routes``."""


def has_destination(options: Mapping[str, Any]) -> bool:
    """Whether the caller, the task or a retry says where to send it."""
    get = options.get
    return not (get("queue") is get("exchange") is get("routing_key") is None)


def is_pinned_by_retry(header: TaskHeader, options: Mapping[str, Any]) -> bool:
    """Whether the destination was put there by ``Task.retry`` and not by the user.

    Celery pins a retry to the queue from which the failed try came: the one we chose, or another
    to which the waiting task was moved. A try whose queue the user chose stays there.
    """
    if header.algorithm == "user":
        return False
    queue = options.get("queue")
    name = (queue.name if isinstance(queue, Queue) else queue) or options.get("routing_key")
    request = current_task.request if current_task else None
    came_from = (getattr(request, "delivery_info", None) or {}).get("routing_key")
    # Where a process was killed its parent sends the task again, which has no current task.
    return name in (header.queue, came_from or _lost_from.get())


def retry_lost(queue: str) -> None:
    """Note that this thread is about to send a task again that was lost; ``queue`` had it."""
    _lost_from.set(queue)


class DecisionIds:
    """Ids that no other process gives, at a tenth of the price of a random one each."""

    def __init__(self) -> None:
        self._begin()
        os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        self._prefix = secrets.token_hex(5)
        self._numbers = count()

    def __call__(self) -> str:
        """The next id, about 12 characters."""
        return f"{self._prefix}{next(self._numbers):x}"


decision_ids = DecisionIds()


def stamp_published(
    headers: dict[str, Any] | None = None,
    routing_key: str | None = None,
    sender: str | None = None,
    **_: Any,
) -> bool:
    """Write the header ``owl`` on a task that is being published; for ``before_task_publish``.

    Returns whether one of our routers was asked about it.

    Celery passes no task id to routers and drops headers that a router returns, so the decision
    waits in a context variable for this signal, which comes in the same thread.
    """
    routed = _routed.get()
    _routed.set(None)
    if headers is None:
        return False
    if routed is None or routed.name != sender:
        if current_task:
            # A header passed on by a task would join this outcome to the decision on that one.
            headers.pop(HEADER, None)
        return False
    task, decision, algorithm = routed.task, routed.decision, routed.algorithm
    is_ours = decision is not None and decision.queue == routing_key
    if not is_ours and algorithm != "user":
        algorithm = "celery"
    header = TaskHeader(
        decision_id=decision_ids(),
        queue=routing_key or "",
        algorithm=algorithm,
        task_type=task.task_type,
        published_at=routed.router.sync.wall_time(),
        size=task.size,
        model=task.model,
        service_seconds=decision.service_seconds if decision else None,
        policy_version=routed.policy_version,
        explored=is_ours and decision is not None and decision.explored,
        propensity=decision.propensity if is_ours and decision is not None else None,
        tried=tuple(sorted(task.tried)) if task.tried else (),
        exceeded_bytes=task.exceeded_bytes,
    )
    value = header.encode()
    headers[HEADER] = value
    if isinstance(headers.get("headers"), dict):
        headers["headers"][HEADER] = value
    # A task with an eta is held by the worker and does not wait in the queue.
    waits_in = routing_key if is_ours and not headers.get("eta") else None
    routed.router.sync.published(header.task_type, waits_in, header.service_seconds)
    return True
