"""What stealing is worth on real Celery: ``python -m benchmarks.stealing --seeds 3``.

Runs the routed half of ``owl demo`` for each seed with ``OWL_STEAL`` true and false, on the same
tasks, each in processes of its own. Needs an idle machine for some nine minutes: what else runs
there delays both, and not alike.
"""

from __future__ import annotations

import json
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import click
import numpy as np

from owl_celery.controller.health import Health
from owl_celery.demo.arm import Arm, run_arm
from owl_celery.demo.load import draw_jobs
from owl_celery.demo.run import routed_app, wait_for_view
from owl_celery.demo.stack import empty_broker, forget_settings, running_stack

FLEET = {"k80": 4, "p100": 4, "v100": 4}
LOAD = 0.7
MEAN_SECONDS = 0.3
PATIENCE_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Run:
    """How the tasks of one seed fared, response times in seconds."""

    seed: int
    steals: bool
    tasks: int
    lost: int
    stolen: int
    mean_seconds: float
    p99_seconds: float


def run(seed: int, steals: bool, seconds: float) -> Run:
    """Send the tasks of a seed to a fresh fleet, which starts without knowledge."""
    forget_settings()
    os.environ["OWL_STEAL"] = str(steals).lower()
    jobs = draw_jobs(FLEET, LOAD, seconds, MEAN_SECONDS, seed)
    arm = Arm("owl", len(jobs))
    with (
        tempfile.TemporaryDirectory(prefix="owl-stealing-") as folder,
        empty_broker() as url,
        running_stack(url, FLEET, Path(folder), lambda _: None) as stack,
    ):
        app = routed_app(stack)
        wait_for_view(app)
        run_arm(arm, app, jobs, PATIENCE_SECONDS, lambda: None)
        text = stack.state.client.get(stack.state.keys.health)
        health = Health.decode(str(text))
    response = np.array([done.response_seconds for done in arm.done])
    return Run(
        seed=seed,
        steals=steals,
        tasks=len(jobs),
        lost=arm.lost,
        stolen=int(health.counters.get("stolen", 0)) if health else 0,
        mean_seconds=round(float(response.mean()), 3),
        p99_seconds=round(float(np.percentile(response, 99)), 2),
    )


def table(runs: list[Run]) -> str:
    """The runs as Markdown, a line for each seed and arm."""
    lines = [
        "| seed | stealing | tasks | lost | stolen | mean, s | p99, s |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in runs:
        cells = [
            one.seed,
            "on" if one.steals else "off",
            one.tasks,
            one.lost,
            one.stolen,
            f"{one.mean_seconds:.3f}",
            f"{one.p99_seconds:.2f}",
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


@click.command()
@click.option("--seeds", default=3, show_default=True, help="How many seeds.")
@click.option("--seconds", default=75.0, show_default=True, help="How long tasks arrive in a run.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the runs here.")
def main(seeds: int, seconds: float, json_path: Path | None) -> None:
    """Run, and print the table."""
    runs: list[Run] = []
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        for seed in range(1, seeds + 1):
            for steals in (True, False):
                runs.append(pool.submit(run, seed, steals, seconds).result())
                click.echo(json.dumps(asdict(runs[-1])), err=True)
    if json_path is not None:
        json_path.write_text(json.dumps([asdict(one) for one in runs], indent=2) + "\n")
    click.echo(table(runs))


if __name__ == "__main__":
    main()
