from __future__ import annotations

import socket
from types import SimpleNamespace

import pytest
from celery import Celery
from click.testing import CliRunner, Result

from owl_celery import install
from owl_celery.cli.health import health
from owl_celery.controller.health import Health
from owl_celery.installation import parts_of
from owl_celery.wire import Heartbeat

HERE = socket.gethostname()


@pytest.fixture
def app(redis_url: str) -> Celery:
    app = Celery("proj", broker=redis_url)
    install(app)
    return app


def run(app: Celery, *arguments: str) -> Result:
    return CliRunner().invoke(health, arguments, obj=SimpleNamespace(app=app))


def beat(app: Celery, node: str) -> None:
    state = parts_of(app).state
    state.client.sadd(state.keys.nodes, node)
    state.client.set(state.keys.heartbeat(node), Heartbeat(node).encode())


def lead(app: Celery, **values: object) -> None:
    state = parts_of(app).state
    state.client.set(state.keys.health, Health(controller="gpu0@a", **values).encode())  # type: ignore[arg-type]


def test_nothing_alive_is_a_failure(app: Celery) -> None:
    result = run(app)

    assert result.exit_code == 1
    assert result.output == f"controller: none is active\nworkers of {HERE}: none is alive\n"


def test_an_active_controller_and_a_live_worker_are_well(app: Celery) -> None:
    lead(app)
    beat(app, f"gpu0@{HERE}")

    result = run(app)

    assert result.exit_code == 0
    assert result.output == f"controller: gpu0@a\nworkers of {HERE}: gpu0@{HERE}\n"


def test_a_controller_in_trouble_is_alive_and_says_what_it_is(app: Celery) -> None:
    lead(app, troubles={"store": "The database does not answer."})

    result = run(app, "--controller")

    assert result.exit_code == 0
    assert result.output == "controller: gpu0@a The database does not answer.\n"


def test_workers_of_other_hosts_do_not_count(app: Celery) -> None:
    beat(app, "gpu0@another-host")

    assert run(app, "--workers").exit_code == 1


def test_a_worker_whose_heartbeat_expired_does_not_count(app: Celery) -> None:
    state = parts_of(app).state
    state.client.sadd(state.keys.nodes, f"gpu0@{HERE}")

    assert run(app, "--workers").exit_code == 1


def test_a_redis_that_is_not_there_is_said_in_one_sentence() -> None:
    app = Celery("proj", broker="redis://127.0.0.1:1/0")
    install(app)

    result = run(app)

    assert result.exit_code == 1
    assert "Redis does not answer" in result.output
    assert "REDIS_URL" in result.output
    assert "Traceback" not in result.output


def test_without_an_application_it_says_how_to_name_one() -> None:
    result = CliRunner().invoke(health, [])

    assert result.exit_code == 2
    assert "celery -A proj owl health" in result.output
