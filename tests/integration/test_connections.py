"""Every way in which Redis can be reached, from a task that is sent to one that is learned from."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest
from celery import Celery, signals
from celery.contrib.testing.worker import start_worker
from celery.worker import state as worker_state
from click.testing import CliRunner
from redis.exceptions import RedisError

from owl_celery import install
from owl_celery.cli.health import health
from owl_celery.cli.status import status
from owl_celery.gpus import current_gpu, fake_gpu
from owl_celery.installation import parts_of, uninstall
from owl_celery.keys import Keys
from owl_celery.lane import gpu_queue, lane_of_gpu
from owl_celery.records import Knowledge, decode_record
from owl_celery.redis_state import RedisState
from owl_celery.testing import wait_until
from tests.redis_servers import HOST, RedisServer, make_certificate, plain, sentinel, tls

pytestmark = pytest.mark.integration

PASSWORD: Final = "p@ss/w:rd"
QUOTED: Final = "p%40ss%2Fw%3Ard"
WAIT_SECONDS: Final = 30.0
LANE: Final = lane_of_gpu(fake_gpu(0, "k80", socket.gethostname()), is_simulated=True)


@pytest.fixture(autouse=True)
def lane(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Workers of this process serve a virtual GPU."""
    for name, value in LANE.items():
        monkeypatch.setenv(name, value)
    current_gpu().refresh()
    # A receiver of this signal keeps Celery from changing how this process logs.
    signals.setup_logging.connect(leave_logging)
    yield
    signals.setup_logging.disconnect(leave_logging)
    monkeypatch.undo()
    current_gpu().refresh()


def names_of_threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


def leave_logging(**_: Any) -> None:
    """Configure nothing."""


class Site:
    """A routed application with a worker, which hosts the controller, and a producer."""

    def __init__(
        self, broker: str, folder: Path, conf: dict[str, Any], name: str = "links", **settings: Any
    ) -> None:
        self.ran: list[int] = []
        self.app = Celery(name, broker=broker, set_as_current=False)
        self.app.conf.update(broker_connection_retry_on_startup=True, **conf)

        @self.app.task(name="work", shared=False)
        def work(number: int) -> None:
            self.ran.append(number)

        install(self.app, continuous_learning_storage_path=folder / "learned", **settings)
        self.parts = parts_of(self.app)
        self.sent = 0

    @contextmanager
    def worker(self) -> Iterator[None]:
        """Run the worker."""
        with start_worker(
            self.app,
            pool="solo",
            queues=[gpu_queue(0), "celery"],
            perform_ping_check=False,
            shutdown_timeout=30.0,
        ):
            try:
                yield
            finally:
                # A warm shutdown, which ends the controller; `start_worker` asks for a cold one.
                worker_state.should_stop = 0
                wait_until(
                    lambda: "owl-controller" not in names_of_threads(), "the controller to end"
                )
        worker_state.should_stop = None

    def work(self, count: int) -> None:
        """Send tasks by the router, and wait until they have run and are learned from."""
        wait_until(self.sees_a_queue, "a view with an open queue", WAIT_SECONDS)
        before = self.parts.router.decisions.total()
        for _ in range(count):
            self.app.send_task("work", (self.sent,))
            self.sent += 1
        assert self.parts.router.decisions.total() == before + count
        wait_until(lambda: len(set(self.ran)) == self.sent, "tasks to run", WAIT_SECONDS)
        wait_until(lambda: self.completed() >= self.sent, "learning", WAIT_SECONDS)

    def sees_a_queue(self) -> bool:
        snapshot = self.parts.sync.snapshot()
        return (
            snapshot is not None
            and bool(snapshot.fleet.is_open.any())
            and time.monotonic() - snapshot.changed_at < 1.0
        )

    def completed(self) -> int:
        """Completions that the published knowledge rests on."""
        text = self.parts.state.client.get(self.parts.state.keys.knowledge)
        knowledge = decode_record(Knowledge, str(text)) if text else None
        return int(knowledge.snapshot.get("completed", 0)) if knowledge else 0


Open = Callable[..., Site]


@pytest.fixture
def open_site(tmp_path: Path) -> Iterator[Open]:
    """Make sites that are taken apart after the test."""
    with ExitStack() as stack:

        def open_it(broker: str, conf: dict[str, Any] | None = None, **settings: Any) -> Site:
            site = Site(broker, tmp_path, conf or {}, **settings)
            stack.callback(site.app.close)
            stack.callback(uninstall, site.app)
            return site

        yield open_it


@pytest.fixture
def use() -> Iterator[Callable[[RedisServer], RedisServer]]:
    """Stop servers after the test."""
    with ExitStack() as stack:
        yield stack.enter_context


Use = Callable[[RedisServer], RedisServer]


def port_at(url: str) -> int:
    """Port of the server that a ``REDIS_URL`` leads to; 0 while it leads to none."""
    client = RedisState(url, Keys("links")).client
    try:
        return int(client.info("server")["tcp_port"])
    except RedisError:
        return 0
    finally:
        client.close()


def answers(url: str) -> bool:
    """Whether a ``REDIS_URL`` leads to a Redis."""
    client = RedisState(url, Keys("links")).client
    try:
        return bool(client.ping())
    finally:
        client.close()


def test_a_user_that_may_do_little_and_another_database(open_site: Open, use: Use) -> None:
    server = use(
        plain(
            "requirepass another",
            f"user owl on >{PASSWORD} ~site:* &* +@all -@admin -@dangerous",
        )
    )
    url = f"redis://owl:{QUOTED}@{HOST}:{server.port}/7"
    site = open_site(url, {"broker_transport_options": {"global_keyprefix": "site:"}})

    with site.worker():
        site.work(5)

    with_password = RedisState(f"redis://:another@{HOST}:{server.port}/7", Keys("links")).client
    names = [str(name) for name in with_password.keys("*")]
    assert "site:owl:links:knowledge" in names
    assert all(name.startswith("site:") for name in names)
    with_password.close()


