"""The demo from start to end."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Final

from celery import Celery
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from owl_celery.demo.arm import TASK, Arm, run_arm
from owl_celery.demo.load import Job, draw_jobs
from owl_celery.demo.picture import draw_picture
from owl_celery.demo.report import LABELS, comparison, ratio_mean, summarise, write_json
from owl_celery.demo.stack import (
    Stack,
    available_bytes,
    empty_broker,
    fit_fleet,
    forget_settings,
    running_stack,
)
from owl_celery.demo.watch import Addresses, watched
from owl_celery.errors import WorkerError
from owl_celery.installation import parts_of

VIEW_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run.

    Parameters
    ----------
    fleet
        Virtual GPUs by model.
    load
        Arrival rate as a share of the most that the fleet can serve.
    seconds
        How long tasks arrive in each arm.
    mean_seconds
        Mean service time of a task on its best GPU model.
    patience_seconds
        How long to wait for results after the last arrival.
    output
        Folder for ``demo.json`` and the picture.
    keep
        Go on with routed tasks until Ctrl-C, for people to look at.

    """

    seed: int
    load: float
    fleet: Mapping[str, int]
    seconds: float
    mean_seconds: float
    patience_seconds: float
    output: Path
    keep: bool


class Progressing:
    """The live display: both arms, and what has been learned.

    Parameters
    ----------
    stack
        Tells what has been learned.
    arms
        Filled in while they run.

    """

    def __init__(self, stack: Stack, arms: list[Arm]) -> None:
        self._stack = stack
        self._arms = arms
        self._bars = Progress(
            TextColumn("{task.description:24}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[response]}"),
            expand=True,
        )
        self._rows = [
            self._bars.add_task(LABELS[arm.name], total=arm.total, response="") for arm in arms
        ]

    def __rich__(self) -> Group:
        for row, arm in zip(self._rows, self._arms, strict=True):
            recent = arm.recent_response_seconds()
            self._bars.update(
                row,
                completed=len(arm.done),
                response="" if recent is None else f"response {recent:.2f} s",
            )
        return Group(self._bars, Text(self._stack.learned(), style="dim"))


def run_demo(plan: Plan, console: Console) -> None:
    """Run both arms and report.

    Raises
    ------
    OwlError
        When something cannot start; the message says what to do.

    """
    forget_settings()
    warning = busy_machine(os.getloadavg()[0], os.cpu_count() or 1)
    if warning:
        console.print(warning)
    fleet = fit_fleet(plan.fleet, available_bytes())
    if fleet != plan.fleet:
        console.print(f"Memory is short: {fleet_text(fleet)} instead of {fleet_text(plan.fleet)}.")
    jobs = draw_jobs(fleet, plan.load, plan.seconds, plan.mean_seconds, plan.seed)
    plan.output.mkdir(parents=True, exist_ok=True)
    with ExitStack() as exits:
        folder = Path(exits.enter_context(tempfile.TemporaryDirectory(prefix="owl-demo-")))
        broker_url = exits.enter_context(empty_broker())
        with console.status("Starting the workers") as status:

            def show(up: int) -> None:
                status.update(f"Starting the workers: {up} of {sum(fleet.values())}")

            stack = exits.enter_context(running_stack(broker_url, fleet, folder, show))
            status.update("Starting the console")
            addresses = exits.enter_context(watched(stack.environment))
        console.print(
            f"{fleet_text(fleet)} virtual GPUs; {len(jobs)} tasks of 26 types in "
            f"{plan.seconds:.0f} s, {plan.load:.0%} of what this fleet can serve; seed {plan.seed}"
        )
        console.print(
            f"Watch it at {addresses.console}\n"
            "The first half is plain Celery; decisions appear after that.",
            soft_wrap=True,
        )
        arms = run_arms(plan, jobs, stack, console)
        summaries = {arm.name: summarise(arm, fleet) for arm in arms}
        console.print()
        console.print(comparison(summaries))
        report, picture = plan.output / "demo.json", plan.output / "learning-curve.png"
        write_json(report, summaries, plan.seed, fleet, plan.load)
        title = f"{fleet_text(fleet)}, load {plan.load:g}, seed {plan.seed}"
        draw_picture(picture, arms, stack.outcomes(len(jobs)), title)
        for name, summary in summaries.items():
            if summary.lost:
                console.print(
                    f"{LABELS[name]}: {summary.lost} tasks had no result "
                    f"{plan.patience_seconds:.0f} s after the last was sent; the means leave them "
                    "out, and are too low."
                )
        console.print(
            f"Routed tasks took {ratio_mean(summaries):.2f} of the shared queue's mean response "
            f"time.\nFigures: {report}\nPicture: {picture}"
        )
        if plan.keep:
            stay(plan, fleet, stack, addresses, console)


