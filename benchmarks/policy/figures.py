"""The pictures: mean response against load, and how fast the policy learns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.policy.measures import SEEDS
from benchmarks.policy.runs import CURVE_BIN, Results, Spec

LOADS: Final = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)
CURVE_LOAD: Final = 0.7
SMOOTHED_BINS: Final = 5
COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Told apart by readers who do not see all colours."""


def load_policies(policy: str) -> list[str]:
    """Policies of the first picture, ours first."""
    others = ("expected_completion", "shared_fifo", "shortest_queue", "jsed_oracle")
    return [policy, *(name for name in (*others, "late_binding_oracle") if name != policy)]


def curve_policies(policy: str) -> list[str]:
    """Policies of the second picture, ours first."""
    return [policy, *(name for name in ("expected_completion", "blind_pandas") if name != policy)]


def specs(policy: str, seeds: Sequence[int] = SEEDS) -> list[Spec]:
    """Every run that the pictures need."""
    wanted = [(name, load) for load in LOADS for name in load_policies(policy)]
    wanted += [(name, CURVE_LOAD) for name in (*curve_policies(policy), "priced_oracle")]
    return [Spec(name, load, seed) for name, load in wanted for seed in seeds]


def draw_load(results: Results, policy: str, path: Path, seeds: Sequence[int] = SEEDS) -> None:
    """Mean response against load, medians over seeds; a line ends where the policy falls behind."""
    figure, axes = _axes()
    for name, colour in zip(load_policies(policy), COLOURS, strict=False):
        points = []
        for load in LOADS:
            rows = [results.get(Spec(name, load, seed)) for seed in seeds]
            known = [row for row in rows if row is not None]
            # A median over fewer seeds would be one of other worlds.
            if len(known) == len(rows) and 2 * sum(row["stable"] for row in known) >= len(known):
                points.append((load, float(np.median([row["mean"] for row in known]))))
        if points:
            width = 2.6 if name == policy else 1.6
            axes.plot(*zip(*points, strict=True), marker="o", color=colour, lw=width, label=name)
    axes.set(
        xlabel="load: arrival rate / most that the fleet can serve",
        ylabel="mean response time, s",
        yscale="log",
        title="4 K80 + 4 P100 + 4 V100, Poisson arrivals",
    )
    axes.set_yticks([1, 2, 3, 5, 10], labels=["1", "2", "3", "5", "10"])
    axes.minorticks_off()
    _save(figure, axes, path)


def draw_curve(results: Results, policy: str, path: Path, seeds: Sequence[int] = SEEDS) -> None:
    """Response of the first tasks over that with known rates, medians over seeds."""
    figure, axes = _axes()
    base = Spec("", CURVE_LOAD, 0)
    for name, colour in zip(curve_policies(policy), COLOURS, strict=False):
        ratios = []
        for seed in seeds:
            ours = results.get(replace(base, policy=name, seed=seed))
            known = results.get(replace(base, policy="priced_oracle", seed=seed))
            if ours is not None and known is not None:
                ratios.append(_smooth(ours["curve"]) / _smooth(known["curve"]))
        if not ratios:
            continue
        table = np.array(ratios)
        tasks = (np.arange(table.shape[1]) + SMOOTHED_BINS) * CURVE_BIN
        axes.plot(tasks, np.median(table, axis=0), color=colour, lw=2, label=name)
        axes.fill_between(
            tasks, table.min(axis=0), table.max(axis=0), color=colour, alpha=0.15, lw=0
        )
    axes.axhline(1.0, color="#555555", lw=1, ls="--")
    axes.set(
        xlabel=f"tasks so far (mean of the last {SMOOTHED_BINS * CURVE_BIN})",
        ylabel="response time / with known rates",
        title=f"Learning from nothing at load {CURVE_LOAD}; bands: least and most of the seeds",
    )
    _save(figure, axes, path)


def _smooth(curve: Sequence[float]) -> Any:
    return np.convolve(curve, np.full(SMOOTHED_BINS, 1.0 / SMOOTHED_BINS), mode="valid")


def _axes() -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("svg")
    # Fixed ids, so that a figure changes only when its numbers do.
    matplotlib.rcParams["svg.hashsalt"] = "owl_celery"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.5, 4.5), layout="constrained")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, axes: Any, path: Path) -> None:
    from matplotlib import pyplot

    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
