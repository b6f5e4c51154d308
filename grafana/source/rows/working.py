"""Whether it works at all: what to look at first."""

from __future__ import annotations

from typing import Final

from grafana.source.kinds import Lines, Stat
from grafana.source.panels import GREEN, ORANGE, RED, Row, Step
from grafana.source.queries import Query

WORKING: Final = Row(
    "working",
    "Is it working?",
    (
        Stat(
            title="Health",
            description="How many parts do not work at present; the console says which, and why.",
            unit="short",
            width=3,
            queries=[
                Query("count(owl_trouble{app} == 1) or 0 * max(owl_build_info{app})", "troubles")
            ],
            texts={0: "ok", 1: "1 trouble", 2: "2 troubles", 3: "3 troubles"},
            steps=[Step(GREEN), Step(RED, 1)],
            empty="no exporter",
        ),
        Stat(
            title="Mode",
            description="Whether the policy routes (on), only looks on (shadow) or rests (off).",
            unit="short",
            width=3,
            queries=[Query("owl_mode{app} == 1", "{{mode}}")],
            text="name",
            colours={"on": GREEN, "shadow": ORANGE, "off": RED},
        ),
        Stat(
            title="Controller",
            description="Whether a controller learns and publishes the view of the queues.",
            unit="short",
            width=3,
            queries=[Query("max(owl_controller_active{app})", "controller")],
            texts={0: "gone", 1: "active"},
            steps=[Step(RED), Step(GREEN, 1)],
        ),
        Stat(
            title="Alerts",
            description="How many of the alerts in grafana/prometheus fire now.",
            unit="short",
            width=3,
            queries=[
                Query(
                    'count(ALERTS{app,alertname=~"Owl.+",alertstate="firing"})'
                    " or 0 * max(owl_build_info{app})",
                    "firing",
                )
            ],
            texts={0: "none"},
            steps=[Step(GREEN), Step(RED, 1)],
        ),
        Stat(
            title="Queues",
            description="GPU queues that take work, and all that live workers name.",
            unit="short",
            width=4,
            queries=[
                Query("sum(owl_queue_open{gpu})", "open"),
                Query("count(owl_queue_open{gpu})", "all"),
            ],
            text="value_and_name",
        ),
        Stat(
            title="Execution time saved",
            description="Service time saved against plain Celery's shared queue on the same GPUs, "
            "with the bounds of its 95 % interval.",
            unit="percentunit",
            width=8,
            decimals=0,
            queries=[
                Query('1 - owl_improvement_service_ratio{app,bound="high"}', "at least"),
                Query('1 - owl_improvement_service_ratio{app,bound="estimate"}', "estimate"),
                Query('1 - owl_improvement_service_ratio{app,bound="low"}', "at most"),
            ],
            text="value_and_name",
            steps=[Step(RED), Step(ORANGE, -0.02), Step(GREEN, 0.02)],
            empty="too early to say",
        ),
        Stat(
            title="Tasks and task types",
            description="Tries that were learned from, ever, and of how many types.",
            unit="short",
            width=6,
            height=7,
            queries=[
                Query("owl_total_tasks_processed{app}", "tasks"),
                Query("owl_task_types_count{app}", "types"),
            ],
            text="value_and_name",
        ),
        Lines(
            title="Tasks finished",
            description="Tries that ended, per second, by how they ended.",
            unit="suffix:/s",
            width=9,
            height=7,
            queries=[
                Query("sum by (state) (rate(owl_tasks_total{pair}[$__rate_interval]))", "{{state}}")
            ],
            stacked=True,
            colours={"success": GREEN, "failure": RED},
        ),
        Lines(
            title="Tasks in the queues",
            description="Tasks that wait in the queues of all GPUs, and those that run.",
            unit="short",
            width=9,
            height=7,
            queries=[
                Query("sum(owl_queue_waiting_tasks{gpu})", "waiting"),
                Query("sum(owl_queue_running_tasks{gpu})", "running"),
            ],
        ),
    ),
)
