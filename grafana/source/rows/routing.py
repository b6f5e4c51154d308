"""Where tasks go, and why."""

from __future__ import annotations

from typing import Final

from grafana.source.kinds import Bars, Lines, Matrix
from grafana.source.panels import Row
from grafana.source.queries import MOST, Query, quantile

ROUTING: Final = Row(
    "routing",
    "Routing decisions",
    (
        Lines(
            title="Decisions by algorithm and mode",
            description="Routing decisions per second, by who made them and what the mode was.",
            unit="suffix:/s",
            width=8,
            queries=[
                Query(
                    "sum by (algorithm, mode)"
                    " (rate(owl_routing_decisions_total{app}[$__rate_interval]))",
                    "{{algorithm}} ({{mode}})",
                )
            ],
            stacked=True,
        ),
        Lines(
            title="Time to decide",
            description="What the router adds to apply_async: median and 99th percentile.",
            unit="s",
            width=8,
            queries=[
                Query(quantile(share, "owl_routing_decision_duration_seconds", "", "{app}"), name)
                for share, name in ((0.5, "median"), (0.99, "99 %"))
            ],
        ),
        Bars(
            title="Tasks by worker",
            description=f"Tries that each worker has run, the {MOST} with the most.",
            unit="short",
            width=8,
            queries=[
                Query(f"sort_desc(topk({MOST}, owl_worker_task_count{{app}}))", "{{worker_id}}")
            ],
        ),
        Matrix(
            title="Where each task type goes",
            description="Share of a task type's tries that went to each GPU model.",
            unit="percentunit",
            width=8,
            height=10,
            decimals=0,
            minimum=0.0,
            maximum=1.0,
            row="task_type",
            column="gpu_model",
            queries=[
                Query(
                    "sum by (task_type, gpu_model) (owl_assignments_by_gpu_model{pair})"
                    " / on (task_type) group_left ()"
                    " sum by (task_type) (owl_assignments_by_gpu_model{task})"
                )
            ],
        ),
        Matrix(
            title="Learned service time",
            description="Mean seconds that one try of a task type takes on each GPU model: why it "
            "goes where it goes.",
            unit="s",
            width=8,
            height=10,
            row="task_type",
            column="gpu_model",
            scheme="continuous-GrYlRd",
            queries=[Query("max by (task_type, gpu_model) (owl_service_seconds{pair})")],
        ),
        Bars(
            title="Assignments",
            description=f"Tries by task type and worker, the {MOST} most frequent pairs.",
            unit="short",
            width=8,
            height=10,
            queries=[
                Query(
                    f"sort_desc(topk({MOST}, owl_task_worker_assignments_count{{task}}))",
                    "{{task_type}} on {{worker_id}}",
                )
            ],
        ),
    ),
)
