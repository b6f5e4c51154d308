"""A Celery worker as a process that can be watched, read and signalled."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from typing import Any, Final, Protocol

NICENESS: Final = 10


class WorkerProcess(Protocol):
    """A running worker, as the supervisor sees it."""

    @property
    def output(self) -> int:
        """File descriptor of what it prints; never blocks."""

    def poll(self) -> int | None:
        """Exit status, negative for a signal; None while it runs."""

    def send_signal(self, number: signal.Signals) -> None:
        """Signal it, if it still runs."""

    def close(self) -> None:
        """Stop reading what it prints."""


class CeleryProcess:
    """Celery's command line in a process of its own, forked from a server that has it imported.

    Twelve workers cost 5 seconds of processor time to start instead of 16. The process
    imports the application afresh, with ``environment`` in place, and leads its own group, so that
    Ctrl-C at a terminal reaches the supervisor only. To it the supervisor is
    ``multiprocessing.parent_process()``.

    Parameters
    ----------
    arguments
        What follows ``celery`` on its command line.
    environment
        Added to the environment of this process.

    Raises
    ------
    OSError, EOFError
        When the system or the server cannot make a process now.

    """

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        context = _context()
        self._reader, writer = context.Pipe(duplex=False)
        os.set_blocking(self._reader.fileno(), False)
        self._process = context.Process(
            target=_run, args=(list(arguments), {**os.environ, **environment}, writer)
        )
        try:
            self._process.start()
        except BaseException:
            self._reader.close()
            raise
        finally:
            writer.close()

    @property
    def output(self) -> int:
        """File descriptor of what it prints; never blocks."""
        return self._reader.fileno()

    def poll(self) -> int | None:
        """Exit status, negative for a signal; None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        """Signal it, if it still runs."""
        if self._process.exitcode is None and self._process.pid is not None:
            try:
                os.kill(self._process.pid, number)
            except ProcessLookupError:
                return  # It has ended, which the server is about to tell.

    def close(self) -> None:
        """Stop reading what it prints."""
        self._reader.close()


def run_beside(target: Callable[..., None], *args: Any) -> None:
    """Run a function in a process of its own, which nobody waits for and which ends with this one.

    Parameters
    ----------
    target
        A function at the top of its module, for a low priority.

    Raises
    ------
    OSError, EOFError
        As for ``CeleryProcess``.

    """
    _context().Process(target=_run_beside, args=(target, *args), daemon=True).start()


def _run_beside(target: Callable[..., None], *args: Any) -> None:
    # The server ignores what is to end this process; Ctrl-C is for the process that we end with.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(NICENESS)
    target(*args)


@cache
def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["owl_celery.preloaded"])
    return context


def _run(arguments: list[str], environment: dict[str, str], output: Connection) -> None:
    """Become ``celery``; runs in the new process."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    os.setpgid(0, 0)
    # The server was started once and keeps the environment of then.
    os.environ.clear()
    os.environ.update(environment)
    for descriptor in (1, 2):
        os.dup2(output.fileno(), descriptor)
    output.close()
    # By this name Celery tells a worker from its pool children, in logs and at its shutdown.
    multiprocessing.current_process().name = "MainProcess"
    import celery.__main__ as program

    # As after `python -m celery`: Celery's restart by SIGHUP starts it again by this path.
    sys.argv = [str(program.__file__), *arguments]
    sys.exit(program.main())
