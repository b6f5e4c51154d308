"""The contract: what is exposed is what the table of metrics says, for any names and sizes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from owl_celery.aggregates import AssignmentStats, ServiceStats, TaskTypeStats
from owl_celery.breaker import DEPENDENCIES
from owl_celery.counters import Counters
from owl_celery.exporter.collector import OwlCollector
from owl_celery.exporter.observed import Observed
from owl_celery.exporter.text import exposition
from owl_celery.metrics import (
    CONTRACT,
    MAX_PAIRS,
    MAX_QUEUES,
    MAX_TASK_TYPES,
    MAX_WORKERS,
    METRICS,
    Kind,
)
from owl_celery.overview import Overview
from owl_celery.overview.values import DatabaseNow, KnowledgeNow, Totals
from owl_celery.sanity import is_text
from owl_celery.types import Outcome, TryState
from tests.overviews import health, overview

SHOWN_WHEN_SERVED = "owl_exporter_age_seconds"
NASTY = [
    'quo"te',
    "back\\slash",
    "new\nline",
    "Ümläut 鳥",
    "a" * 10_000,
    "",
    "tab\t\x00\x7f",
    "\ud800",
]


def outcome(number: int = 0, **changed: Any) -> Outcome:
    """A success of 2 s after a wait of 1 s."""
    fields: dict[str, Any] = {
        "task_id": str(number),
        "decision_id": "d",
        "attempt": 0,
        "task_type": "proj.tasks.train_0",
        "size": 1.0,
        "queue": "gpu.host.0",
        "worker_id": "gpu0@host",
        "gpu_model": "K80",
        "state": TryState.SUCCESS,
        "service_seconds": 2.0,
        "finished_at": 1.8e9,
        "wait_seconds": 1.0,
        "algorithm": "expected_completion",
        **changed,
    }
    return Outcome(**fields)


def collect(shown: Overview, outcomes: Iterable[Outcome] = ()) -> list[Metric]:
    """What the exporter would serve."""
    observed = Observed()
    observed.add(outcomes)
    collector = OwlCollector(lambda: shown, observed, 3600.0, lambda overview: {"gpu.gone.0": 9})
    return list(collector.collect())


def parse(families: Iterable[Metric]) -> dict[str, Metric]:
    """Read what we write as Prometheus' own client reads it, by name as in the table."""
    text = exposition(families).decode()
    return {
        family.name + "_total" * (family.type == "counter"): family
        for family in text_string_to_metric_families(text)
    }


def values(families: dict[str, Metric], name: str) -> dict[tuple[str, ...], float]:
    """Values of a gauge or a counter by label values in the order of the table."""
    return {
        tuple(sample.labels[label] for label in METRICS[name].labels): sample.value
        for sample in families[name].samples
    }


def test_names_types_and_labels_are_those_of_the_table() -> None:
    families = parse(collect(overview(), [outcome(1), outcome(2, state=TryState.FAILURE)]))
    assert set(families) == set(METRICS) - {SHOWN_WHEN_SERVED}
    for name, family in families.items():
        spec = METRICS[name]
        assert family.type == spec.kind, name
        assert family.documentation == spec.help
        assert family.samples, f"{name} has no series"
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(spec.labels), name
            if spec.kind is Kind.GAUGE:
                assert sample.name == name


def test_what_does_not_work_is_counted_by_process_and_dependency() -> None:
    counters = Counters(opened={("worker", "nvml"): 2}, down_seconds={("worker", "nvml"): 7.5})
    own = {"opened|serve|database": 3, "down_seconds|serve|database": 1.5}
    families = parse(collect(overview(counters=counters, own_counters=own)))

    opened = values(families, "owl_dependency_failures_total")
    assert opened["worker", "nvml"] == 2
    assert opened["serve", "database"] == 3
    assert opened["producer", "redis"] == 0
    assert set(opened) == {(p, part) for p, parts in DEPENDENCIES.items() for part in parts}
    seconds = values(families, "owl_dependency_down_seconds_total")
    assert seconds["worker", "nvml"] == 7.5
    assert seconds["serve", "database"] == 1.5


