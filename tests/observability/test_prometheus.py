"""What Prometheus is given: configuration, rules and alerts."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from prometheus_client import CollectorRegistry, Gauge, start_http_server

from owl_celery.exporter.text import exposition
from owl_celery.metrics import METRICS
from tests.observability.test_metrics import collect, outcome
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


def test_a_real_prometheus_runs_it(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    Gauge("owl_policy_version", "Version.", registry=registry).set(7)
    server, thread = start_http_server(0, "127.0.0.1", registry)
    try:
        target = f"127.0.0.1:{server.server_port}"
        with PrometheusServer(tmp_path, {"owl": target}) as prometheus:
            (sample,) = prometheus.wait_for("owl_policy_version")
            assert sample.value == 7.0
            assert sample.labels["app"] == "workers"
            assert sample.labels["job"] == "owl"
            with pytest.raises(RuntimeError, match="parse error"):
                prometheus.query("sum(")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
