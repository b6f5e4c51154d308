"""A server of our own that cannot outlive us: it ends with its owner, even by SIGKILL.

The owner starts this file as a process of its own, which starts the server and holds the reading
end of a pipe whose other end the owner has. A word or the end of that pipe stops the server. It
runs isolated and imports the standard library only, so that it is small and starts at once.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

STOP_SECONDS: Final = 10.0
PR_SET_PDEATHSIG: Final = 1


class GuardedProcess:
    """A command that runs until ``stop`` is called or this process is gone.

    Parameters
    ----------
    command
        Program and its arguments.
    stop_signal
        Signal that asks the program to end; SIGKILL follows ten seconds later.
    remove
        Folder to delete once the program has ended, if any.
    user
        Name of the user to run as; only root may give one.
    env
        Environment of the program; the owner's when omitted.

    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        stop_signal: signal.Signals = signal.SIGTERM,
        remove: Path | None = None,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        order = {
            "command": list(command),
            "signal": int(stop_signal),
            "remove": str(remove) if remove else None,
            "user": user,
        }
        self._remove = remove
        self._owner_pid = os.getpid()
        # An unnamed file rather than a pipe: nobody has to read it for the program to go on.
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop
        # A session of its own: Ctrl-C at a terminal must not reach the server before its clients.
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, json.dumps(order)],
            stdin=subprocess.PIPE,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            env=None if env is None else dict(env),
            start_new_session=True,
        )

    @property
    def is_running(self) -> bool:
        """Whether the program still runs."""
        return self._guard.poll() is None

    def output(self) -> str:
        """What the program has printed so far."""
        self._output.seek(0)
        return self._output.read().decode(errors="replace")

    def stop(self) -> None:
        """End the program and wait for it; in a forked child of the owner do nothing."""
        if os.getpid() != self._owner_pid or self._output.closed:
            return
        assert self._guard.stdin is not None
        try:
            # A word, not only the end: a forked child may hold a copy of our end of the pipe.
            self._guard.stdin.write(b"stop")
            self._guard.stdin.close()
        except BrokenPipeError:
            pass  # It has ended already.
        try:
            self._guard.wait(2 * STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._guard.kill()
            self._guard.wait()
        if self._remove is not None:
            # Still there when the guard was killed.
            shutil.rmtree(self._remove, ignore_errors=True)
        self._output.close()


def _die_with_parent(signum: int) -> None:
    """Let the kernel send ``signum`` when the guard is gone; Linux only, elsewhere nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signum)


def main(order: Mapping[str, Any]) -> int:
    """Run the command of ``order`` until it ends or standard input says something or ends.

    Returns
    -------
    int
        Exit status of the command; negative for a signal.

    """
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, lambda *_: sys.exit(1))
    # What a server writes is for its user alone.
    os.umask(0o077)
    user = {"user": order["user"], "extra_groups": ()} if order["user"] else {}
    ended, held_by_server = os.pipe()
    server: subprocess.Popen[bytes] | None = None
    try:
        server = subprocess.Popen(
            order["command"],
            stdin=subprocess.DEVNULL,
            pass_fds=(held_by_server,),
            # Safe here: this process has one thread, and it lives as long as the guard does.
            preexec_fn=lambda: _die_with_parent(order["signal"]),
            **user,
        )
        os.close(held_by_server)
        select.select([sys.stdin.fileno(), ended], [], [])
    finally:
        status = 1 if server is None else _end(server, order["signal"])
        if order["remove"]:
            shutil.rmtree(order["remove"], ignore_errors=True)
    return status


def _end(server: subprocess.Popen[bytes], signum: int) -> int:
    server.send_signal(signum)
    try:
        return server.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        return server.wait()


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
