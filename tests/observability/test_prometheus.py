"""What Prometheus is given: configuration, rules and alerts."""

from __future__ import annotations

import re
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from owl_celery.aggregates import TaskTypeStats
from owl_celery.exporter.server import MetricsServer, Page
from owl_celery.exporter.text import exposition
from owl_celery.metrics import METRICS
from owl_celery.sanity import sane
from tests.observability.test_metrics import NASTY, collect, outcome
from tests.overviews import overview
from tests.programs import find_program
from tests.prometheus import CONFIG, PrometheusServer

pytestmark = pytest.mark.integration

RULES: Final = CONFIG.parent / "rules"
TESTS: Final = Path(__file__).parent / "rules" / "alerts_test.yml"


def promtool(*arguments: str | Path) -> None:
    """Run it, and fail with what it says."""
    done = subprocess.run(
        [find_program("promtool"), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def rules() -> list[dict[str, Any]]:
    """All rules, recording and alerting."""
    return [
        rule
        for path in sorted(RULES.glob("*.yml"))
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
    ]


def alerts() -> list[dict[str, Any]]:
    """The alerting ones."""
    return [rule for rule in rules() if "alert" in rule]


def test_the_configuration_is_sound() -> None:
    promtool("check", "config", CONFIG)


def test_each_alert_fires_when_it_should() -> None:
    promtool("test", "rules", TESTS)


def test_every_alert_is_complete_and_tested() -> None:
    tests = TESTS.read_text()
    for alert in alerts():
        name = alert["alert"]
        assert alert["labels"]["severity"] in ("critical", "warning", "info"), name
        annotations = alert["annotations"]
        assert annotations["summary"], name
        assert annotations["description"], name
        assert annotations["runbook"] == f"docs/metrics.md#{name.lower()}", name
        assert name in tests, f"{name} is not tested"


def test_rules_ask_for_metrics_that_there_are() -> None:
    known = set(METRICS) | {f"{n}_{part}" for n in METRICS for part in ("bucket", "sum", "count")}
    for rule in rules():
        unknown = set(re.findall(r"\bowl_\w+", rule["expr"])) - known
        assert not unknown, f"{rule} asks for {unknown}"


def test_the_metrics_are_as_prometheus_likes_them() -> None:
    text = exposition(collect(overview(), [outcome()]))
    done = subprocess.run(
        [find_program("promtool"), "check", "metrics"], input=text, capture_output=True, check=False
    )
    complaints = (done.stdout + done.stderr).decode().splitlines()
    # Others rely on these names.
    kept = ("owl_task_types_count", "owl_worker_task_count", "owl_task_worker_assignments_count")
    assert [line for line in complaints if not line.startswith(kept)] == []
    assert len(complaints) <= len(kept)


def test_a_real_prometheus_reads_any_names(tmp_path: Path) -> None:
    shown = overview(task_types=tuple(TaskTypeStats(1, task_type=name) for name in NASTY))
    outcomes = [outcome(n, task_type=name, gpu_model=name) for n, name in enumerate(NASTY)]
    page = Page()
    page.write(exposition(collect(shown, outcomes)), time.monotonic())
    server = MetricsServer("127.0.0.1", 0, page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        target = f"127.0.0.1:{server.server_port}"
        with PrometheusServer(tmp_path, {"owl": target}) as prometheus:
            rates = prometheus.wait_for("owl_task_type_success_rate")
            assert len(rates) == len(NASTY)
            assert 'quo"te' in {sample.labels["task_type"] for sample in rates}
            assert {sample.labels["app"] for sample in rates} == {"workers"}
            (tries,) = prometheus.query("sum(owl_tasks_total)")
            # What no database can keep was refused when it was learned, and is here, too.
            assert tries.value == sum(sane(each) is not None for each in outcomes)
            with pytest.raises(RuntimeError, match="parse error"):
                prometheus.query("sum(")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
