"""The processes of the benchmark, forked from one that has imported everything.

Workers, controllers and producers are what production runs, but for their import: a worker is
killed some thirty times in a run, and a new one would spend two seconds of a core on it.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from ctypes import c_int
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Thread
from typing import Any, Final

CONTEXT: Final = multiprocessing.get_context("forkserver")
PRELOADED: Final = (
    "benchmarks.load_view.app",
    "benchmarks.load_view.processes",
    "celery.apps.worker",
    "celery.concurrency.prefork",
    "celery.bin.celery",
    "owl_celery.api.server",
    "owl_celery.cli.serve",
    "owl_celery.controller.controller",
    "owl_celery.heartbeat",
    "owl_celery.overview",
    "owl_celery.store",
)
QUIET: Final = ("--without-mingle", "--without-gossip", "--without-heartbeat", "-l", "WARNING")
MODELS: Final = ("k80", "v100")
MILLISECONDS: Final = {2: 4, 5: 4, 15: 3, 50: 1}
"""What tasks take, and how often each occurs."""

REVOKED_AT_ONCE: Final = 20


def preload() -> None:
    """Let later processes start with all modules imported; the environment counts as it is now."""
    CONTEXT.set_forkserver_preload(list(PRELOADED))


def start(target: Callable[..., None], log: Path, *arguments: Any) -> BaseProcess:
    """Run a function in a process of its own, which ends with this one."""
    process = CONTEXT.Process(target=_run, args=(target, str(log), os.getpid(), *arguments))
    process.start()
    return process


def _run(target: Callable[..., None], log: str, owner: int, *arguments: Any) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for number in (1, 2):
        os.dup2(descriptor, number)
    # The fork server ignores it, and the signal handlers of workers expect Python's.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    Thread(target=_end_with, args=(owner,), daemon=True).start()
    target(*arguments)


def _end_with(owner: int) -> None:
    """Nothing may be left when the benchmark itself is killed."""
    while True:
        try:
            os.kill(owner, 0)
        except ProcessLookupError:
            os._exit(1)
        time.sleep(1.0)


def run_worker(index: int) -> None:
    """One worker with one pool process, for a virtual GPU of its own."""
    from benchmarks.load_view.app import app

    # Six of them on two cores: what is measured is the account of the work, not who does it first.
    os.nice(5)
    gpu = f"sim:{MODELS[index % len(MODELS)]}:{index}"
    app.worker_main(["worker", "--gpu", gpu, "-n", f"gpu{index}@load", "-c", "1", *QUIET])


def run_controller(folder: str, host: str) -> None:
    """``owl serve`` with the API on a free port."""
    os.environ["OWL_CONTINUOUS_LEARNING_STORAGE_PATH"] = folder
    with socket.create_server((host, 0)) as free:
        os.environ["OWL_API_PORT"] = str(free.getsockname()[1])
    from benchmarks.load_view.app import app

    app.start(["owl", "serve"])


def run_producer(seed: int, count: int, published: c_int, is_open: c_int, share: float) -> None:
    """Publish until ``published`` has come to ``count``, in bursts, while the gate is open.

    Parameters
    ----------
    published, is_open
        Written by one process and read by another, without a lock that a killed one could keep.
    share
        Of the tasks that expire before they run, that may expire while they wait, and that are
        revoked: so many of each.
    """
    from benchmarks.load_view.app import app, work

    draw = random.Random(f"{seed}:{published.value}")
    revoked: list[str] = []
    while published.value < count:
        if not is_open.value:
            time.sleep(0.01)
            continue
        (milliseconds,) = draw.choices(list(MILLISECONDS), list(MILLISECONDS.values()))
        options = {}
        kind = draw.random() / share
        if kind < 1.0:
            options["expires"] = 1e-3
        elif kind < 2.0:
            options["expires"] = draw.uniform(0.1, 4.0)
        result = work.apply_async((milliseconds,), **options)
        published.value += 1
        if 2.0 <= kind < 3.0:
            revoked.append(result.id)
        if len(revoked) >= REVOKED_AT_ONCE:
            app.control.revoke(revoked, terminate=draw.random() < 0.5)
            revoked.clear()
    if revoked:
        app.control.revoke(revoked)
    # As at the end of any program: what was published last is reported.
    sys.exit(0)


def end(processes: Sequence[BaseProcess], patience_seconds: float = 10.0) -> None:
    """Ask all to stop, and kill those that do not."""
    for process in processes:
        if process.is_alive():
            process.terminate()
    deadline = time.monotonic() + patience_seconds
    for process in processes:
        process.join(max(deadline - time.monotonic(), 0.1))
        if process.is_alive():
            process.kill()
            process.join()
