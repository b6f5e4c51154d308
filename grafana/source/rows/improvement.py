"""What routing saves."""

from __future__ import annotations

from typing import Final

from grafana.source.kinds import Bars, Lines
from grafana.source.panels import BLUE, GREEN, Row
from grafana.source.queries import MOST, Query, mean, quantile

IMPROVEMENT: Final = Row(
    "improvement",
    "Execution-time improvement",
    (
        Lines(
            title="Service time against the shared queue",
            description="Mean service time as a share of what plain Celery's shared queue would "
            "have taken on the same GPUs, with its 95 % interval; below 100 % is better.",
            unit="percentunit",
            width=12,
            queries=[Query("owl_improvement_service_ratio{app}", "{{bound}}")],
            dashed=["low", "high"],
            colours={"estimate": GREEN, "low": BLUE, "high": BLUE},
        ),
        Lines(
            title="Response time against Celery's own routing",
            description="Mean wait plus service of routed tasks as a share of that of tasks which "
            "Celery placed, while both are seen; below 100 % is better.",
            unit="percentunit",
            width=12,
            queries=[Query("owl_improvement_response_ratio{app}", "{{bound}}")],
            dashed=["low", "high"],
            colours={"estimate": GREEN, "low": BLUE, "high": BLUE},
            empty="Celery has placed too few tasks to compare with",
        ),
        Bars(
            title="Mean service time by task type",
            description=f"Mean over all successful tries, the {MOST} longest.",
            unit="s",
            width=8,
            height=10,
            queries=[
                Query(
                    f"sort_desc(topk({MOST}, owl_task_type_avg_duration{{task}}))", "{{task_type}}"
                )
            ],
        ),
        Lines(
            title="Service time by GPU model",
            description="Mean seconds that successful tries run, by GPU model.",
            unit="s",
            width=8,
            height=10,
            queries=[
                Query(mean("owl_task_duration_seconds", "gpu_model", "{gpu}"), "{{gpu_model}}")
            ],
        ),
        Lines(
            title="Wait in the queue, 95th percentile",
            description="The wait that one task in twenty exceeds, by GPU model.",
            unit="s",
            width=8,
            height=10,
            queries=[
                Query(
                    quantile(0.95, "owl_task_queue_wait_seconds", "gpu_model", "{gpu}"),
                    "{{gpu_model}}",
                )
            ],
        ),
    ),
)