def test_the_contract_is_kept_to_the_letter() -> None:
    assert {spec.name: (spec.kind, spec.labels) for spec in CONTRACT} == {
        "owl_task_types_count": ("gauge", ()),
        "owl_total_tasks_processed": ("gauge", ()),
        "owl_exploration_rate": ("gauge", ()),
        "owl_task_type_success_rate": ("gauge", ("task_type",)),
        "owl_task_type_avg_duration": ("gauge", ("task_type",)),
        "owl_worker_task_count": ("gauge", ("worker_id",)),
        "owl_worker_success_rate": ("gauge", ("worker_id",)),
        "owl_task_worker_assignments_count": ("gauge", ("task_type", "worker_id")),
        "owl_routing_algorithm_avg_duration": ("gauge", ("algorithm",)),
    }
    text = exposition(collect(overview())).decode()
    for spec in CONTRACT:
        assert f"# TYPE {spec.name} gauge\n" in text
    assert "\nowl_total_tasks_processed 65.0\n" in text


def test_it_reads_as_what_prometheus_client_would_write() -> None:
    shown = overview(task_types=tuple(TaskTypeStats(1, task_type=name) for name in NASTY))
    outcomes = [outcome(n, task_type=name) for n, name in enumerate(NASTY)]

    class Same:
        """A registry takes collectors."""

        def collect(self) -> list[Metric]:
            return collect(shown, outcomes)

    registry = CollectorRegistry()
    registry.register(Same())
    theirs = text_string_to_metric_families(generate_latest(registry).decode())
    ours = parse(collect(shown, outcomes))
    assert {f.name: f for f in ours.values()} == {f.name: f for f in theirs}


def test_values_are_those_of_the_overview() -> None:
    families = parse(collect(overview()))

    def value(name: str, *labels: str) -> float:
        return values(families, name)[labels]

    assert value("owl_task_types_count") == 2
    assert value("owl_total_tasks_processed") == 65
    assert value("owl_exploration_rate") == 0.125
    assert value("owl_task_type_success_rate", "proj.tasks.train_0") == 30 / 32
    assert value("owl_task_type_avg_duration", "proj.tasks.train_0") == 2.0
    assert value("owl_worker_task_count", "gpu1@host") == 33
    assert value("owl_worker_success_rate", "gpu1@host") == 31 / 33
    assert value("owl_task_worker_assignments_count", "proj.tasks.train_0", "gpu0@host") == 3
    assert value("owl_routing_algorithm_avg_duration", "celery") == 3.5
    assert value("owl_prediction_error_ratio", "expected_completion") == pytest.approx(0.1)
    assert value("owl_queue_waiting_tasks", "gpu.host.1", "P100") == 1
    assert value("owl_queue_backlog_seconds", "gpu.host.1", "P100") == 3.0
    assert value("owl_queue_running_tasks", "gpu.host.1", "P100") == 1
    assert value("owl_queue_open", "gpu.host.0", "K80") == 0
    assert value("owl_queue_speed_factor", "gpu.host.1", "P100") == 2.0
    assert value("owl_queue_unserved_tasks", "gpu.gone.0") == 9
    assert value("owl_service_seconds", "proj.tasks.train_0", "K80") == 2.5
    assert value("owl_service_samples", "proj.tasks.train_0", "K80") == 9
    assert value("owl_assignments_by_gpu_model", "proj.tasks.train_0", "K80") == 10
    assert value("owl_gpu_memory_used_bytes", "gpu0@host", "K80") == 6 * 2**30
    assert value("owl_improvement_service_ratio", "low") == 0.3
    assert value("owl_mode", "shadow") == 1
    assert value("owl_mode", "on") == 0
    assert values(families, "owl_trouble") == {("store",): 1}
    assert value("owl_policy_version") == 70_000_000_001
    assert value("owl_visibility_timeout_seconds") == 3600.0
    assert value("owl_routing_decisions_total", "expected_completion", "shadow") == 10
    assert value("owl_routing_fallbacks_total", "no_view") == 3
    assert value("owl_routing_fallbacks_total", "dead_view") == 0
    assert value("owl_tasks_stolen_total") == 5
    assert value("owl_tasks_rescued_total") == 6
    assert value("owl_store_errors_total") == 7
    assert value("owl_outcomes_dropped_total") == 4
    assert value("owl_build_info", "0.1.0", "expected_completion") == 1


