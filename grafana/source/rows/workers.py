"""How the workers and their GPUs are used."""

from __future__ import annotations

from typing import Final

from grafana.source.kinds import Bars, Lines
from grafana.source.panels import GREEN, ORANGE, RED, Row, Step
from grafana.source.queries import MOST, Query

WORKERS: Final = Row(
    "workers",
    "Worker efficiency",
    (
        Lines(
            title="Busy",
            description="Share of the workers of each GPU model that run a task.",
            unit="percentunit",
            width=8,
            maximum=1.0,
            queries=[
                Query(
                    "avg by (gpu_model)"
                    " (avg_over_time(owl_worker_busy_ratio{gpu}[$__rate_interval]))",
                    "{{gpu_model}}",
                ),
            ],
        ),
        Lines(
            title="Backlog",
            description="Predicted seconds of work ahead in the fullest queue of each GPU model.",
            unit="s",
            width=8,
            queries=[
                Query("max by (gpu_model) (owl_queue_backlog_seconds{gpu})", "{{gpu_model}}"),
            ],
        ),
        Lines(
            title="Waiting tasks",
            description="Tasks that wait in the queues of each GPU model.",
            unit="short",
            width=8,
            queries=[
                Query("sum by (gpu_model) (owl_queue_waiting_tasks{gpu})", "{{gpu_model}}"),
            ],
            stacked=True,
        ),
        Bars(
            title="Backlog by queue",
            description=f"Predicted seconds of work ahead in each queue, the {MOST} fullest.",
            unit="s",
            width=8,
            height=8,
            queries=[
                Query(
                    f"sort_desc(topk({MOST}, owl_queue_backlog_seconds{{gpu}}))",
                    "{{queue}} {{gpu_model}}",
                )
            ],
        ),
        Bars(
            title="Service time against its GPU model",
            description="How long tasks take on each GPU against its like, the slowest first; "
            "more than 1 is slower.",
            unit="x",
            width=8,
            height=8,
            decimals=2,
            steps=[Step(GREEN), Step(ORANGE, 1.15), Step(RED, 1.5)],
            queries=[
                Query(
                    f"sort_desc(topk({MOST}, owl_queue_speed_factor{{gpu}}))",
                    "{{queue}} {{gpu_model}}",
                )
            ],
        ),
        Bars(
            title="Busy by worker",
            description=f"Share of its slots that each worker uses now, the {MOST} busiest.",
            unit="percentunit",
            width=8,
            height=8,
            maximum=1.0,
            queries=[
                Query(
                    f"sort_desc(topk({MOST}, owl_worker_busy_ratio{{gpu}}))",
                    "{{worker_id}} {{gpu_model}}",
                )
            ],
        ),
        Lines(
            title="GPU utilisation (NVML)",
            description="Share of the last second in which the GPU computed, mean by GPU model.",
            unit="percentunit",
            width=6,
            maximum=1.0,
            queries=[
                Query(
                    "avg by (gpu_model)"
                    " (avg_over_time(owl_gpu_utilization_ratio{gpu}[$__rate_interval]))",
                    "{{gpu_model}}",
                ),
            ],
        ),
        Lines(
            title="GPU memory used (NVML)",
            description="Share of its memory that the fullest GPU of each model uses.",
            unit="percentunit",
            width=6,
            maximum=1.0,
            queries=[
                Query(
                    "max by (gpu_model) (owl_gpu_memory_used_bytes{gpu}"
                    " / owl_gpu_memory_total_bytes{gpu})",
                    "{{gpu_model}}",
                ),
            ],
        ),
        Lines(
            title="GPU temperature (NVML)",
            description="Temperature of the hottest GPU of each model.",
            unit="celsius",
            width=6,
            queries=[
                Query("max by (gpu_model) (owl_gpu_temperature_celsius{gpu})", "{{gpu_model}}"),
            ],
        ),
        Lines(
            title="GPU power (NVML)",
            description="Power that all GPUs of each model draw.",
            unit="watt",
            width=6,
            queries=[
                Query("sum by (gpu_model) (owl_gpu_power_watts{gpu})", "{{gpu_model}}"),
            ],
            stacked=True,
        ),
    ),
)
