"""What each fault costs: ``python -m benchmarks.faults --trials 3``.

Every trial has a broker of its own, three workers, and tasks of 0.05 to 0.6 s that are published
for some seconds. At a random moment of these the fault strikes. The account at the end has every
task: published, started, finished. The same fault with the same seed strikes plain Celery.
"""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

import click

from benchmarks.faults.trial import FAULTS, Trial, run_trial


def table(trials: list[Trial]) -> str:
    """The account as Markdown."""
    lines = [
        "| fault | | trials | published | lost | finished twice | started twice | recovery, s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for fault, arm in dict.fromkeys((trial.fault, trial.arm) for trial in trials):
        some = [trial for trial in trials if (trial.fault, trial.arm) == (fault, arm)]
        times = [trial.recovery_seconds for trial in some if trial.recovery_seconds is not None]
        recovery = f"{min(times):.0f} to {max(times):.0f}" if times else "never"
        cells = [
            fault,
            arm,
            len(some),
            sum(trial.published for trial in some),
            sum(trial.lost for trial in some),
            sum(trial.doubled for trial in some),
            sum(trial.run_again for trial in some),
            recovery if len(times) == len(some) else f"{recovery} ({len(times)} of {len(some)})",
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


@click.command()
@click.option("--trials", default=3, show_default=True, help="Trials of each fault and arm.")
@click.option("--fault", "only", default="", help="Only faults whose name contains this.")
@click.option("--arm", "only_arm", default="", help="Only this arm.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write all trials here.")
def main(trials: int, only: str, only_arm: str, json_path: Path | None) -> None:
    """Strike, count, and print the table."""
    done: list[Trial] = []
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        for fault, (_, arms) in FAULTS.items():
            if only in fault:
                for seed in range(1, trials + 1):
                    for arm in [name for name in arms if only_arm in ("", name)]:
                        done.append(pool.submit(run_trial, fault, arm, seed).result())
                        click.echo(json.dumps(asdict(done[-1])), err=True)
                        if json_path is not None:
                            body = [asdict(trial) for trial in done]
                            json_path.write_text(json.dumps(body, indent=2) + "\n")
    click.echo(table(done))


if __name__ == "__main__":
    main()
