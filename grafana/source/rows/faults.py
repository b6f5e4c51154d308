"""What goes wrong, and what is done about it."""

from __future__ import annotations

from typing import Final

from grafana.source.kinds import Lines, Stat
from grafana.source.panels import GREEN, RED, Row, Step
from grafana.source.queries import Query

FAULTS: Final = Row(
    "faults",
    "Faults",
    (
        Lines(
            title="Fallbacks",
            description="Tasks per second that the router left to Celery, by reason.",
            unit="suffix:/s",
            width=8,
            queries=[
                Query(
                    "sum by (reason) (rate(owl_routing_fallbacks_total{app}[$__rate_interval]))"
                    # Of all reasons that there are, those that ever were.
                    " and sum by (reason) (owl_routing_fallbacks_total{app}) > 0",
                    "{{reason}}",
                )
            ],
            stacked=True,
            empty="none",
        ),
        Lines(
            title="Tasks moved",
            description="Waiting tasks taken over by idle GPUs (stolen), and from dead workers "
            "(rescued), per second.",
            unit="suffix:/s",
            width=8,
            queries=[
                Query(f"sum(rate(owl_tasks_{word}_total{{app}}[$__rate_interval]))", word)
                for word in ("stolen", "rescued")
            ],
        ),
        Lines(
            title="Lost and failed",
            description="Outcomes that were dropped, and errors of the database and the policy, "
            "in each interval.",
            unit="short",
            width=8,
            queries=[
                Query(f"sum(increase({metric}{{app}}[$__rate_interval]))", name)
                for metric, name in (
                    ("owl_outcomes_dropped_total", "outcomes dropped"),
                    ("owl_store_errors_total", "database errors"),
                    ("owl_policy_errors_total", "policy errors"),
                )
            ],
        ),
        Lines(
            title="How old the knowledge is",
            description="Age of the view of the queues (routing falls back after 2 s), of the "
            "oldest outcome that is not learned from, and of this page.",
            unit="s",
            width=6,
            queries=[
                Query("max(owl_view_age_seconds{app})", "view"),
                Query("max(owl_stream_lag_seconds{app})", "outcomes"),
                Query("max(owl_exporter_age_seconds{app})", "metrics"),
            ],
        ),
        Lines(
            title="Round of the controller",
            description="Seconds that one round of the controller takes, lately.",
            unit="s",
            width=6,
            queries=[Query("max(owl_controller_tick_seconds{app})", "round")],
        ),
        Stat(
            title="Visibility timeout against the longest task",
            description="Redis delivers a task again after the timeout, so it has to be longer "
            "than tasks run: the largest 99th percentile of a task type.",
            unit="s",
            width=7,
            height=8,
            queries=[
                Query("max(owl_visibility_timeout_seconds{app})", "visibility timeout"),
                Query("max(owl_task_type_p99_seconds{app})", "longest task"),
            ],
            text="value_and_name",
        ),
        Stat(
            title="Unserved tasks",
            description="Tasks that wait in a queue which no live worker takes from.",
            unit="short",
            width=5,
            height=8,
            queries=[
                Query(
                    "sum(owl_queue_unserved_tasks{app}) or 0 * max(owl_build_info{app})",
                    "unserved",
                )
            ],
            steps=[Step(GREEN), Step(RED, 1)],
        ),
    ),
)
