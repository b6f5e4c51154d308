"""Which tasks fail, and where."""

from __future__ import annotations

from typing import Final

from grafana.source.kinds import Bars, Lines, Matrix
from grafana.source.panels import GREEN, ORANGE, RED, Row, Step
from grafana.source.queries import MOST, Query

SHARE: Final = (Step(RED), Step(ORANGE, 0.9), Step(GREEN, 0.99))

SUCCESS: Final = Row(
    "success",
    "Success by task type and worker",
    (
        Bars(
            title="Success by task type",
            description=f"Share of tries that succeeded, the {MOST} task types with the least.",
            unit="percentunit",
            width=6,
            height=10,
            maximum=1.0,
            steps=SHARE,
            queries=[
                Query(f"sort(bottomk({MOST}, owl_task_type_success_rate{{task}}))", "{{task_type}}")
            ],
        ),
        Bars(
            title="Success by worker",
            description=f"Share of tries that succeeded, the {MOST} workers with the least.",
            unit="percentunit",
            width=6,
            height=10,
            maximum=1.0,
            steps=SHARE,
            queries=[
                Query(f"sort(bottomk({MOST}, owl_worker_success_rate{{app}}))", "{{worker_id}}")
            ],
        ),
        Lines(
            title="Failures",
            description="Failed tries per second, by reason.",
            unit="suffix:/s",
            width=12,
            height=10,
            queries=[
                Query(
                    "sum by (reason) (rate(owl_task_failures_total{pair}[$__rate_interval]))",
                    "{{reason}}",
                )
            ],
            stacked=True,
        ),
        Matrix(
            title="Success by task type and worker",
            description="Share of tries that succeeded; a red column is a worker to look at, a red "
            "row a task.",
            unit="percentunit",
            width=24,
            height=10,
            decimals=0,
            minimum=0.0,
            maximum=1.0,
            row="task_type",
            column="worker_id",
            scheme="continuous-RdYlGr",
            column_width=96,
            queries=[
                Query("max by (task_type, worker_id) (owl_task_type_worker_success_rate{task})")
            ],
        ),
    ),
)
