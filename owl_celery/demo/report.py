"""What the demo says at its end: a table, ``demo.json`` and a picture."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from owl_celery.demo.arm import Arm

LABELS = {"celery_shared": "Celery, one shared queue", "owl": "routed by owl_celery"}


@dataclass(frozen=True, slots=True)
class Summary:
    """Figures of one arm; NaN when nothing finished.

    Parameters
    ----------
    mean_seconds, p95_seconds, p99_seconds
        Response time of the tasks that have a result.
    tasks, lost
        Tasks that have a result, and that were sent and have none.
    tasks_per_second
        Tasks by the time of the last result.
    busy
        Share of time in which the GPUs of each model worked.

    """

    mean_seconds: float
    p95_seconds: float
    p99_seconds: float
    tasks: int
    lost: int
    tasks_per_second: float
    busy: Mapping[str, float]


def summarise(arm: Arm, fleet: Mapping[str, int]) -> Summary:
    """Sum up an arm; ``busy`` is the share of time in which GPUs of each model worked."""
    response = np.array([done.response_seconds for done in arm.done] or [np.nan])
    span = max((done.finished for done in arm.done), default=float("nan"))
    worked: Counter[str] = Counter()
    for done in arm.done:
        worked[done.gpu_model] += done.service_seconds  # type: ignore[assignment]
    return Summary(
        mean_seconds=float(response.mean()),
        p95_seconds=float(np.percentile(response, 95)),
        p99_seconds=float(np.percentile(response, 99)),
        tasks=len(arm.done),
        lost=arm.lost,
        tasks_per_second=len(arm.done) / span,
        busy={model: worked[model] / (count * span) for model, count in fleet.items()},
    )


def ratio_mean(summaries: Mapping[str, Summary]) -> float:
    """Mean response time when routed, as a share of the shared queue's."""
    return summaries["owl"].mean_seconds / summaries["celery_shared"].mean_seconds


def comparison(summaries: Mapping[str, Summary]) -> Table:
    """Lay the arms side by side."""
    table = Table(title="Response time: from when a task is due until its result is stored")
    table.add_column("")
    for name in summaries:
        table.add_column(LABELS[name], justify="right")
    table.add_column("ratio", justify="right")
    shared, owl = summaries["celery_shared"], summaries["owl"]
    for label, field in (("mean", "mean_seconds"), ("p95", "p95_seconds"), ("p99", "p99_seconds")):
        before, after = getattr(shared, field), getattr(owl, field)
        table.add_row(
            f"{label} response", f"{before:.2f} s", f"{after:.2f} s", f"{after / before:.2f}"
        )
    table.add_row(
        "throughput",
        f"{shared.tasks_per_second:.1f} tasks/s",
        f"{owl.tasks_per_second:.1f} tasks/s",
        f"{owl.tasks_per_second / shared.tasks_per_second:.2f}",
    )
    for model in shared.busy:
        table.add_row(f"{model} busy", f"{shared.busy[model]:.0%}", f"{owl.busy[model]:.0%}", "")
    table.add_row("tasks", str(shared.tasks), str(owl.tasks), "")
    table.add_row("lost", str(shared.lost), str(owl.lost), "")
    return table


def write_json(
    path: Path, summaries: Mapping[str, Summary], seed: int, fleet: Mapping[str, int], load: float
) -> None:
    """Write the figures for a program to read; seconds, and shares in 0-1."""
    arms: dict[str, Any] = {
        name: {
            "mean_seconds": summary.mean_seconds,
            "p95_seconds": summary.p95_seconds,
            "p99_seconds": summary.p99_seconds,
            "tasks": summary.tasks,
            "lost": summary.lost,
            "tasks_per_second": summary.tasks_per_second,
            "busy": dict(summary.busy),
        }
        for name, summary in summaries.items()
    }
    body = {
        "arms": arms,
        "ratio_mean": ratio_mean(summaries),
        "seed": seed,
        "fleet": dict(fleet),
        "load": load,
    }
    path.write_text(json.dumps(body, indent=2) + "\n")
