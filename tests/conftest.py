"""Real servers for the tests, and a check that each test cleans up after itself."""

from __future__ import annotations

import os
import secrets
import signal
import threading
import time
from collections.abc import Collection, Iterator
from types import SimpleNamespace

import hypothesis
import psutil
import pytest
from redis import Redis

from benchmarks.postgres import PostgresServer
from benchmarks.rabbitmq import RabbitServer
from owl_celery.embedded import EmbeddedRedis
from tests.message_broker import MessageBroker
from tests.programs import missing_packages

# The same examples in every run; and a slow machine is no failure.
hypothesis.settings.register_profile("owl", derandomize=True, deadline=None)
hypothesis.settings.load_profile("owl")

MARK = "OWL_CELERY_TEST_RUN"
CLEANUP_SECONDS = 5.0


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say at the end, where it is read, which packages this machine lacks."""
    if terminalreporter.stats.keys() & {"failed", "error"} and (missing := missing_packages()):
        terminalreporter.write_line(
            f"Some tests need what is not installed: apt-get install {' '.join(missing)}"
        )


@pytest.fixture(scope="session", autouse=True)
def obedience() -> None:
    """Let TERM stop what the tests start, also when the shell that started us ignores it."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(
                number,
                signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL,
            )


@pytest.fixture(scope="session")
def redis_server() -> Iterator[EmbeddedRedis]:
    """One Redis server for the whole run; use ``redis_url``."""
    with EmbeddedRedis() as server:
        yield server


@pytest.fixture
def redis_url(redis_server: EmbeddedRedis) -> str:
    """Address of a real, empty Redis."""
    with Redis.from_url(redis_server.url) as client:
        client.flushall()
    return redis_server.url


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One PostgreSQL server for the whole run; use ``postgres_url``."""
    server = PostgresServer()
    yield server
    server.stop()


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """Address of a fresh, empty database of a real PostgreSQL, ``postgresql://...``."""
    with postgres_server.database() as url:
        yield url


@pytest.fixture(scope="session")
def rabbit_server() -> Iterator[RabbitServer]:
    """One RabbitMQ server for the whole run; use ``rabbit_url``."""
    with RabbitServer() as server:
        yield server


@pytest.fixture
def rabbit_url(rabbit_server: RabbitServer) -> Iterator[str]:
    """Address of a fresh, empty virtual host of a real RabbitMQ."""
    with rabbit_server.virtual_host() as url:
        yield url


@pytest.fixture
def message_broker(request: pytest.FixtureRequest, redis_url: str) -> MessageBroker:
    """A real, empty broker, Redis unless the test is marked ``on_both``."""
    if getattr(request, "param", "redis") == "redis":
        return MessageBroker(redis_url, redis_url)
    return MessageBroker(
        redis_url, request.getfixturevalue("rabbit_url"), request.getfixturevalue("rabbit_server")
    )


@pytest.fixture(scope="session")
def run_mark() -> Iterator[str]:
    """A value in the environment of every process that this run starts, orphans too."""
    mark = secrets.token_hex(8)
    os.environ[MARK] = mark
    yield mark
    del os.environ[MARK]


@pytest.fixture(autouse=True)
def no_leftovers(request: pytest.FixtureRequest, run_mark: str) -> Iterator[None]:
    """Fail a test that leaves a process, or a thread of ours, behind."""
    if "rabbitmq" in getattr(request.node, "callspec", SimpleNamespace(params={})).params.values():
        # Before the count: a fixture that chooses by its parameter starts it too late.
        request.getfixturevalue("rabbit_server")
    processes, threads = _processes(run_mark), _threads()
    yield
    deadline = time.monotonic() + CLEANUP_SECONDS
    while True:
        left = {
            **{
                pid: name
                for pid, name in _processes(run_mark).items()
                if pid not in processes and not _belongs_to(pid, processes)
            },
            **{ident: name for ident, name in _threads().items() if ident not in threads},
        }
        if not left:
            return
        if time.monotonic() > deadline:
            pytest.fail(f"The test left running: {', '.join(sorted(left.values()))}")
        time.sleep(0.02)


def _processes(mark: str) -> dict[int, str]:
    """Processes that carry the mark, and children of ours that dropped it."""
    me = psutil.Process()
    found = {child.pid: child for child in me.children(recursive=True)}
    for process in psutil.process_iter():
        try:
            if process.pid != me.pid and process.environ().get(MARK) == mark:
                found[process.pid] = process
        except psutil.Error:
            continue  # It is somebody else's, or has ended.
    return {pid: name for pid, process in found.items() if (name := _describe(process))}


def _belongs_to(pid: int, processes: Collection[int]) -> bool:
    """Whether one of these started it: a browser that lives longer than one test does so."""
    try:
        return any(parent.pid in processes for parent in psutil.Process(pid).parents())
    except psutil.Error:
        return True  # It has ended.


def _describe(process: psutil.Process) -> str:
    """What runs there; empty for a process that has ended."""
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return ""
        return f"process {process.pid} ({' '.join(process.cmdline())[:80]})"
    except psutil.Error:
        return ""


def _threads() -> dict[int, str]:
    """Threads that owl_celery started, and any that would keep Python from ending."""
    return {
        id(thread): f"thread {thread.name}"
        for thread in threading.enumerate()
        if thread.name.startswith("owl") or not thread.daemon
    }
