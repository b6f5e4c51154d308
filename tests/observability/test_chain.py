"""From ``apply_async`` to Prometheus, dashboard and console: all that is true is there to see."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from grafana.source.answers import filled
from grafana.source.dashboard import dashboard
from owl_celery.metrics import METRICS, Kind
from owl_celery.testing import wait_until
from tests.browser import open_browser
from tests.chain import JOB, LONGER_JOB, Chain, running_chain
from tests.prometheus import PrometheusServer

pytestmark = [pytest.mark.integration, pytest.mark.slow]

WITHOUT_SERIES = {
    "owl_trouble",  # All is well.
    "owl_queue_unserved_tasks",
}
APP = "workers"  # As in prometheus.yml.
RATE_INTERVAL = "3m"  # Longer than the run.


def test_prometheus_sees_a_real_run(redis_url: str, tmp_path: Path) -> None:
    with (
        running_chain(redis_url, tmp_path) as chain,
        PrometheusServer(tmp_path, {"owl": chain.metrics_address}) as prometheus,
    ):
        chain.run(1)
        prometheus.wait_for("owl_tasks_total")
        chain.run(30)
        chain.run(12, LONGER_JOB)
        chain.fail()
        # More, placed by Celery, than are asked for before means are compared.
        chain.set_mode("shadow")
        chain.run(40)
        chain.set_mode("on")

        def has(expression: str, value: float) -> None:
            """Wait until the sum of an expression is this."""
            wait_until(
                lambda: sum(s.value for s in prometheus.query(expression)) == value,
                f"{expression} to be {value}",
                20.0,
            )

        has("sum(owl_tasks_total{state='success'})", 83)
        has("sum(owl_task_failures_total{reason='error'})", 1)
        has("owl_total_tasks_processed", 84)
        has("owl_task_types_count", 3)
        has("sum(owl_worker_task_count)", 84)
        has("sum(owl_task_worker_assignments_count)", 84)
        has("sum(owl_task_duration_seconds_count)", 83)
        has("sum(owl_task_queue_wait_seconds_count)", 84)
        has("sum(owl_routing_decisions_total{mode='on'})", 44)
        has("owl_routing_decision_duration_seconds_count", 84)
        has(f"owl_task_type_success_rate{{task_type='replay {JOB}'}}", 1)
        has("count(owl_queue_open == 1)", 2)
        has("owl_controller_active", 1)

        # The policy takes over when it has planned; before, a simpler one places the tasks.
        def policy_has_placed_enough() -> bool:
            chain.run(10)
            return bool(prometheus.query("owl_improvement_response_ratio"))

        wait_until(policy_has_placed_enough, "enough tasks that the policy placed", 60.0)
        check_panels(prometheus)
        missing = set()
        for name, spec in METRICS.items():
            suffix = "_count" if spec.kind is Kind.HISTOGRAM else ""
            if name not in WITHOUT_SERIES and not prometheus.query(name + suffix):
                missing.add(name)
        assert not missing
        assert prometheus.query("scrape_samples_post_metric_relabeling")[0].value > 100
        _api_tells_the_same(chain)
        _console_shows_the_same(chain)
        assert [a for a in prometheus.get("alerts")["alerts"] if a["state"] == "firing"] == []


def check_panels(prometheus: PrometheusServer) -> None:
    """Ask what each panel of the dashboard asks, and what marks a change; all has an answer."""
    body = dashboard()
    empty = {
        (panel["title"], filled(target["expr"], APP, RATE_INTERVAL))
        for panel in body["panels"]
        for target in panel.get("targets", ())
    }

    def all_answer() -> bool:
        empty.difference_update({asked for asked in empty if prometheus.query(asked[1])})
        return not empty

    try:
        wait_until(all_answer, "all panels", 20.0)
    except AssertionError as error:
        raise AssertionError(f"These panels are empty: {empty}") from error
    marks = {mark["name"]: mark["expr"] for mark in body["annotations"]["list"] if "expr" in mark}
    for name in ("Policy change", "Mode change"):
        assert prometheus.query_range(filled(marks[name], APP, RATE_INTERVAL), 180.0), name


def _api_tells_the_same(chain: Chain) -> None:
    """What the API says of this run."""
    with httpx.Client(base_url=f"http://{chain.api_address}/api/v1/learning") as api:
        body = {}

        def is_well() -> bool:
            body.update(api.get("/health").json())
            return bool(body["status"] == "ok")

        # On a busy machine the view is old for a moment.
        wait_until(is_well, "a fresh view", 20.0)
        assert (body["queues"], body["open_queues"]) == (2, 2)
        totals = api.get("/performance").json()["totals"]
        assert totals["tasks"] >= 84
        assert (totals["failures"], totals["task_types"]) == (1, 3)
        (result,) = chain.send(1)
        result.get(timeout=60.0)
        task = wait_until(
            lambda: api.get(f"/decisions/{result.id}").json().get("items"), "the decision", 20.0
        )[0]
        assert (task["task_type"], task["state"]) == (f"replay {JOB}", "success")
        assert task["reason"].startswith("Sent ")
        assert {queue["name"] for queue in api.get("/queues").json()["items"]} >= {task["queue"]}
        found = api.get(f"/requirements/replay {JOB}").json()
        assert {model["gpu_model"] for model in found["models"]} == {"k80", "v100"}
        assert len(api.get("/decisions", params={"limit": 50}).json()["items"]) == 50


def _console_shows_the_same(chain: Chain) -> None:
    """What somebody sees of this run in a browser, live."""
    with open_browser() as browser:
        browser.open(f"http://{chain.api_address}/")
        browser.wait_for_text("#status", "Working")
        browser.wait_for_text("#figures", "2 / 2")
        for part in ("k80", "v100"):
            browser.wait_for_text("#fleet", part)
        for part in (JOB, LONGER_JOB):
            browser.wait_for_text("#matrix-body", part)
        browser.wait_for_text("#curve", "q_learning")
        before = browser.text("#decisions-list")
        chain.run(1, LONGER_JOB)
        browser.wait_for(lambda: browser.text("#decisions-list") != before, "a live decision")
        browser.wait_for_text("#decisions-list", LONGER_JOB)
        assert browser.errors() == []