def test_histograms_count_what_falls_below_each_bound() -> None:
    outcomes = [
        outcome(1, service_seconds=0.05, wait_seconds=0.0),
        outcome(2, service_seconds=3.0, wait_seconds=4.0),
        outcome(3, service_seconds=1e6, wait_seconds=None),
        outcome(4, state=TryState.FAILURE, service_seconds=0.01, wait_seconds=0.0),
    ]
    families = parse(collect(overview(), outcomes))

    def samples(name: str) -> dict[str, float]:
        return {
            s.name.removeprefix(name) + s.labels.get("le", ""): s.value
            for s in families[name].samples
        }

    duration = samples("owl_task_duration_seconds")
    assert duration["_bucket0.05"] == 1
    assert duration["_bucket5.0"] == 2
    assert duration["_bucket+Inf"] == duration["_count"] == 3
    assert duration["_sum"] == 1e6 + 3.05
    assert samples("owl_task_queue_wait_seconds")["_count"] == 3
    assert samples("owl_task_response_seconds")["_bucket10.0"] == 2
    decisions = samples("owl_routing_decision_duration_seconds")
    assert decisions["_bucket5e-05"] == 1
    assert decisions["_count"] == 78
    assert decisions["_sum"] == 0.0125


def test_failures_are_told_apart_and_each_try_counts_once() -> None:
    outcomes = [
        outcome(1, state=TryState.FAILURE, error="ValueError"),
        outcome(1, state=TryState.FAILURE, error="ValueError"),
        outcome(2, state=TryState.RETRY, error="OutOfMemoryError", out_of_memory=True),
        outcome(3, state=TryState.LOST),
        outcome(4, state=TryState.RETRY),
        outcome(5, state=TryState.REVOKED),
    ]
    families = parse(collect(overview(), outcomes))
    pair = ("proj.tasks.train_0", "K80")
    failures = values(families, "owl_task_failures_total")
    assert failures == {(*pair, "error"): 1, (*pair, "out_of_memory"): 1, (*pair, "lost"): 1}
    tries = values(families, "owl_tasks_total")
    assert tries[*pair, "retry"] == 2
    assert sum(tries.values()) == 5


def test_an_absurd_outcome_spoils_no_sum() -> None:
    absurd = [
        outcome(1, service_seconds=math.nan),
        outcome(2, service_seconds=-5.0),
        outcome(3, wait_seconds=math.inf),
    ]
    families = parse(collect(overview(), [*absurd, outcome(4)]))
    samples = families["owl_task_duration_seconds"].samples
    assert {s.value for s in samples if s.name.endswith("_sum")} == {2.0}
    assert {s.value for s in samples if s.name.endswith("_count")} == {1.0}


def test_the_first_failure_is_seen_as_an_increase() -> None:
    families = parse(collect(overview(), [outcome()]))
    failures = values(families, "owl_task_failures_total")
    assert failures["proj.tasks.train_0", "K80", "error"] == 0


@pytest.mark.parametrize("name", NASTY)
def test_a_name_cannot_break_the_exposition(name: str) -> None:
    shown = overview(
        task_types=(TaskTypeStats(1, task_type=name), TaskTypeStats(1, task_type="after")),
        services=(ServiceStats(name, name, 1, 1.0),),
        p99_seconds={name: 1.0},
    )
    families = parse(collect(shown, [outcome(task_type=name, gpu_model=name)]))
    types = {labels[0] for labels in values(families, "owl_task_type_success_rate")}
    assert len(types) == 2
    assert "after" in types
    (shown_as,) = types - {"after"}
    assert 0 < len(shown_as) <= 255
    assert values(families, "owl_task_type_p99_seconds") == {(shown_as,): 1.0}
    # Of a name that no database can hold nothing is learned, and nothing counted.
    counted = {(shown_as, shown_as, "success"): 1.0} if is_text(name) else {}
    assert values(families, "owl_tasks_total") == counted


def test_names_that_look_the_same_make_one_series() -> None:
    long = "a" * 10_000
    shown = overview(
        task_types=(
            TaskTypeStats(1, task_type=long),
            TaskTypeStats(2, 1, task_type=long + "b"),
        )
    )
    families = parse(collect(shown))
    assert list(values(families, "owl_task_type_success_rate").values()) == [0.75]


