"""``owl simulate``: policies against each other on a virtual clock."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from owl_celery.errors import InputError
from owl_celery.simulate.baselines import contender_names
from owl_celery.simulate.conditions import Conditions
from owl_celery.simulate.faults import read_faults
from owl_celery.simulate.instance import Instance
from owl_celery.simulate.results import Row, median_row
from owl_celery.simulate.study import Job, Scenario, run_jobs
from owl_celery.simulate.table import ServiceTable, Values, gavel_table, parse_fleet

DEFAULT_POLICIES = "shared_fifo,shortest_queue,jsed_oracle,q_learning"


@click.command()
@click.option(
    "--table",
    "table_path",
    type=click.Path(path_type=Path),
    help="CSV, rows task types, columns GPU models; Gavel's measurements when omitted.",
)
@click.option(
    "--values",
    type=click.Choice(["throughput", "seconds"]),
    default="throughput",
    show_default=True,
    help="What the cells are; an empty cell: the type does not fit.",
)
@click.option("--fleet", default="k80=4,p100=4,v100=4", show_default=True, help="MODEL=COUNT,...")
@click.option(
    "--load",
    default=None,
    help="Share of the fleet's capacity, or several: 0.5,0.7. Default 0.7; a trace keeps its own.",
)
@click.option(
    "--arrivals",
    default="poisson",
    show_default=True,
    help="poisson, mmpp (bursts) or a trace: CSV of time,type,size,model.",
)
@click.option("--size-cv", type=click.FloatRange(0, 10), default=0.3, show_default=True)
@click.option("--size-feature", is_flag=True, help="Tell policies the size of each task.")
@click.option("--tasks", type=click.IntRange(1), default=70_000, show_default=True)
@click.option("--warmup", type=click.IntRange(0), default=20_000, show_default=True)
@click.option("--seeds", default="0-4", show_default=True, help="Such as 0-4 or 1,5,7.")
@click.option(
    "--policies", default=DEFAULT_POLICIES, show_default=True, help="Names with commas; see --list."
)
@click.option("--baseline", default=None, help="Policy of ratio 1; the first by default.")
@click.option("--steal", is_flag=True, help="Idle queues take tasks that wait elsewhere.")
@click.option(
    "--steal-tick",
    type=click.FloatRange(1e-4, 60),
    default=0.05,
    show_default=True,
    help="Seconds between two looks for idle queues.",
)
@click.option("--routers", type=click.IntRange(1, 10_000), default=1, show_default=True)
@click.option(
    "--view-age",
    type=click.FloatRange(0, 3600),
    default=0.0,
    show_default=True,
    help="Age in seconds of the load that routers see.",
)
@click.option(
    "--events",
    type=click.Path(path_type=Path),
    help="CSV of time,action,target,type,value: throttle, stop, return, fail.",
)
@click.option(
    "--switch-cost",
    type=click.FloatRange(0, 1e6),
    default=0.0,
    show_default=True,
    help="Seconds to load another model than that of the queue's last task.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="Setting of the production policies, such as exploration_rate=0.1.",
)
@click.option("--processes", type=click.IntRange(1), help="All cores when omitted.")
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--list", "lists", is_flag=True, help="List the policies and leave.")
def simulate(
    table_path: Path | None,
    values: Values,
    fleet: str,
    load: str | None,
    arrivals: str,
    size_cv: float,
    size_feature: bool,
    tasks: int,
    warmup: int,
    seeds: str,
    policies: str,
    baseline: str | None,
    steal: bool,
    steal_tick: float,
    routers: int,
    view_age: float,
    events: Path | None,
    switch_cost: float,
    settings: Sequence[str],
    processes: int | None,
    json_path: Path | None,
    lists: bool,
) -> None:
    """Compare routing policies on a virtual clock.

    Drives the very classes that route in production. Times are in seconds; the mean service on
    the best GPU is 1 s, unless a trace is replayed.
    """
    if lists:
        click.echo("\n".join(contender_names()))
        return
    try:
        names = _names(policies)
        if baseline is not None and baseline not in names:
            raise InputError(f"The baseline {baseline!r} is not among --policies.")
        table = gavel_table() if table_path is None else ServiceTable.read(table_path, values)
        gpus = parse_fleet(fleet)
        is_random = arrivals in ("poisson", "mmpp")
        loads: list[float | None] = list(_loads(load or "0.7")) if is_random or load else [None]
        built = Instance.as_measured(table, gpus).fleet()
        conditions = Conditions(
            size_feature=size_feature,
            steal_seconds=steal_tick if steal else None,
            routers=routers,
            view_age=view_age,
            switch_seconds=switch_cost,
            faults=read_faults(events, built.names, built.models, table.types) if events else (),
        )
        scenarios = [
            Scenario(
                table,
                gpus,
                load=each,
                arrivals=arrivals if is_random else Path(arrivals),
                tasks=tasks,
                warmup=warmup,
                size_cv=size_cv,
                conditions=conditions,
                settings=_settings(settings),
            )
            for each in loads
        ]
        jobs = [
            Job(scenario, name, seed)
            for scenario in scenarios
            for seed in _seeds(seeds)
            for name in names
        ]
        jobs[0].scenario.world(jobs[0].seed)
        rows = _run(jobs, processes)
    except InputError as error:
        raise click.ClickException(str(error)) from error
    if json_path is not None:
        body = {"rows": [row.as_json() for row in rows]}
        json_path.write_text(json.dumps(body, indent=1), encoding="utf-8")
    _show(rows, baseline or names[0])


def _run(jobs: Sequence[Job], processes: int | None) -> list[Row]:
    """Run all, show how far it is, and put the rows in order."""
    done: dict[int, Row] = {}
    position = {id(job): index for index, job in enumerate(jobs)}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    is_hidden = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=is_hidden) as progress:
        bar = progress.add_task("runs", total=len(jobs))
        for job, row in run_jobs(jobs, processes):
            done[position[id(job)]] = row
            progress.advance(bar)
    return [done[index] for index in sorted(done)]


def _show(rows: Sequence[Row], baseline: str) -> None:
    """Print medians over seeds."""
    groups: defaultdict[tuple[float, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.load, row.policy].append(row)
    table = Table(title="Response time in seconds, medians over seeds")
    table.add_column("load", justify="right", no_wrap=True)
    table.add_column("policy", no_wrap=True)
    for head in ("mean", "p50", "p95", "p99", "ratio", "stable"):
        table.add_column(head, justify="right", no_wrap=True)
    for (load, policy), group in groups.items():
        reference = groups.get((load, baseline), [])
        stable = sum(row.stable for row in group)
        cells = [f"{value:.3f}" for value in median_row(group).values()]
        if 2 * stable < len(group):
            cells = ["unstable", "", "", ""]
        share = f"{stable}/{len(group)}"
        table.add_row(f"{load:.2f}", policy, *cells, _ratio(group, reference), share)
    table.caption = (
        f"ratio: of means, to {baseline}; stable: seeds in which the policy could keep up"
    )
    Console().print(table)


def _ratio(rows: Sequence[Row], reference: Sequence[Row]) -> str:
    """Median over seeds of the ratio of means; none where either could not keep up."""
    known = {row.seed: row for row in reference if row.stable}
    if 2 * sum(row.stable for row in rows) < len(rows):
        return ""
    ratios = [row.mean / known[row.seed].mean for row in rows if row.seed in known]
    return f"{np.median(ratios):.3f}" if 2 * len(ratios) >= len(rows) else "-"


def _names(text: str) -> list[str]:
    names = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    known = contender_names()
    for name in names:
        if name not in known:
            raise InputError(f"No policy {name!r}; known are: {', '.join(known)}.")
    if not names:
        raise InputError("Name at least one policy.")
    return names


def _loads(text: str) -> list[float]:
    try:
        loads = [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"Load {text!r} is not a number or several with commas.") from None
    if not all(0.0 < load <= 10.0 for load in loads):
        raise InputError(f"Load {text!r} is not above 0 and at most 10.")
    return loads


def _seeds(text: str) -> list[int]:
    seeds: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdecimal() or not (last or first).isdecimal():
            raise InputError(f"Seeds {text!r} are not like 0-4 or 1,5,7.")
        seeds.extend(range(int(first), int(last or first) + 1))
    if not seeds:
        raise InputError(f"Seeds {text!r} name none.")
    return list(dict.fromkeys(seeds))


def _settings(pairs: Sequence[str]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign:
            raise InputError(f"Setting {pair!r} is not NAME=VALUE.")
        settings[name.strip()] = value.strip()
    return settings
