"""Flower, unchanged, beside workers of virtual GPUs: its API and its pages."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from celery import Celery
from redis import Redis

from owl_celery import install
from owl_celery.demo.stack import NAMESPACE, running_stack
from owl_celery.installation import parts_of, uninstall
from owl_celery.testing import wait_until
from tests.prometheus import free_port

pytestmark = [pytest.mark.integration, pytest.mark.slow]

HOST = socket.gethostname()
USER = ("owl", "an unguessable password")
TASKS = 12


@contextmanager
def running_flower(environment: Mapping[str, str]) -> Iterator[str]:
    """Start Flower on a free port as docs/flower.md says; its address."""
    port = free_port()
    options = {
        "FLOWER_ADDRESS": "127.0.0.1",
        "FLOWER_PORT": str(port),
        "FLOWER_BASIC_AUTH": ":".join(USER),
        "FLOWER_TASKS_COLUMNS": "name,uuid,state,routing_key,received,runtime,worker",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "workers.app", "flower"],
        env={**os.environ, **environment, **options},
        cwd=Path(__file__).parents[2],
    )
    url = f"http://127.0.0.1:{port}"

    def is_up() -> bool:
        assert process.poll() is None, "Flower has ended."
        try:
            return httpx.get(f"{url}/healthcheck").text == "OK"
        except httpx.TransportError:
            return False

    try:
        wait_until(is_up, "Flower", 60.0)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30.0)


@pytest.fixture(scope="module")
def flower(tmp_path_factory: pytest.TempPathFactory, redis_server: Any) -> Iterator[httpx.Client]:
    """A client of a Flower that has seen routed tasks succeed on two virtual GPUs."""
    folder = tmp_path_factory.mktemp("flower")
    fleet = {"k80": 1, "v100": 1}
    url = f"{redis_server.url}"
    with Redis.from_url(url) as redis:
        redis.flushall()
    app = Celery("workers", broker=url, backend=url, set_as_current=False)
    app.conf.task_send_sent_event = True
    install(app, namespace=NAMESPACE)
    # Where a task was sent is then where it runs.
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("OWL_STEAL", "false")
    with (
        running_stack(url, fleet, folder, lambda _: None) as stack,
        running_flower(stack.environment) as address,
        httpx.Client(base_url=address, auth=USER, timeout=30.0) as client,
    ):
        parts_of(app).sync.flush()

        def sees_the_workers() -> bool:
            # It asks the workers anew each time, and may give up before both have answered.
            return len(client.get("/api/workers", params={"refresh": "1"}).json()) == 2

        wait_until(sees_the_workers, "Flower to see the workers", 60.0)
        # Flower asks for events itself, some time after it has started.
        assert len(app.control.enable_events(reply=True, timeout=10.0, limit=2)) == 2
        for _ in range(TASKS):
            app.send_task("workers.tasks.replay", ("ResNet-18 (batch size 16)", 0.01))
        app.send_task("workers.tasks.matrix_product", (20,), queue=f"gpu.{HOST}.0")
        wait_until(
            lambda: [task["state"] for task in all_tasks(client)] == ["SUCCESS"] * (TASKS + 1),
            "Flower to see all tasks succeed",
            60.0,
        )
        yield client
    monkeypatch.undo()
    uninstall(app)
    app.close()


def all_tasks(client: httpx.Client) -> list[dict[str, Any]]:
    tasks: dict[str, dict[str, Any]] = client.get("/api/tasks").json()
    return list(tasks.values())


def test_workers_are_named_by_their_gpu_and_serve_its_queue(flower: httpx.Client) -> None:
    workers = flower.get("/api/workers").json()

    assert set(workers) == {f"gpu0@{HOST}", f"gpu1@{HOST}"}
    for number in range(2):
        queues = [queue["name"] for queue in workers[f"gpu{number}@{HOST}"]["active_queues"]]
        assert queues == [f"gpu.{HOST}.{number}", "celery"]


def test_each_task_shows_the_queue_that_was_chosen_and_ran_there(flower: httpx.Client) -> None:
    for task in all_tasks(flower):
        assert task["routing_key"] in (f"gpu.{HOST}.0", f"gpu.{HOST}.1")
        number = task["routing_key"].rpartition(".")[2]
        assert task["worker"] == f"gpu{number}@{HOST}"


def test_an_explicit_queue_is_shown_too(flower: httpx.Client) -> None:
    (task,) = [t for t in all_tasks(flower) if t["name"] == "workers.tasks.matrix_product"]

    assert task["routing_key"] == f"gpu.{HOST}.0"


def test_its_pages_show_workers_tasks_and_queues(flower: httpx.Client) -> None:
    task = all_tasks(flower)[0]

    assert f"gpu1@{HOST}" in flower.get("/workers").text
    assert "routing_key" in flower.get("/tasks").text
    assert task["routing_key"] in flower.get(f"/task/{task['uuid']}").text
    assert f"gpu.{HOST}.0" in flower.get(f"/worker/gpu0@{HOST}").text
    assert f"gpu.{HOST}.1" in flower.get("/broker").text
    lengths = flower.get("/api/queues/length").json()["active_queues"]
    assert {queue["name"] for queue in lengths} == {
        f"gpu.{HOST}.0",
        f"gpu.{HOST}.1",
        "celery",
    }


def test_it_asks_for_the_password(flower: httpx.Client) -> None:
    for page in ("/", "/tasks", "/api/workers", "/api/tasks"):
        assert flower.get(page, auth=None).status_code == 401
