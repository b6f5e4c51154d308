"""One Celery worker a GPU: started, prefixed, restarted and stopped by one process.

The supervisor has one thread and no connection. Its workers watch for its end
(``HeartbeatStep``), so that they do not outlive it even when it is killed.
"""

from __future__ import annotations

import errno
import os
import re
import selectors
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import IO, Final

from owl_celery.errors import CLAIMED_EXIT_STATUS
from owl_celery.worker_process import WorkerProcess

FIRST_PAUSE_SECONDS: Final = 1.0
LONGEST_PAUSE_SECONDS: Final = 60.0
STABLE_SECONDS: Final = 60.0
WAIT_SECONDS: Final = 0.5
CHUNK_BYTES: Final = 65_536
# A progress bar ends each of its states by the second.
LINE_END: Final = re.compile(rb"[\n\r]")
# Stopped by its operator, wrong options, another owner: starting again would change nothing.
FINAL_EXITS: Final = (0, 2, CLAIMED_EXIT_STATUS)
# Of a pipe without a reader, and of a terminal.
CLOSED: Final = (errno.EPIPE, errno.EIO)
REQUESTS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """One worker to keep running.

    Parameters
    ----------
    node
        Celery node name, ``gpu0@host``.
    environment
        What its environment has beside the supervisor's; see ``owl_celery.lane``.

    """

    node: str
    environment: Mapping[str, str]


@dataclass(slots=True)
class Restarts:
    """When a worker that ended may start again: later each time, soon again after a stable run.

    Examples
    --------
    >>> restarts = Restarts()
    >>> [restarts.pause_seconds(ran_seconds=5.0) for _ in range(4)]
    [1.0, 2.0, 4.0, 8.0]
    >>> restarts.pause_seconds(ran_seconds=90.0)
    1.0

    """

    first_pause_seconds: float = FIRST_PAUSE_SECONDS
    failures: int = 0

    def pause_seconds(self, ran_seconds: float) -> float:
        """Seconds to wait after a run of this length."""
        self.failures = 0 if ran_seconds >= STABLE_SECONDS else self.failures
        # 16 doublings are beyond the longest pause, and far from an overflow.
        pause = self.first_pause_seconds * 2.0 ** min(self.failures, 16)
        self.failures += 1
        return min(pause, LONGEST_PAUSE_SECONDS)


@dataclass(slots=True, eq=False)
class _Run:
    """A worker of the plan and its present process, if any."""

    plan: WorkerPlan
    restarts: Restarts
    process: WorkerProcess | None = None
    is_printing: bool = False
    started: float = 0.0
    start_at: float | None = 0.0
    exit_status: int | None = None
    rest: bytes = b""


