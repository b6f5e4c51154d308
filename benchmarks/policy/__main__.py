"""Run what is missing, then write ``docs/benchmarks/policy.md`` and its pictures."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import click

from benchmarks.policy.cost import measure
from benchmarks.policy.figures import draw_curve, draw_load
from benchmarks.policy.figures import specs as figure_specs
from benchmarks.policy.measures import measures, weak_spots
from benchmarks.policy.report import COST_MUST_SECONDS, grid_specs, page
from benchmarks.policy.runs import Results, Spec
from owl_celery.simulate import contender_names

ROOT = Path(__file__).parents[2]
COMMAND = "make bench-policy"


@click.command()
@click.option("--policy", default="q_learning", show_default=True, help="The policy to judge.")
@click.option("--only", default="", help="Run only rows whose scenario contains this text.")
@click.option("--minutes", type=float, help="Begin no run after this time; go on another day.")
@click.option("--processes", type=click.IntRange(1), help="All cores when omitted.")
@click.option("--baselines-only", is_flag=True, help="Run nothing but the other policies.")
@click.option(
    "--results",
    "results_path",
    type=click.Path(path_type=Path),
    default=ROOT / "build" / "policy-runs.jsonl",
    help="Where finished runs are kept.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=ROOT / "docs" / "benchmarks",
    help="Folder of the page and the pictures.",
)
def main(
    policy: str,
    only: str,
    minutes: float | None,
    processes: int | None,
    baselines_only: bool,
    results_path: Path,
    output: Path,
) -> None:
    """Compare the routing policy with its baselines; an hour or two, in pieces if need be."""
    results = Results(results_path)
    rows, weak = measures(policy), weak_spots(policy)
    if not baselines_only and policy not in contender_names():
        raise click.ClickException(f"No policy {policy!r}: {', '.join(contender_names())}.")
    named = [(row.scenario, row.numbers) for row in rows]
    named += [(row.scenario, row.numbers) for row in weak]
    wanted: list[Spec] = [
        spec
        for scenario, numbers in named
        if only in scenario
        for number in numbers
        for spec in number.specs()
    ]
    if not only:
        wanted += grid_specs() + figure_specs(policy)
    if baselines_only:
        wanted = [spec for spec in wanted if spec.policy != policy]
    missing = sum(1 for spec in dict.fromkeys(wanted) if results.get(spec) is None)
    click.echo(f"{missing} runs to make, {len(set(wanted)) - missing} are there")
    until = math.inf if minutes is None else time.monotonic() + 60.0 * minutes
    runs = results.complete(wanted, processes or os.cpu_count() or 1, until)
    for done, (spec, figures) in enumerate(runs, start=1):
        click.echo(
            f"{done}/{missing} {spec.policy} load {spec.load} seed {spec.seed} {spec.fleet} "
            f"{spec.arrivals}: mean {figures['mean']:.3f} s, p99 {figures['p99']:.2f} s"
            f"{'' if figures['stable'] else ', unstable'} "
            f"({figures['tasks_per_second']:,.0f} tasks/s)"
        )
    costs = [] if baselines_only else [measure(policy, queues) for queues in COST_MUST_SECONDS]
    output.mkdir(parents=True, exist_ok=True)
    (output / "policy.md").write_text(page(results, policy, rows, weak, costs, COMMAND), "utf-8")
    draw_load(results, policy, output / "policy-load.svg")
    draw_curve(results, policy, output / "policy-learning.svg")
    click.echo(f"wrote {output / 'policy.md'}")


if __name__ == "__main__":
    main()
