"""``owl status``: the overview in a terminal, and as JSON that is the API's."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
from celery import Celery
from click.testing import CliRunner, Result
from rich.console import Console

from owl_celery import install
from owl_celery.api.app import PREFIX
from owl_celery.cli.status import status
from owl_celery.cli.status_tables import tables_of
from owl_celery.installation import uninstall
from owl_celery.types import QueueView
from tests.api import NAMESPACE, Site, learn
from tests.learning import stream

pytestmark = pytest.mark.integration

QUEUES = tuple(
    QueueView(
        f"gpu.a-long-name.{number}",
        ("NVIDIA A100-SXM4-80GB", "Tesla [V100]")[number % 2],
        waiting_count=number,
        waiting_seconds=70.0 * number,
        running=((4.0, 1.0),),
        is_open=number != 3,
    )
    for number in range(12)
)


@pytest.fixture
def site(redis_url: str, tmp_path: Path) -> Iterator[Site]:
    site = Site(redis_url, tmp_path)
    yield site
    site.close()


def broker_of(site: Site) -> str:
    assert site.settings.redis_url is not None
    return site.settings.redis_url.get_secret_value()


def invoke(site: Site, *arguments: str) -> Result:
    app = Celery("proj", broker=broker_of(site), set_as_current=False)
    url = site.settings.database_url
    assert url is not None
    install(
        app,
        namespace=NAMESPACE,
        database_url=url.get_secret_value(),
        view_stale_seconds=600.0,
        view_dead_seconds=600.0,
    )
    result = CliRunner().invoke(status, arguments, obj=SimpleNamespace(app=app))
    uninstall(app)
    return result


def test_without_an_application_it_says_how_to_name_one() -> None:
    result = CliRunner().invoke(status)
    assert result.exit_code == 2
    assert "celery -A proj owl status" in result.output


def test_the_json_is_that_of_the_api(site: Site) -> None:
    site.publish(QUEUES, learn(site.store, stream(200)))
    result = invoke(site, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    with site.served() as api:
        health = api.get(f"{PREFIX}/health").json()
        assert found["performance"] == api.get(f"{PREFIX}/performance").json()
        queues = api.get(f"{PREFIX}/queues").json()["items"]
    assert found["health"].keys() == health.keys()
    assert found["health"]["controller"] == health["controller"]
    for before, after in zip(found["queues"], queues, strict=True):
        assert before.keys() == after.keys()
        assert (before["name"], before["gpu"]) == (after["name"], after["gpu"])


def test_the_tables_fit_into_80_columns(site: Site) -> None:
    site.publish(QUEUES, learn(site.store, stream(200)))
    console = Console(width=80, file=StringIO())
    with site.served():
        console.print(tables_of(site.reader.read()))
    assert isinstance(console.file, StringIO)
    text = console.file.getvalue()
    assert max(len(line) for line in text.splitlines()) <= 80
    assert text.startswith("ok  mode on, policy expected_completion on host:1")
    assert "11 of 12 open, 66 waiting, 12 running" in text
    assert "Tesla [V100]" in text
    assert "closed" in text
    assert "type-6" in text
    assert text.index("name.11") < text.index("name.1 ")


def test_what_is_down_is_said_and_is_the_exit_status(site: Site) -> None:
    result = invoke(site)
    assert result.exit_code == 1
    assert result.output.startswith("down")
    assert "there is no load view" in " ".join(result.output.split())


def test_a_redis_that_is_away_is_said(tmp_path: Path) -> None:
    site = Site("redis://127.0.0.1:1/0", tmp_path)
    result = invoke(site, "--json")
    site.close()
    assert result.exit_code == 1
    assert json.loads(result.output)["health"]["reasons"][0]["part"] == "redis"


def test_it_watches_until_interrupted(site: Site, tmp_path: Path) -> None:
    site.publish(QUEUES)
    assert site.settings.database_url is not None
    (tmp_path / "proj.py").write_text(
        "from celery import Celery\n"
        "from owl_celery import install\n"
        f"app = install(Celery('proj', broker={broker_of(site)!r}), namespace={NAMESPACE!r},"
        f" database_url={site.settings.database_url.get_secret_value()!r})\n"
    )
    command = [sys.executable, "-m", "celery", "-A", "proj", "owl", "status", "--json", "--watch"]
    process = subprocess.Popen(
        [*command, "0.2"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        lines = [json.loads(process.stdout.readline()) for _ in range(3)]
        assert all(len(line["queues"]) == 12 for line in lines)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20.0)
        assert "Traceback" not in errors
        assert process.returncode in (0, 1)
    finally:
        process.kill()
        process.wait()