class Supervisor:
    """Keeps a worker running for each plan until it is told to stop.

    SIGTERM, SIGINT or SIGHUP once: workers take nothing new, finish what waits in their own
    queues (for a limited time) and what they run. Twice: they hand back what they run. Three
    times: killed. When nobody can read the output any more, they work on unseen.

    Parameters
    ----------
    plans
        The workers.
    launch
        Starts the worker of a plan; after an OSError or EOFError it is called again later.
    output
        Where the prefixed log lines go; standard output when omitted.
    first_pause_seconds
        Pause before the first restart of a worker.

    """

    def __init__(
        self,
        plans: Iterable[WorkerPlan],
        launch: Callable[[WorkerPlan], WorkerProcess],
        output: IO[bytes] | None = None,
        first_pause_seconds: float = FIRST_PAUSE_SECONDS,
    ) -> None:
        self._runs = [_Run(plan, Restarts(first_pause_seconds)) for plan in plans]
        self._launch = launch
        self._output = output or sys.stdout.buffer
        self._width = max((len(run.plan.node) for run in self._runs), default=0)
        self._selector = selectors.DefaultSelector()
        self._requests = 0
        self._handled_requests = 0

    def run(self) -> int:
        """Supervise until all workers have ended; from the main thread.

        Returns
        -------
        int
            0 after a requested stop, or when all workers ended in order; else the exit status of
            the first that did not.

        """
        # A signal wakes the selector: its number is written to this pipe.
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        previous_fd = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        # After nohup a hang-up stays ignored; a request to stop is obeyed in any case.
        is_nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        numbers = [number for number in REQUESTS if not (is_nohup and number == signal.SIGHUP)]
        previous = {number: signal.signal(number, self._request) for number in numbers}
        self._selector.register(reading, selectors.EVENT_READ)
        try:
            while self._is_needed():
                self._start_due()
                self._pump(reading)
                self._reap()
                self._stop_requested()
        finally:
            self._kill()
            for number, handler in previous.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(previous_fd)
            self._selector.close()
            os.close(reading)
            os.close(writing)
        if self._requests:
            return 0
        return next((run.exit_status for run in self._runs if run.exit_status), 0)

    def _request(self, number: int, _: FrameType | None) -> None:
        # The system and the shell each tell of a terminal that closes.
        if number != signal.SIGHUP or not self._requests:
            self._requests += 1

    def _is_needed(self) -> bool:
        return any(run.process is not None or run.start_at is not None for run in self._runs)

    def _start_due(self) -> None:
        now = time.monotonic()
        for run in self._runs:
            if run.process is None and run.start_at is not None and run.start_at <= now:
                self._start(run)

    def _start(self, run: _Run) -> None:
        run.start_at = None
        run.started = time.monotonic()
        try:
            run.process = self._launch(run.plan)
        except (OSError, EOFError) as error:
            # Out of processes, memory or files, or the fork server was killed.
            self._start_later(run, f"worker did not start ({str(error) or 'no fork server'})")
            return
        run.is_printing = True
        self._selector.register(run.process.output, selectors.EVENT_READ, run)

    def _pump(self, wakeup: int) -> None:
        """Wait for output, a signal, or the next start; pass on what workers printed."""
        for key, _ in self._selector.select(self._wait_seconds()):
            if key.data is None:
                os.read(wakeup, CHUNK_BYTES)
            else:
                self._forward(key.data)

    def _wait_seconds(self) -> float:
        starts = [run.start_at for run in self._runs if run.start_at is not None]
        soonest = min(starts, default=float("inf")) - time.monotonic()
        return min(max(soonest, 0.0), WAIT_SECONDS)

    def _forward(self, run: _Run) -> bool:
        """Print what a worker printed; whether there was anything."""
        if run.process is None or not run.is_printing:
            return False
        try:
            chunk = os.read(run.process.output, CHUNK_BYTES)
        except BlockingIOError:
            return False
        if not chunk:
            self._hang_up(run)
            return False
        *lines, run.rest = LINE_END.split(run.rest + chunk)
        if len(run.rest) > CHUNK_BYTES:
            lines, run.rest = [*lines, run.rest], b""
        for line in lines:
            self._print(run, line)
        return True

    def _hang_up(self, run: _Run) -> None:
        if run.process is not None and run.is_printing:
            self._selector.unregister(run.process.output)
            run.process.close()
            run.is_printing = False
            self._print(run, run.rest)
            run.rest = b""

    def _print(self, run: _Run, line: bytes) -> None:
        if line.strip():
            try:
                self._output.write(
                    run.plan.node.ljust(self._width).encode() + b" | " + line + b"\n"
                )
                self._output.flush()
            except OSError as error:
                # A full disk loses lines, and later ones are tried again.
                if error.errno in CLOSED:
                    self._mute()

    def _mute(self) -> None:
        """Print no more: nobody is there to read it."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        # In place, because what is buffered is written again when this process ends.
        os.dup2(nowhere, self._output.fileno())
        os.close(nowhere)

    def _reap(self) -> None:
        for run in self._runs:
            if run.process is None or (status := run.process.poll()) is None:
                continue
            # The last words; a child of the worker may hold the pipe open, so not up to its end.
            while self._forward(run):
                pass
            self._hang_up(run)
            run.process = None
            run.exit_status = status
            if self._requests or status in FINAL_EXITS:
                continue
            self._start_later(run, f"worker ended with status {status}")

    def _start_later(self, run: _Run, what: str) -> None:
        pause = run.restarts.pause_seconds(time.monotonic() - run.started)
        run.start_at = time.monotonic() + pause
        self._print(run, f"{what}; starts again in {pause:g} s".encode())

    def _stop_requested(self) -> None:
        if self._requests == self._handled_requests:
            return
        self._handled_requests = self._requests
        number = {1: signal.SIGTERM, 2: signal.SIGQUIT}.get(self._requests, signal.SIGKILL)
        for run in self._runs:
            run.start_at = None
            if run.process is not None:
                run.process.send_signal(number)

    def _kill(self) -> None:
        """Leave no worker behind when we fail."""
        for run in self._runs:
            if run.process is not None:
                run.process.send_signal(signal.SIGKILL)
                self._hang_up(run)
