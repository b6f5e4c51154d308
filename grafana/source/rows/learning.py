"""What learning does to the response time."""

from __future__ import annotations

from typing import Final

from grafana.source.kinds import Bars, Lines
from grafana.source.panels import Row
from grafana.source.queries import Query, mean, quantile

LEARNING: Final = Row(
    "learning",
    "Learning over time",
    (
        Lines(
            title="Mean response time by algorithm",
            description="Wait plus service of the tasks that each algorithm placed: what users "
            "feel.",
            unit="s",
            width=12,
            queries=[
                Query(mean("owl_task_response_seconds", "algorithm", "{app}"), "{{algorithm}}")
            ],
        ),
        Lines(
            title="Response time, 95th percentile",
            description="The response time that one task in twenty exceeds, by algorithm.",
            unit="s",
            width=12,
            queries=[
                Query(
                    quantile(0.95, "owl_task_response_seconds", "algorithm", "{app}"),
                    "{{algorithm}}",
                )
            ],
        ),
        Lines(
            title="Prediction error",
            description="Mean absolute error of the predicted service times, as a share of the "
            "mean service time, lately.",
            unit="percentunit",
            width=6,
            queries=[Query("owl_prediction_error_ratio{app}", "{{algorithm}}")],
        ),
        Lines(
            title="Exploration",
            description="Share of the latest tasks that were sent elsewhere than looked best, in "
            "order to learn.",
            unit="percentunit",
            width=6,
            queries=[Query("owl_exploration_rate{app}", "exploration rate")],
        ),
        Lines(
            title="Policy version",
            description="Publications of the policy's knowledge by the present controller; a fall "
            "to 0 is another controller.",
            unit="short",
            width=6,
            queries=[Query("owl_policy_version{app} % 1e10", "version")],
            stepped=True,
        ),
        Lines(
            title="Samples learned from",
            description="Successful tries behind the learned service times, by GPU model.",
            unit="short",
            width=6,
            queries=[
                Query("sum by (gpu_model) (owl_service_samples{pair})", "{{gpu_model}}"),
            ],
        ),
        Bars(
            title="Response time by algorithm, over all time",
            description="Mean wait plus service of all tasks that each algorithm ever placed.",
            unit="s",
            width=24,
            height=5,
            queries=[Query("owl_routing_algorithm_avg_duration{app}", "{{algorithm}}")],
        ),
    ),
)
