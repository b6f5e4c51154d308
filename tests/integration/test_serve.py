"""``celery -A proj owl serve`` and the controller inside a worker."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from celery import Celery
from click.testing import CliRunner, Result
from redis import Redis

from owl_celery import install
from owl_celery.cli.mode import mode
from owl_celery.cli.serve import serve
from owl_celery.controller.embed import make_controller_step
from owl_celery.controller.health import Health
from owl_celery.installation import uninstall
from owl_celery.keys import Keys
from owl_celery.redis_state import RedisState
from owl_celery.settings import Settings
from owl_celery.testing import wait_until
from tests.message_broker import MessageBroker, on_both
from tests.prometheus import free_port

pytestmark = pytest.mark.integration


def invoke(app: Celery | None) -> Result:
    """Run the command in this process; it must fail before it begins to serve."""
    return CliRunner().invoke(serve, obj=None if app is None else SimpleNamespace(app=app))


def test_without_an_application_it_says_how_to_name_one() -> None:
    result = invoke(None)
    assert result.exit_code == 2
    assert "celery -A proj owl serve" in result.output


@pytest.mark.parametrize(
    ("broker", "settings", "sentence"),
    [
        ("redis://127.0.0.1:1/0", {}, "set REDIS_URL"),
        (None, {"continuous_learning_storage_path": "/proc/owl"}, "STORAGE_PATH"),
        (None, {"database_url": "postgresql://u:secret@127.0.0.1:1/x"}, "DATABASE_URL"),
        (None, {"database_url": "nonsense"}, "DATABASE_URL"),
        (None, {"api_host": "0.0.0.0"}, "OWL_API_TOKEN"),
        (None, {"api_host": "192.0.2.1", "api_token": "s" * 16}, "OWL_API_HOST"),
    ],
)
def test_what_is_missing_is_said_in_a_sentence(
    redis_url: str, tmp_path: Path, broker: str | None, settings: dict[str, Any], sentence: str
) -> None:
    settings = {"continuous_learning_storage_path": tmp_path, **settings}
    app = Celery("proj", broker=broker or redis_url, set_as_current=False)
    install(app, **settings)
    result = invoke(app)
    uninstall(app)
    assert result.exit_code == 1
    assert sentence in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert "secret" not in result.output
    assert isinstance(result.exception, SystemExit)


def test_an_application_that_is_not_installed_is_told_so(redis_url: str) -> None:
    result = invoke(Celery("proj", broker=redis_url, set_as_current=False))
    assert result.exit_code == 1
    assert "install(app)" in result.output


@on_both
def test_it_leads_and_is_seen_until_told_to_stop(
    message_broker: MessageBroker, tmp_path: Path
) -> None:
    port, api_port = free_port(), free_port()
    (tmp_path / "proj.py").write_text(
        "from celery import Celery\n"
        "from owl_celery import install\n"
        f"app = install(Celery('proj', broker={message_broker.url!r}),"
        f" continuous_learning_storage_path={str(tmp_path)!r})\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "proj", "owl", "serve"],
        cwd=tmp_path,
        env={
            **os.environ,
            **message_broker.environment(),
            "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
            "METRICS_PORT": str(port),
            "OWL_API_PORT": str(api_port),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    keys = Keys("proj")
    try:
        with Redis.from_url(message_broker.redis_url) as client:
            wait_until(lambda: client.exists(keys.knowledge), "the first knowledge", 90.0)
            wait_until(lambda: "owl_controller_active 1.0" in metrics(port), "metrics", 30.0)
            address = f"http://127.0.0.1:{api_port}"
            wait_until(lambda: httpx.get(f"{address}/readyz").status_code == 200, "the view", 30.0)
            # A console that is open does not hold up the stop.
            with httpx.stream("GET", f"{address}/api/v1/learning/events") as live:
                lines = live.iter_lines()
                assert next(lines) == "event: fleet"
                process.send_signal(signal.SIGTERM)
                assert [*lines]
            output, _ = process.communicate(timeout=20.0)
            assert process.returncode == 0
            assert not client.exists(keys.lease)
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in output
    assert "for proj: running." in output
    assert f"Console and API: http://127.0.0.1:{api_port}" in output


PRODUCER = """
import sys, time
from proj import app
from owl_celery.installation import parts_of
parts = parts_of(app)
parts.sync.snapshot()
while True:
    if sys.argv[1] == "busy":
        app.send_task("work")
    print(parts.sync.mode, parts.router.fallbacks["mode_off"] > 0, flush=True)
    time.sleep(0.05)
