"""The supervisor, over small programs in the place of Celery workers."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import psutil
import pytest

from owl_celery.supervisor import CHUNK_BYTES, Restarts
from owl_celery.testing import wait_until

SUPERVISE = """
import os, subprocess, sys
from owl_celery.supervisor import Supervisor, WorkerPlan

class Program(subprocess.Popen):
    def __init__(self, plan):
        super().__init__(
            [sys.executable, "-uc", sys.argv[1], plan.node],
            env={**os.environ, **plan.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
        os.set_blocking(self.output, False)

    @property
    def output(self):
        return self.stdout.fileno()

    def close(self):
        self.stdout.close()

plans = [WorkerPlan(node, {"LETTER": node}) for node in sys.argv[2:]]
sys.exit(Supervisor(plans, Program, first_pause_seconds=0.05).run())
"""


def start(
    folder: Path, supervise: str, program: str, *nodes: str, **options: Any
) -> subprocess.Popen[bytes]:
    """Start a supervisor of one program."""
    return subprocess.Popen(
        [sys.executable, "-c", supervise, textwrap.dedent(program), *nodes],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        **options,
    )


class Supervised:
    """A supervisor in a process of its own."""

    def __init__(
        self, folder: Path, program: str, *nodes: str, supervise: str = SUPERVISE, **options: Any
    ) -> None:
        self.path = folder / "output"
        with self.path.open("wb") as output:
            self.process = start(
                folder,
                *(supervise, program, *nodes),
                stdout=output,
                stderr=subprocess.STDOUT,
                **options,
            )

    def lines(self) -> list[str]:
        return self.path.read_text().splitlines()

    def wait_for(self, line: str) -> None:
        wait_until(lambda: line in self.lines(), f"{line!r} in {self.lines()}")

    def end(self, signum: signal.Signals | None = None) -> int:
        if signum is not None:
            self.process.send_signal(signum)
        return self.process.wait(10.0)


def test_restarts_come_later_each_time_up_to_a_minute() -> None:
    restarts = Restarts()

    assert [restarts.pause_seconds(0.1) for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]


def test_a_stable_minute_makes_restarts_quick_again() -> None:
    restarts = Restarts()
    for _ in range(5):
        restarts.pause_seconds(1.0)

    assert [restarts.pause_seconds(60.0), restarts.pause_seconds(1.0)] == [1.0, 2.0]


def test_each_line_carries_its_node_and_the_last_words_are_kept(tmp_path: Path) -> None:
    program = """
    import os, sys
    print("hello", sys.argv[1:], os.environ["LETTER"])
    print("no end of line", end="", file=sys.stderr)
    """
    supervised = Supervised(tmp_path, program, "a", "bcd")

    assert supervised.end() == 0
    assert sorted(supervised.lines()) == [
        "a   | hello ['a'] a",
        "a   | no end of line",
        "bcd | hello ['bcd'] bcd",
        "bcd | no end of line",
    ]


def test_a_progress_bar_is_shown_while_it_runs(tmp_path: Path) -> None:
    program = """
    import sys
    for percent in (10, 20):
        print(f"\\r{percent} %", end="")
    print("\\r", end="")
    sys.stdin.read()
    """
    supervised = Supervised(tmp_path, program, "a", stdin=subprocess.PIPE)

    supervised.wait_for("a | 20 %")

    assert supervised.lines() == ["a | 10 %", "a | 20 %"]
    assert supervised.process.stdin is not None
    supervised.process.stdin.close()
    assert supervised.end() == 0


def test_a_line_without_an_end_is_printed_in_pieces(tmp_path: Path) -> None:
    program = "print('x' * 200_000, end='')"
    supervised = Supervised(tmp_path, program, "a")

    assert supervised.end() == 0
    pieces = [line.removeprefix("a | ") for line in supervised.lines()]
    assert "".join(pieces) == "x" * 200_000
    assert len(pieces) > 1
    assert max(map(len, pieces)) <= 2 * CHUNK_BYTES


def test_a_crashed_worker_starts_again_and_the_others_do_not_notice(tmp_path: Path) -> None:
    program = """
    import os, pathlib, sys
    if os.environ["LETTER"] == "b":
        print("steady")
        sys.exit(0)
    tries = pathlib.Path("tries")
    tries.write_text((tries.read_text() if tries.exists() else "") + "x")
    if len(tries.read_text()) < 3:
        os.kill(os.getpid(), 9)
    print("third")
    """
    supervised = Supervised(tmp_path, program, "a", "b")

    assert supervised.end() == 0
    assert supervised.lines().count("b | steady") == 1
    assert supervised.lines().count("a | third") == 1
    assert "a | worker ended with status -9; starts again in 0.05 s" in supervised.lines()


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        ("OSError(11, 'Resource temporarily unavailable')", "[Errno 11] Resource temporarily"),
        ("EOFError", "no fork server"),
    ],
)
def test_a_worker_that_cannot_be_launched_is_tried_again(
    tmp_path: Path, failure: str, reason: str
) -> None:
    flaky = """
class Flaky(Program):
    failures = 2

    def __init__(self, plan):
        if plan.node == "b" and Flaky.failures:
            Flaky.failures -= 1
            raise FAILURE
        super().__init__(plan)
"""
    supervise, end = SUPERVISE.split("plans = ")
    supervise += flaky.replace("FAILURE", failure)
    supervise += f"plans = {end.replace('Program,', 'Flaky,')}"
    supervised = Supervised(tmp_path, "print('fine')", "a", "b", supervise=supervise)

    assert supervised.end() == 0
    lines = supervised.lines()
    assert lines.count("a | fine") == lines.count("b | fine") == 1
    pauses = [line for line in lines if line.startswith(f"b | worker did not start ({reason}")]
    assert [line.partition("; ")[2] for line in pauses] == [
        "starts again in 0.05 s",
        "starts again in 0.1 s",
    ]


@pytest.mark.parametrize("status", [2, 69], ids=["wrong options", "claimed by another"])
def test_a_worker_that_cannot_run_is_not_started_again(tmp_path: Path, status: int) -> None:
    supervised = Supervised(tmp_path, f"print('no'); raise SystemExit({status})", "a")

    assert supervised.end() == status
    assert supervised.lines() == ["a | no"]


WAIT = """
import signal, sys, time
def stop(number, frame):
    print(signal.Signals(number).name)
    if number == signal.{last}:
        sys.exit(1)
for number in (signal.SIGTERM, signal.SIGQUIT):
    signal.signal(number, stop)
print("ready")
while True:
    time.sleep(1)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_one_request_stops_workers_warmly(tmp_path: Path, number: signal.Signals) -> None:
    supervised = Supervised(tmp_path, WAIT.format(last="SIGTERM"), "a", "b")
    for node in "ab":
        supervised.wait_for(f"{node} | ready")

    assert supervised.end(number) == 0
    assert sorted(supervised.lines()) == [
        "a | SIGTERM",
        "a | ready",
        "b | SIGTERM",
        "b | ready",
    ]


def test_a_closed_terminal_stops_workers_warmly(tmp_path: Path) -> None:
    terminal, theirs = pty.openpty()
    # The system signals it when it leads the session of the terminal; a shell signals it again.
    lead = "import fcntl, termios; fcntl.ioctl(1, termios.TIOCSCTTY, 0)\n"
    program = """
    import pathlib, signal, time
    def stop(number, frame):
        for _ in range(3):
            print("goodbye")
            time.sleep(0.05)
        pathlib.Path("stopped").write_text(signal.Signals(number).name)
        raise SystemExit
    signal.signal(signal.SIGTERM, stop)
    print("ready")
    time.sleep(60)
    """
    process = start(
        tmp_path,
        *(lead + SUPERVISE, program, "a"),
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    wait_until(lambda: b"a | ready" in os.read(terminal, 1000), "the worker to run")

    os.close(terminal)
    process.send_signal(signal.SIGHUP)

    assert process.wait(10.0) == 0
    assert (tmp_path / "stopped").read_text() == "SIGTERM"


def test_workers_go_on_when_nobody_reads_their_output(tmp_path: Path) -> None:
    program = """
    import pathlib, signal, time
    def stop(number, frame):
        pathlib.Path("stopped").write_text(signal.Signals(number).name)
        raise SystemExit
    signal.signal(signal.SIGTERM, stop)
    lines = pathlib.Path("lines").open("w", buffering=1)
    print("ready")
    while True:
        print("one more line")
        lines.write("x\\n")
        time.sleep(0.01)
    """
    with (tmp_path / "errors").open("wb") as errors:
        process = start(tmp_path, SUPERVISE, program, "a", stdout=subprocess.PIPE, stderr=errors)
    assert process.stdout is not None
    assert process.stdout.readline() == b"a | ready\n"
    process.stdout.close()
    lines = len((tmp_path / "lines").read_text())
    wait_until(lambda: len((tmp_path / "lines").read_text()) > lines + 20, "the worker to go on")
    process.terminate()

    assert process.wait(10.0) == 0
    assert (tmp_path / "stopped").read_text() == "SIGTERM"
    assert (tmp_path / "errors").read_text() == ""


def test_a_hang_up_that_was_ignored_from_the_start_stays_ignored(tmp_path: Path) -> None:
    program = """
    import os, signal
    os.kill(os.getppid(), signal.SIGHUP)
    print("ready", flush=True)
    signal.pause()
    """
    nohup = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    supervised = Supervised(tmp_path, program, "a", supervise=nohup + SUPERVISE)
    supervised.wait_for("a | ready")

    assert supervised.process.poll() is None
    assert supervised.end(signal.SIGTERM) == 0


def test_a_second_request_stops_them_cold_and_a_third_kills(tmp_path: Path) -> None:
    supervised = Supervised(tmp_path, WAIT.format(last="SIGSTOP"), "a")
    supervised.wait_for("a | ready")
    supervised.process.terminate()
    supervised.wait_for("a | SIGTERM")
    supervised.process.terminate()
    supervised.wait_for("a | SIGQUIT")

    assert supervised.end(signal.SIGTERM) == 0
    assert supervised.lines() == ["a | ready", "a | SIGTERM", "a | SIGQUIT"]


def test_a_worker_that_waits_to_start_again_does_not_delay_the_stop(tmp_path: Path) -> None:
    supervised = Supervised(tmp_path, "raise SystemExit(1)", "a")
    supervised.wait_for("a | worker ended with status 1; starts again in 1.6 s")

    assert supervised.end(signal.SIGTERM) == 0


def test_a_grandchild_that_holds_the_output_open_delays_nothing(tmp_path: Path) -> None:
    program = """
    import subprocess, sys
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    print(child.pid)
    """
    supervised = Supervised(tmp_path, program, "a")

    assert supervised.end() == 0
    grandchild = psutil.Process(int(supervised.lines()[0].removeprefix("a | ")))
    grandchild.kill()
