"""Celery signals become events: one start and one outcome for each try of a task.

Runs in the pool child, where a task starts and ends, and in the worker parent, which alone hears
of a child that was killed. Handlers never raise: Celery would only log it, and we count it.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import wraps
from typing import Any, Final, ParamSpec

from billiard.exceptions import WorkerLostError
from celery import Celery, signals
from celery.exceptions import Reject

from owl_celery.gpus import CurrentGpu
from owl_celery.memory_errors import is_out_of_memory
from owl_celery.outbox import Outbox
from owl_celery.router import INTERNAL_PREFIX
from owl_celery.task_view import view_of_task
from owl_celery.types import Outcome, TaskView, TryState
from owl_celery.wire import MAX_NAME_LENGTH, Discarded, Started, TaskHeader, header_in

log = logging.getLogger(__name__)

REMEMBERED_REQUESTS: Final = 1_000
STATES: Final = {
    "SUCCESS": TryState.SUCCESS,
    "FAILURE": TryState.FAILURE,
    "RETRY": TryState.RETRY,
    "REVOKED": TryState.REVOKED,
}

P = ParamSpec("P")


@dataclass(slots=True)
class Try:
    """One try of a task in this process.

    Parameters
    ----------
    started
        Monotonic time of its start.
    due_at
        Unix time from which the task waited; None when unknown, and of a try that was lost.

    """

    task_id: str
    attempt: int
    view: TaskView
    header: TaskHeader | None
    queue: str
    worker_id: str
    started: float
    due_at: float | None
    error: BaseException | None = None


class Feedback:
    """Handlers of the worker's task signals.

    Parameters
    ----------
    app
        The application whose tasks are reported.
    outbox
        Takes the events.
    gpu
        The GPU that this worker runs on; all empty in a plain worker.
    out_of_memory_errors
        As in ``Settings``.
    on_start
        Called in the child of a GPU worker when a try starts.
    clock, wall_clock
        Monotonic seconds, and Unix time.

    Attributes
    ----------
    errors
        Exceptions caught in handlers, by handler.

    """

    def __init__(
        self,
        app: Celery,
        outbox: Outbox,
        gpu: CurrentGpu,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        out_of_memory_errors: Collection[str] = (),
        on_start: Callable[[], None] = lambda: None,
    ) -> None:
        self._app = app
        self._outbox = outbox
        self._gpu = gpu
        self._clock = clock
        self._wall_clock = wall_clock
        self._out_of_memory_errors = out_of_memory_errors
        self._on_start = on_start
        self._running: dict[str, Try] = {}
        self._received: OrderedDict[str, Try] = OrderedDict()
        self._lock = threading.Lock()
        self.errors: Counter[str] = Counter()
        self._handlers: list[tuple[Any, Callable[..., None]]] = [
            (signals.task_received, self._counted(self.received)),
            (signals.task_prerun, self._counted(self.prerun)),
            (signals.task_failure, self._counted(self.failed)),
            (signals.task_retry, self._counted(self.retried)),
            (signals.task_postrun, self._counted(self.postrun)),
            (signals.task_revoked, self._counted(self.revoked)),
            (signals.worker_process_shutdown, self._counted(self.leave)),
        ]

    def connect(self) -> None:
        """Listen to the signals; a second call changes nothing."""
        for signal, handler in self._handlers:
            signal.connect(handler, weak=False, dispatch_uid=f"owl-{id(self)}-{signal.name}")

    def disconnect(self) -> None:
        """Stop listening."""
        for signal, _ in self._handlers:
            signal.disconnect(dispatch_uid=f"owl-{id(self)}-{signal.name}")

    def received(self, request: Any = None, **_: Any) -> None:
        """Parent: remember a message, in case its child does not live to tell."""
        if request is None or not self._is_reported(request.task):
            return
        headers = request.request_dict
        header = header_in(headers)
        received = Try(
            task_id=request.id,
            attempt=int(headers.get("retries") or 0),
            view=view_in(header, request.name),
            header=header,
            queue=self._queue(headers.get("delivery_info") or request.delivery_info),
            worker_id=str(request.hostname),
            started=self._clock(),
            due_at=None,
        )
        self._received[request.id] = received
        while len(self._received) > REMEMBERED_REQUESTS:
            self._received.popitem(last=False)

    def prerun(
        self,
        task_id: str = "",
        task: Any = None,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Child: a try starts."""
        request = task.request
        if request.is_eager or request.called_directly or not self._is_reported(task):
            return
        header = TaskHeader.decode(getattr(request, "owl", None)) or header_in(request.headers)
        running = Try(
            task_id=task_id,
            attempt=int(request.retries or 0),
            view=self._view(task, args, kwargs, header),
            header=header,
            queue=self._queue(request.delivery_info),
            worker_id=str(request.hostname),
            started=self._clock(),
            due_at=due_time(header, getattr(request, "eta", None)),
        )
        with self._lock:
            self._running[task_id] = running
        self._outbox.put(
            Started(
                task_id=task_id,
                decision_id=header.decision_id if header else "",
                attempt=running.attempt,
                task_type=running.view.task_type,
                queue=running.queue,
                worker_id=running.worker_id,
                gpu_model=self._gpu.model,
                service_seconds=predicted_in(header, running.queue),
            )
        )
        reset_peak_memory()
        if self._gpu.queue:
            # Should this try run out of memory, the next one needs a view that is there by then.
            self._on_start()

    def failed(self, task_id: str = "", exception: BaseException | None = None, **_: Any) -> None:
        """Child: keep the error for the end of the try. Parent: the child was lost."""
        running = self._running.get(task_id)
        if running is not None:
            running.error = exception
        elif not isinstance(exception, Reject):  # The author's own choice, made in the child.
            self._lost(task_id, exception)

    def retried(self, request: Any = None, reason: Any = None, **_: Any) -> None:
        """Child: keep the error that the task retries for. Parent: the child was lost."""
        if request is None:
            return
        # Inside an except block `raise self.retry()` names no exception but has one as its context.
        error = getattr(reason, "exc", None) or getattr(reason, "__context__", None)
        running = self._running.get(request.id)
        if running is not None:
            running.error = error if isinstance(error, BaseException) else None
        elif isinstance(error, WorkerLostError):
            self._lost(request.id, error)

    def _lost(self, task_id: str, error: BaseException | None) -> None:
        received = self._received.pop(task_id, None)
        if received is not None:
            received.error = error
            self._report(received, TryState.LOST)

    def postrun(self, task_id: str = "", state: str | None = None, **_: Any) -> None:
        """Child: a try ended."""
        with self._lock:
            running = self._running.pop(task_id, None)
        outcome = STATES.get(state or "")
        if running is not None and outcome is not None:
            self._report(running, outcome)

    def revoked(
        self, sender: Any = None, request: Any = None, terminated: bool = False, **_: Any
    ) -> None:
        """Parent: a task was revoked, or had expired; only one that had started is a try."""
        received = self._received.pop(getattr(request, "id", ""), None)
        if received is not None and terminated:
            self._report(received, TryState.REVOKED)
        elif request is not None and not terminated and self._is_reported(sender):
            self._discarded(request, sender.name)

    def _discarded(self, request: Any, name: str) -> None:
        """Say that a task waits no more, although it did not run."""
        header = TaskHeader.decode(getattr(request, "owl", None)) or header_in(request.headers)
        queue = self._queue(request.delivery_info)
        self._outbox.put(
            Discarded(
                task_id=request.id,
                decision_id=header.decision_id if header else "",
                attempt=int(request.retries or 0),
                task_type=view_in(header, name).task_type,
                queue=queue,
                worker_id=str(request.hostname),
                gpu_model=self._gpu.model,
                service_seconds=predicted_in(header, queue),
            )
        )

    def leave(self, **_: Any) -> None:
        """Child: send what is left before the process ends."""
        self._outbox.close()

    def _report(self, ended: Try, state: TryState) -> None:
        header, due_at = ended.header, ended.due_at
        seconds, finished_at = max(self._clock() - ended.started, 0.0), self._wall_clock()
        self._outbox.put(
            Outcome(
                task_id=ended.task_id,
                decision_id=header.decision_id if header else "",
                attempt=ended.attempt,
                task_type=ended.view.task_type,
                size=ended.view.size,
                queue=ended.queue,
                worker_id=ended.worker_id,
                gpu_model=self._gpu.model,
                state=state,
                service_seconds=seconds,
                finished_at=finished_at,
                # By the time of the end: where that is wrong, the controller puts both right.
                wait_seconds=None if due_at is None else max(finished_at - seconds - due_at, 0.0),
                predicted_seconds=predicted_in(header, ended.queue),
                algorithm=header.algorithm if header else "user",
                explored=header.explored if header else False,
                error=None if ended.error is None else type(ended.error).__name__,
                out_of_memory=is_out_of_memory(ended.error, self._out_of_memory_errors),
                peak_memory_bytes=peak_memory_bytes(),
                model=ended.view.model,
            )
        )

    def _is_reported(self, task: Any) -> bool:
        return task.app is self._app and not task.name.startswith(INTERNAL_PREFIX)

    def _view(
        self,
        task: Any,
        args: Sequence[Any] | None,
        kwargs: Mapping[str, Any] | None,
        header: TaskHeader | None,
    ) -> TaskView:
        described = view_in(header, task.name)
        if described != TaskView(task.name):
            return described
        # Sent without our header, or by a producer that knows the task by its name only.
        try:
            return view_of_task(task.name, args, kwargs, task)
        except Exception:
            self.errors["describe"] += 1
            return TaskView(task.name)

    def _queue(self, delivery_info: Mapping[str, Any] | None) -> str:
        """The GPU's own queue; work taken from the default queue teaches about this GPU too."""
        if self._gpu.queue:
            return self._gpu.queue
        return str((delivery_info or {}).get("routing_key") or "")[:MAX_NAME_LENGTH]

    def _counted(self, handler: Callable[P, None]) -> Callable[P, None]:
        """Keep a handler from raising; count what it would have raised, and log the first."""

        @wraps(handler)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
            try:
                handler(*args, **kwargs)
            except Exception:
                self.errors[handler.__name__] += 1
                if self.errors[handler.__name__] == 1:
                    log.exception("owl: feedback handler %s failed", handler.__name__)

        return guarded


