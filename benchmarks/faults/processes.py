"""Celery's command line in processes that can be killed, frozen and waited for."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Final

from benchmarks.faults.clock import follow

PR_SET_PDEATHSIG: Final = 1


class CeleryProcess:
    """``celery`` with these arguments, in a process that leads its own group.

    It is forked from a server that has Celery and owl_celery imported, which costs a third of a
    start from nothing, and dies with that server, and so with whoever started the suite.

    Parameters
    ----------
    arguments
        What follows ``celery`` on its command line.
    environment
        Added to our own.
    log
        File to which its output is appended.

    """

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.arguments = tuple(arguments)
        self._process = _context().Process(
            target=_become_celery, args=(list(arguments), {**os.environ, **environment}, str(log))
        )
        self._process.start()

    @property
    def pid(self) -> int:
        """Process id, and id of the group of all its children."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.exitcode is None

    def kill(self) -> None:
        """Kill this process alone by SIGKILL, and wait for its end."""
        self._process.kill()
        self._process.join()

    def kill_group(self) -> None:
        """Kill it and all its children at once, as when a host is gone."""
        self.signal_group(signal.SIGKILL)
        # A process that has only just begun leads no group yet.
        self._process.kill()
        self._process.join()

    def signal_group(self, number: signal.Signals) -> None:
        """Signal it and all its children."""
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return  # All of them have ended.


@cache
def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["owl_celery.preloaded"])
    return context


def _become_celery(arguments: list[str], environment: dict[str, str], log: str) -> None:
    """Run the command line; in the new process."""
    os.setpgid(0, 0)
    if sys.platform == "linux":
        # The server ends with the suite: nothing that was started here outlives it.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(environment)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    os.close(output)
    # Before what is installed, as from PYTHONPATH, which Python has read already.
    if fakes := environment.get("FAULTS_FAKES"):
        sys.path.insert(0, fakes)
    if clock := environment.get("FAULTS_CLOCK"):
        follow(clock)
    # By this name Celery tells a worker from its pool children, in logs and at its shutdown.
    multiprocessing.current_process().name = "MainProcess"
    import celery.__main__ as program

    sys.argv = [str(program.__file__), *arguments]
    sys.exit(program.main())
