"""A real Prometheus for the tests, with the configuration of ``grafana/prometheus``."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import httpx
import yaml

from owl_celery.guard import GuardedProcess
from owl_celery.testing import wait_until
from tests.programs import find_program

CONFIG: Final = Path(__file__).parents[1] / "grafana" / "prometheus" / "prometheus.yml"
START_SECONDS: Final = 30.0


class Sample(NamedTuple):
    """One series of an answer, with its latest value."""

    labels: dict[str, str]
    value: float


class PrometheusServer:
    """A Prometheus on loopback that ends with this process: ``with PrometheusServer(...) as p:``.

    It runs our own configuration: rules, labels and jobs are those of ``prometheus.yml``; only
    addresses and intervals are the test's.

    Parameters
    ----------
    folder
        Empty folder for configuration and data, such as ``tmp_path``.
    targets
        Address (``host:port``) to scrape for each job of the configuration; other jobs go.
    interval_seconds
        Pause between two scrapes, and between two evaluations of the rules.

    Attributes
    ----------
    url
        Address of its HTTP API, as a Grafana datasource has it.

    """

    def __init__(
        self, folder: Path, targets: Mapping[str, str], interval_seconds: float = 0.25
    ) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        config_file = folder / "prometheus.yml"
        config_file.write_text(json.dumps(_config(targets, interval_seconds)))
        self._command = [
            find_program("prometheus"),
            f"--config.file={config_file}",
            f"--storage.tsdb.path={folder / 'prometheus'}",
            f"--web.listen-address={self.url.removeprefix('http://')}",
            "--log.level=warn",
        ]
        self._process: GuardedProcess | None = None

    def __enter__(self) -> Self:
        self._process = process = GuardedProcess(self._command)
        deadline = time.monotonic() + START_SECONDS
        while not self._is_ready():
            if not process.is_running or time.monotonic() > deadline:
                output = process.output()
                process.stop()
                raise RuntimeError(f"Prometheus did not start: {output}")
            time.sleep(0.02)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self._process.stop()

    def get(self, path: str, **parameters: str | float) -> Any:
        """Ask ``/api/v1/<path>``; the ``data`` of the answer.

        Raises
        ------
        RuntimeError
            When Prometheus refuses, such as a query it cannot read.

        """
        answer = httpx.get(
            f"{self.url}/api/v1/{path}", params=parameters, timeout=30.0, verify=False
        ).json()
        if answer["status"] != "success":
            raise RuntimeError(f"{path} {parameters}: {answer['error']}")
        return answer["data"]

    def query(self, expression: str) -> list[Sample]:
        """The series that an expression has now."""
        data = self.get("query", query=expression)
        if data["resultType"] == "scalar":
            return [Sample({}, float(data["result"][1]))]
        return [Sample(row["metric"], float(row["value"][1])) for row in data["result"]]

    def query_range(self, expression: str, seconds: float, step: float = 1.0) -> list[Sample]:
        """The series that an expression had within the latest ``seconds``, by their last value."""
        now = time.time()
        data = self.get("query_range", query=expression, start=now - seconds, end=now, step=step)
        return [Sample(row["metric"], float(row["values"][-1][1])) for row in data["result"]]

    def wait_for(self, expression: str, seconds: float = 20.0) -> list[Sample]:
        """Wait until an expression has series; those."""
        return wait_until(lambda: self.query(expression), expression, seconds)

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/-/ready", verify=False).is_success
        except httpx.TransportError:
            return False


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _config(targets: Mapping[str, str], interval_seconds: float) -> dict[str, Any]:
    """Our configuration with other addresses, faster."""
    config: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
    interval = f"{round(interval_seconds * 1000)}ms"
    config["global"].update(
        scrape_interval=interval, scrape_timeout=interval, evaluation_interval=interval
    )
    config["rule_files"] = [str(CONFIG.parent / pattern) for pattern in config["rule_files"]]
    config.pop("alerting", None)
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    config["scrape_configs"] = [jobs[name] for name in targets]
    for name, address in targets.items():
        jobs[name].pop("scrape_interval", None)
        jobs[name].pop("scrape_timeout", None)
        for static in jobs[name]["static_configs"]:
            static["targets"] = [address]
    return config
