"""The demo's picture: response time of both arms, and how good the predictions become."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from owl_celery.demo.arm import Arm
from owl_celery.demo.report import LABELS
from owl_celery.types import Outcome

COLORS = {"celery_shared": "#8a8f98", "owl": "#c2410c"}
WINDOW = 60

Floats = npt.NDArray[np.float64]


def draw_picture(path: Path, arms: Sequence[Arm], outcomes: Sequence[Outcome], title: str) -> None:
    """Write a PNG of two panels.

    Parameters
    ----------
    arms
        The finished arms.
    outcomes
        What was learned from, in order of finishing.
    title
        Says which run this is.

    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    response, error = figure.subplots(2, 1, height_ratios=[3, 2])
    for arm in arms:
        done = sorted(arm.done, key=lambda one: one.due)
        seconds = np.array([one.response_seconds for one in done])
        numbers = np.arange(1, len(done) + 1)
        color = COLORS[arm.name]
        response.scatter(numbers, seconds, s=3, color=color, alpha=0.25, linewidths=0)
        response.plot(numbers, moving_mean(seconds), color=color, label=LABELS[arm.name])
    response.set(ylabel="response time, s", ylim=(0, None))
    response.legend(frameon=False, loc="upper left")
    response.set_title(title, loc="left")
    predicted = [
        (one.predicted_seconds, one.service_seconds)
        for one in outcomes
        if one.predicted_seconds is not None and one.state.succeeded
    ]
    if predicted:
        pairs = np.array(predicted)
        relative = np.abs(pairs[:, 0] - pairs[:, 1]) / pairs[:, 1]
        error.plot(np.arange(1, len(pairs) + 1), moving_median(relative), color=COLORS["owl"])
    error.set(
        xlabel="tasks, in order",
        ylabel="error of predicted\nservice time",
        ylim=(0, 1),
        yticks=[0, 0.5, 1],
        yticklabels=["0 %", "50 %", "100 %"],
    )
    for panel in (response, error):
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", alpha=0.3)
    figure.savefig(path, dpi=130)


def moving_mean(values: Floats) -> Floats:
    """Mean of each value and those before it, within the window."""
    sums = np.cumsum(np.insert(values, 0, 0.0))
    ends = np.arange(1, len(values) + 1)
    begins = np.maximum(ends - WINDOW, 0)
    mean: Floats = (sums[ends] - sums[begins]) / (ends - begins)
    return mean


def moving_median(values: Floats) -> Floats:
    """Median of each value and those before it, within the window."""
    return np.array(
        [np.median(values[max(end - WINDOW, 0) : end]) for end in range(1, len(values) + 1)]
    )