def run_arms(plan: Plan, jobs: list[Job], stack: Stack, console: Console) -> list[Arm]:
    """Run plain Celery's arm, then the routed one, with the same jobs and workers."""
    plain, shared = plain_app(stack.broker_url), Arm("celery_shared", len(jobs))
    routed, owl = routed_app(stack), Arm("owl", len(jobs))
    with Live(Progressing(stack, [shared, owl]), console=console, refresh_per_second=4) as live:
        stack.set_mode("off")
        run_arm(shared, plain, jobs, plan.patience_seconds, live.refresh)
        stack.set_mode("on")
        wait_for_view(routed)
        run_arm(owl, routed, jobs, plan.patience_seconds, live.refresh)
    plain.close()
    return [shared, owl]


def plain_app(broker_url: str) -> Celery:
    """Make an application without the one line: its tasks go to Celery's default queue."""
    app = Celery("plain", broker=broker_url, backend=broker_url)

    @app.task(name=TASK, shared=False)
    def replay(task_type: str, size: float, scale_seconds: float) -> None:
        """Runs in the workers, which know it by its name."""

    # Before the example application is imported, whose tasks would be shared with this one.
    app.finalize()
    return app


def routed_app(stack: Stack) -> Celery:
    """Import the example application, which has the one line, as its users do."""
    os.environ.update(stack.environment)
    from workers.app import app

    app.loader.import_default_modules()
    return app


def wait_for_view(app: Celery) -> None:
    """Wait until the router of this process sees the queues, as that of a web server does."""
    sync = parts_of(app).sync
    deadline = time.monotonic() + VIEW_SECONDS
    while sync.snapshot() is None or sync.mode != "on":
        if time.monotonic() > deadline:
            raise WorkerError("The demo's controller publishes no view of the queues.")
        time.sleep(0.05)


def stay(
    plan: Plan, fleet: Mapping[str, int], stack: Stack, addresses: Addresses, console: Console
) -> None:
    """Go on with routed tasks until Ctrl-C, so that there is something to see."""
    variables = " ".join(
        f"{name}={shlex.quote(value)}" for name, value in stack.environment.items()
    )
    # The one of this environment, which need not be on the PATH.
    celery = shlex.quote(str(Path(sys.executable).with_name("celery")))
    app = routed_app(stack)
    try:
        console.print(
            "\nEverything stays up, with more tasks, until Ctrl-C.\n"
            f"  Console  {addresses.console}\n"
            f"  API      {addresses.api}\n"
            f"  Metrics  {addresses.metrics}\n"
            "In another terminal, for example:\n"
            f"  {variables} \\\n    {celery} -A workers.app owl status",
            soft_wrap=True,
        )
        for seed in count(plan.seed + 1):
            jobs = draw_jobs(fleet, plan.load, plan.seconds, plan.mean_seconds, seed)
            run_arm(Arm("owl", len(jobs)), app, jobs, plan.patience_seconds, lambda: None)
    except KeyboardInterrupt:
        console.print("Stopping.")


def busy_machine(load: float, cores: int) -> str:
    """Warn of other work on this machine; empty when there is little."""
    if load <= cores:
        return ""
    return (
        f"The load of this machine is {load:.1f} on {cores} cores: other work on it makes the "
        "virtual GPUs slow and the ratio worse."
    )


def fleet_text(fleet: Mapping[str, int]) -> str:
    """Say a fleet in words."""
    return " + ".join(f"{count} {model.upper()}" for model, count in fleet.items())
