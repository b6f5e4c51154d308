"""What Prometheus is given: configuration, rules and alerts."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Gauge, start_http_server

from tests.prometheus import CONFIG, PrometheusServer, find_program

pytestmark = pytest.mark.integration


def promtool(*arguments: str | Path) -> None:
    """Run it, and fail with what it says."""
    done = subprocess.run(
        [find_program("promtool"), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_configuration_is_sound() -> None:
    promtool("check", "config", CONFIG)


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