def test_labels_are_bounded_and_the_rest_is_other() -> None:
    shown = overview(queue_count=1_500, type_count=500)
    outcomes = [
        outcome(n, task_type=f"type{n}", gpu_model=f"model{n % 90}", algorithm=f"mine{n}")
        for n in range(5_000)
    ]
    families = parse(collect(shown, outcomes))
    rates = values(families, "owl_task_type_success_rate")
    assert len(rates) == MAX_TASK_TYPES + 1
    assert ("other",) in rates
    assert ("proj.tasks.train_499",) in rates  # It has most tries.
    assert len(values(families, "owl_worker_task_count")) == MAX_WORKERS + 1
    pairs = values(families, "owl_task_worker_assignments_count")
    assert len(pairs) == MAX_PAIRS + 1
    assert sum(pairs.values()) == sum(row.tries for row in shown.assignments)
    assert {pair[0] for pair in pairs} <= {labels[0] for labels in rates}
    waiting = values(families, "owl_queue_waiting_tasks")
    assert len(waiting) == MAX_QUEUES + 1
    assert sum(waiting.values()) == sum(queue.waiting_count for queue in shown.queues)
    tries = values(families, "owl_tasks_total")
    assert len(tries) <= MAX_PAIRS + 1
    assert sum(tries.values()) == 5_000
    assert len(families["owl_task_response_seconds"].samples) < 51 * 25


def test_pooled_rows_keep_their_sums_and_means() -> None:
    rows = tuple(TaskTypeStats(n + 1, 0, 0, 2.0 * (n + 1), task_type=f"t{n}") for n in range(300))
    shown = overview(
        task_types=rows,
        assignments=(AssignmentStats(4, task_type="t0", worker_id="gone@host"),),
        services=(ServiceStats("t0", "K80", 1, 4.0), ServiceStats("t1", "K80", 3, 8.0)),
    )
    families = parse(collect(shown))
    assert values(families, "owl_task_type_avg_duration")[("other",)] == 2.0
    assert values(families, "owl_task_worker_assignments_count") == {("other", "other"): 4}
    assert values(families, "owl_service_seconds") == {("other", "K80"): 7.0}


def test_a_fleet_that_has_done_nothing_has_only_what_is_known() -> None:
    nothing = Overview(
        read_at=1.8e9,
        redis_time=0.0,
        health=health(
            0, controller=None, view_age_seconds=None, stream_lag_seconds=None, reasons=()
        ),
        totals=Totals(),
        knowledge=KnowledgeNow(),
    )
    families = parse(collect(nothing))
    assert set(families) == set(METRICS) - {SHOWN_WHEN_SERVED}
    assert values(families, "owl_total_tasks_processed") == {(): 0}
    assert values(families, "owl_controller_active") == {(): 0}
    assert not families["owl_view_age_seconds"].samples
    assert not families["owl_improvement_service_ratio"].samples


def test_what_was_never_read_is_not_shown_as_nothing() -> None:
    never = [
        Overview(1.8e9, 1.8e9, health(database=DatabaseNow(status, "sqlite")))
        for status in ("unread", "down")
    ]
    later = overview(health=health(database=DatabaseNow("down", "sqlite")))
    shown = [*never, overview(), later]
    collector = OwlCollector(lambda: shown.pop(0), Observed())
    seen = [values(parse(collector.collect()), "owl_total_tasks_processed") for _ in range(4)]
    assert seen == [{}, {}, {(): 65}, {(): 65}]


def test_counters_stay_while_nobody_tells_them() -> None:
    shown = [
        overview(),
        overview(
            is_redis_down=True,
            counters=Counters(),
            controller_counters={},
            health=health(controller=None),
        ),
        overview(counters=Counters(), controller_counters={}),
    ]
    collector = OwlCollector(lambda: shown.pop(0), Observed())
    names = ("owl_tasks_stolen_total", "owl_outcomes_dropped_total")
    seen = []
    for _ in range(3):
        families = parse(collector.collect())
        seen.append([values(families, name)[()] for name in names])
    assert seen == [[5, 4], [5, 4], [0, 0]]


def test_rows_that_have_changed_are_shown() -> None:
    first = overview()
    changed = replace(first, task_types=(TaskTypeStats(3, 1, task_type="new"),))
    shown = [first, first, changed]
    collector = OwlCollector(lambda: shown.pop(0), Observed())
    seen = [values(parse(collector.collect()), "owl_task_type_success_rate") for _ in range(3)]
    assert len(seen[0]) == 2
    assert seen[1] == seen[0]
    assert seen[2] == {("new",): 0.75}


def test_what_is_no_number_is_left_out() -> None:
    first, *rest = overview().queues
    shown = overview(queues=(replace(first, backlog_seconds=math.nan), *rest))
    families = parse(collect(shown))
    assert len(values(families, "owl_queue_backlog_seconds")) == 2