def view_in(header: TaskHeader | None, name: str) -> TaskView:
    """Describe a task as its producer did, or by its name without a header."""
    if header is None or not header.task_type:
        return TaskView(name)
    return TaskView(header.task_type, header.size, header.model)


def predicted_in(header: TaskHeader | None, queue: str) -> float | None:
    """Service time that was predicted for this queue; None when the task was moved here since.

    Examples
    --------
    >>> header = TaskHeader("1f", "gpu.a.0", "q_learning", "train", 0.0, service_seconds=2.0)
    >>> predicted_in(header, "gpu.a.0"), predicted_in(header, "gpu.a.1")
    (2.0, None)

    """
    if header is None or (header.algorithm not in ("celery", "user") and header.queue != queue):
        return None
    return header.service_seconds


def due_time(header: TaskHeader | None, eta: str | None) -> float | None:
    """Unix time from which a task waited: when it was published, or its eta; None if unknown."""
    if header is None or not header.published_at:
        return None
    if not eta:
        return header.published_at
    try:
        moment = datetime.fromisoformat(eta)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return max(header.published_at, moment.timestamp())
    except (TypeError, ValueError, OverflowError):
        return None


def reset_peak_memory() -> None:
    """Start measuring the peak of this try, where PyTorch has the GPU in use."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def peak_memory_bytes() -> int | None:
    """Peak GPU memory that PyTorch reserved since the last reset; None when it is not in use."""
    torch = sys.modules.get("torch")
    try:
        if torch is None or not torch.cuda.is_initialized():
            return None
        return int(torch.cuda.max_memory_reserved())
    except Exception:
        # A reading is not worth an outcome.
        return None
