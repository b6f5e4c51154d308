"""The page ``docs/benchmarks/policy.md``; every figure on it comes from a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from benchmarks.policy.cost import Cost
from benchmarks.policy.measures import SEEDS, Measure, Number, WeakSpot
from benchmarks.policy.runs import Figures, Results, Spec
from owl_celery.simulate.baselines import contender_names

GRID_LOADS: Final = (0.5, 0.7, 0.85, 0.95)
COST_MUST_SECONDS: Final = {64: 100e-6, 1024: 250e-6}


def grid_specs(seeds: Sequence[int] = SEEDS) -> list[Spec]:
    """Runs of the table of all policies."""
    return [
        Spec(name, load, seed)
        for load in GRID_LOADS
        for name in contender_names()
        for seed in seeds
    ]


def page(
    results: Results,
    policy: str,
    rows: Sequence[Measure],
    weak: Sequence[WeakSpot],
    costs: Sequence[Cost],
    command: str,
) -> str:
    """Text of the page."""
    met, known = 0, 0
    lines = []
    for measure in rows:
        cells, met_here, known_here = _row(measure, results)
        met, known = met + met_here, known + known_here
        lines.append(cells)
    for cost in costs:
        must = COST_MUST_SECONDS[cost.queues]
        is_met = cost.decision_seconds <= must
        met, known = met + is_met, known + 1
        lines.append(
            f"| one decision | - | CPU time, {cost.queues:,} queues | {must * 1e6:.0f} us | "
            f"{'75-95 us' if cost.queues == 64 else '-'} | {cost.decision_seconds * 1e6:.0f} us | "
            f"{cost.decision_seconds / cost.argmin_seconds:.0f} times a numpy argmin over as many "
            f"({cost.argmin_seconds * 1e6:.1f} us) | "
            f"{'yes' if is_met else '**no**'} |"
        )
    return "\n".join(
        [
            "# The routing policy against its baselines",
            "",
            f"Written by `{command}`; nothing on this page is typed by hand. It drives the",
            f"production class of `{policy}` through the simulator ([how](../simulate.md)) on the",
            f"throughputs that Gavel measured. Seeds {SEEDS[0]}-{SEEDS[-1]}, 70,000 tasks each, of",
            "which the first 20,000 are left out except where the first tasks are the point;",
            "sizes vary by a factor of mean 1 and CV 0.3 that no policy is told. All policies of a",
            "seed meet the same tasks. The mean service time on the best GPU is 1 s.",
            "",
            "## What must hold",
            "",
            "`must` is the floor this project set itself; `prototype` is what an earlier study in",
            "another simulator reached. Figures are medians over seeds, `spread` is the least and",
            f"the most. Of {known} figures {met} meet the floor.",
            "",
            "| scenario | load | metric | must | prototype | ours | spread over seeds | met |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
            *lines,
            "",
            "### Where the prototype was better",
            "",
            *_behind(rows, results),
            "",
            "## Weak spots",
            "",
            "What an earlier study named as open; [the policy page](../policy.md#where-it-is-weak)",
            "tells what was tried.",
            "",
            "| scenario | load | metric | prototype | ours | spread over seeds |",
            "| --- | --- | --- | --- | --- | --- |",
            *(_weak_row(spot, results) for spot in weak),
            "",
            "![Mean response time against load](policy-load.svg)",
            "",
            "A line ends where the policy falls behind on most seeds.",
            "",
            "![Response time of the first tasks](policy-learning.svg)",
            "",
            "## All policies",
            "",
            "4 K80 + 4 P100 + 4 V100, Poisson arrivals: **mean**, median, 95th and 99th percentile",
            "of the response time in seconds, medians over seeds. *Unstable*: it falls behind for",
            "ever on most seeds, so that its mean only tells how long one looked. Names in",
            "`_oracle` know all true service and arrival rates; no product can. The last column is",
            "the fastest of the runs, simulated tasks per second of one core.",
            "",
            "| policy | " + " | ".join(f"load {load}" for load in GRID_LOADS) + " | tasks/s |",
            "| --- |" + " --- |" * (len(GRID_LOADS) + 1),
            *_grid(results),
            "",
        ]
    )


def _row(measure: Measure, results: Results) -> tuple[str, int, int]:
    """One line of the table, the figures in it that are met, and those that are known."""
    scale, unit = (100.0, " %") if measure.percent else (1.0, "")

    def shown(values: Sequence[float]) -> str:
        return " / ".join(f"{value * scale:.3g}{unit}" for value in values)

    ours, spreads, met, known = [], [], 0, 0
    for number, must in zip(measure.numbers, measure.must, strict=True):
        value = number.value(results)
        if value is None:
            ours.append("not run")
            spreads.append("-")
            continue
        known += 1
        is_met = value.median <= must
        met += is_met
        text = f"{value.median * scale:.3f}{unit}"
        ours.append((text if is_met else f"**{text}**") + _note(number, results))
        spreads.append(f"{value.least * scale:.3f}-{value.most * scale:.3f}{unit}")
    verdict = "yes" if met == len(measure.numbers) else f"**{met} of {len(measure.numbers)}**"
    if not known:
        verdict = "-"
    return (
        f"| {measure.scenario} | {measure.load} | {measure.metric} | {shown(measure.must)} | "
        f"{shown(measure.prototype)} | {' / '.join(ours)} | {' / '.join(spreads)} | {verdict} |",
        met,
        known,
    )


def _behind(rows: Sequence[Measure], results: Results) -> list[str]:
    """Name every figure that the prototype had better, and by how much."""
    lines = []
    for measure in rows:
        loads = measure.load.split(" / ")
        for index, (number, prototype) in enumerate(
            zip(measure.numbers, measure.prototype, strict=True)
        ):
            value = number.value(results)
            if value is None or value.median <= prototype:
                continue
            which = f"load {loads[index] if len(loads) == len(measure.numbers) else measure.load}"
            if len(loads) != len(measure.numbers) > 1:
                which += f", figure {index + 1}"
            scale, unit = (100.0, " %") if measure.percent else (1.0, "")
            lines.append(
                f"- {measure.scenario}, {which}, {measure.metric}: "
                f"{value.median * scale:.3f}{unit} against {prototype * scale:.3g}{unit}, "
                f"{100.0 * (value.median / prototype - 1.0):.1f} % more."
            )
    return lines or ["Nowhere."]


def _weak_row(spot: WeakSpot, results: Results) -> str:
    """One line of the table of weak spots."""
    scale, unit = (100.0, " %") if spot.percent else (1.0, "")
    ours, spreads = [], []
    for number in spot.numbers:
        value = number.value(results)
        if value is None:
            ours.append("not run")
            spreads.append("-")
            continue
        ours.append(f"{value.median * scale:.3f}{unit}" + _note(number, results))
        spreads.append(f"{value.least * scale:.3f}-{value.most * scale:.3f}{unit}")
    return (
        f"| {spot.scenario} | {spot.load} | {spot.metric} | {spot.prototype} | "
        f"{' / '.join(ours)} | {' / '.join(spreads)} |"
    )


def _note(number: Number, results: Results) -> str:
    """Say when a figure rests on runs that fell behind."""
    ours, other = number.unstable(results)
    notes = []
    if ours:
        notes.append(f"unstable in {ours} of {len(number.ours)} runs")
    if other:
        notes.append(f"the other unstable in {other} of {len(number.other)}")
    return f" ({'; '.join(notes)})" if notes else ""


def _grid(results: Results) -> list[str]:
    lines = []
    for name in contender_names():
        cells, speeds = [], []
        for load in GRID_LOADS:
            found = [results.get(Spec(name, load, seed)) for seed in SEEDS]
            rows = [row for row in found if row is not None]
            cells.append(_cell(rows))
            speeds += [float(row["tasks_per_second"]) for row in rows]
        fastest = f"{max(speeds):,.0f}" if speeds else "-"
        lines.append(f"| {name} | {' | '.join(cells)} | {fastest} |")
    return lines


def _cell(rows: Sequence[Figures]) -> str:
    if not rows:
        return "not run"
    if 2 * sum(row["stable"] for row in rows) < len(rows):
        return "unstable"
    medians = [
        float(np.median([row[name] for row in rows])) for name in ("mean", "p50", "p95", "p99")
    ]
    return "**{:.2f}** {:.2f} {:.2f} {:.2f}".format(*medians)