def test_tls_with_a_certificate_of_ours(open_site: Open, use: Use, tmp_path: Path) -> None:
    server = use(tls(tmp_path))
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    site = open_site(
        f"rediss://{HOST}:{server.port}/2",
        {
            "broker_use_ssl": {
                "ssl_cert_reqs": ssl.CERT_REQUIRED,
                "ssl_ca_certs": str(certificate),
                "ssl_certfile": str(certificate),
                "ssl_keyfile": str(key),
            }
        },
    )

    with site.worker():
        site.work(5)

    where = f"rediss://{HOST}:{server.port}/2?ssl_certfile={certificate}&ssl_keyfile={key}"
    for required in ("required", "CERT_REQUIRED"):
        assert answers(f"{where}&ssl_ca_certs={certificate}&ssl_cert_reqs={required}")


def test_who_is_not_known_by_tls_is_not_talked_to(
    open_site: Open, use: Use, tmp_path: Path
) -> None:
    server = use(tls(tmp_path))
    others, _ = make_certificate(tmp_path / "others")
    url = f"rediss://{HOST}:{server.port}?ssl_ca_certs={others}"
    app = open_site("memory://", redis_url=url).app

    result = CliRunner().invoke(health, obj=SimpleNamespace(app=app))

    assert result.exit_code == 1
    assert "Redis does not answer (TLS: self-signed certificate)." in result.output


def test_a_unix_socket(open_site: Open, use: Use) -> None:
    server = use(
        RedisServer("port 0", "unixsocket {folder}/redis.sock", "requirepass word", 'save ""')
    )
    path = server.folder / "redis.sock"
    site = open_site(f"redis+socket://:word@{path}?virtual_host=3")

    with site.worker():
        site.work(5)

    assert answers(f"unix://:word@{path}?db=3")
    assert answers(f"redis+socket://:word@{path}?virtual_host=3")


def test_sentinel_leads_to_the_next_master(open_site: Open, use: Use) -> None:
    secret = ("requirepass word", "masterauth word", "repl-diskless-sync-delay 0")
    master = use(plain(*secret))
    replica = use(plain(*secret, f"replicaof {HOST} {master.port}"))
    watcher = use(sentinel(master, "sentinel auth-pass mymaster word", "requirepass watch-word"))
    url = (
        f"sentinel://:word@{HOST}:{watcher.port}/4"
        "?master_name=mymaster&sentinel_password=watch-word"
    )
    site = open_site(
        f"sentinel://:word@{HOST}:{watcher.port}/4;sentinel://{HOST}:1/4",
        {
            "broker_transport_options": {
                "master_name": "mymaster",
                "sentinel_kwargs": {"password": "watch-word"},
            },
            "worker_cancel_long_running_tasks_on_connection_loss": True,
        },
    )
    assert answers(url)
    follower = RedisState(f"redis://:word@{HOST}:{replica.port}/4", Keys("links"))

    with site.worker():
        site.work(5)
        # Learned there too, and known to the Sentinel, before the master may go.
        wait_until(lambda: follower.client.get(site.parts.state.keys.view), "the replica")
        site.parts.sync.close()
        master.kill()
        wait_until(lambda: port_at(url) == replica.port, "a new master", WAIT_SECONDS)
        site.work(5)

    assert answers(url)
    follower.client.close()


def test_a_cluster_is_refused_in_a_sentence_and_celery_goes_on(
    open_site: Open, use: Use, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    node = use(plain("cluster-enabled yes", "requirepass word"))
    sentence = "Redis Cluster is not supported: set REDIS_URL to a Redis without cluster mode."
    caplog.set_level(logging.INFO)
    for url in (f"redis://:word@{HOST}:{node.port}/0", f"redis://:word@{HOST}:{node.port}/7"):
        site = open_site(redis_url, redis_url=url)
        for command in (health, status):
            result = CliRunner().invoke(command, obj=SimpleNamespace(app=site.app))
            assert result.exit_code == 1
            assert sentence in " ".join(result.output.split())

    caplog.clear()
    with site.worker():
        for number in range(3):
            site.app.send_task("work", (number,))
        wait_until(lambda: sorted(site.ran) == [0, 1, 2], "tasks to run", WAIT_SECONDS)
        wait_until(lambda: site.parts.sync.failures > 1, "a second sync")

    said = [record for record in caplog.records if "Redis Cluster" in record.getMessage()]
    by = {(record.name, record.getMessage()) for record in said}
    assert len(said) == len(by), "each part says it once"
    assert {name for name, _ in by} >= {"owl_celery.sync", "owl_celery.controller.health"}
    assert site.parts.router.fallbacks["no_view"] == 3


def test_two_applications_of_one_process_share_a_redis_and_nothing_else(
    open_site: Open, redis_url: str
) -> None:
    one = open_site(redis_url, name="one")
    two = open_site(redis_url, {"task_default_queue": "two"}, name="two")

    with one.worker():
        one.work(5)
        for number in range(3):
            two.app.send_task("work", (number,))
        two.parts.sync.flush()

    client, keys, others = one.parts.state.client, one.parts.state.keys, two.parts.state.keys
    assert not two.parts.router.decisions
    assert two.parts.router.fallbacks == {"no_view": 3}
    assert client.hgetall(keys.arrivals) == {"work": "5"}
    assert client.hgetall(others.arrivals) == {"work": "3"}
    assert not client.exists(others.events, others.view, others.assigned_count, others.lease)
    assert one.completed() == 5