"""


def test_the_kill_switch_takes_effect_everywhere_within_five_seconds(
    redis_url: str, tmp_path: Path
) -> None:
    port, api_port = free_port(), free_port()
    (tmp_path / "proj.py").write_text(
        "from celery import Celery\n"
        "from owl_celery import install\n"
        f"app = install(Celery('proj', broker={redis_url!r}),"
        f" continuous_learning_storage_path={str(tmp_path)!r})\n"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
        "METRICS_PORT": str(port),
        "OWL_API_PORT": str(api_port),
    }
    commands = {
        "serve": ["-m", "celery", "-A", "proj", "owl", "serve"],
        "busy": ["-c", PRODUCER, "busy"],
        "idle": ["-c", PRODUCER, "idle"],
    }
    logs = {name: tmp_path / f"{name}.log" for name in commands}
    processes = []
    for name, command in commands.items():
        with logs[name].open("wb") as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, *command], cwd=tmp_path, env=environment, stdout=log
                )
            )

    def modes() -> set[str]:
        """What every process has said last, and what API and metrics show."""
        health = httpx.get(f"http://127.0.0.1:{api_port}/api/v1/learning/health").json()
        shown = re.findall(r'owl_mode{mode="(\w+)"} 1', metrics(port))
        last = [logs[name].read_text().splitlines()[-1].split()[0] for name in ("busy", "idle")]
        return {health["mode"], *shown, *last}

    app = Celery("proj", broker=redis_url, set_as_current=False)
    install(app)
    try:
        wait_until(lambda: "owl_controller_active 1.0" in quiet(metrics, port), "serve", 90.0)
        wait_until(lambda: all(logs[name].stat().st_size for name in logs), "producers", 60.0)
        for position in ("off", "shadow", "on"):
            result = CliRunner().invoke(mode, [position], obj=SimpleNamespace(app=app))
            assert result.exit_code == 0
            wait_until(lambda wanted=position: modes() == {wanted}, position, 5.0)  # type: ignore[misc]
        assert "True" in logs["busy"].read_text()
    finally:
        uninstall(app)
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(timeout=20.0)


def quiet(ask: Callable[[int], str], port: int) -> str:
    """What is answered; nothing before anybody listens."""
    try:
        return ask(port)
    except httpx.TransportError:
        return ""


def metrics(port: int) -> str:
    """What Prometheus would read."""
    return httpx.get(f"http://127.0.0.1:{port}/metrics").text


class Host:
    """What a bootstep sees of its worker."""

    def __init__(self, app: Celery) -> None:
        self.app = app
        self.hostname = "gpu0@a"
        self.steps: list[Any] = []


def test_a_worker_hosts_a_controller_and_releases_the_lease(redis_url: str, tmp_path: Path) -> None:
    app = Celery("proj", broker=redis_url, set_as_current=False)
    state = RedisState(redis_url, Keys("proj"))
    settings = Settings.load(continuous_learning_storage_path=tmp_path)
    host = Host(app)
    step = make_controller_step(state, settings)(host)
    step.start(host)

    def health() -> Health | None:
        text: Any = state.client.get(state.keys.health)
        return Health.decode(text) if text else None

    found = wait_until(health, "the controller's health")
    assert found is not None
    assert found.controller == "gpu0@a"
    step.stop(host)
    assert not state.client.exists(state.keys.lease)
    assert not any(t.name.startswith("owl-") for t in threading.enumerate())
    step.stop(host)


def test_a_worker_with_an_unknown_policy_works_without_a_controller(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = Celery("proj", broker=redis_url, set_as_current=False)
    state = RedisState(redis_url, Keys("proj"))
    host = Host(app)
    step = make_controller_step(state, Settings.load().model_copy(update={"policy": "best"}))(host)
    step.start(host)
    step.stop(host)
    assert "POLICY" in caplog.text
