from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from celery import Celery
from pydantic import SecretStr
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError
from redis.retry import Retry

from owl_celery import embedded
from owl_celery.embedded import EmbeddedRedis, find_program, free_port, open_redis
from owl_celery.errors import BrokerError
from owl_celery.settings import Settings
from owl_celery.testing import wait_until

OWNER = """
import sys
from redis import Redis
from owl_celery.embedded import EmbeddedRedis
server = EmbeddedRedis().start()
print(server.url, Redis.from_url(server.url).config_get("dir")["dir"], flush=True)
{then}
"""


def port_of(url: str) -> int:
    return int(url.rsplit(":", 1)[1].partition("/")[0])


def is_listening(url: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port_of(url))) == 0


@contextmanager
def owner(then: str) -> Iterator[tuple[subprocess.Popen[str], str, Path]]:
    """Another Python that owns a server: its process, address and folder."""
    with subprocess.Popen(
        [sys.executable, "-c", OWNER.format(then=then)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        url, folder = process.stdout.readline().split()
        yield process, url, Path(folder)


@pytest.fixture
def no_wheels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "WHEELS", ())


def test_it_answers_to_celery() -> None:
    with EmbeddedRedis() as server, Celery("proj", broker=server.url) as app:
        app.send_task("anything")

        with Redis.from_url(server.url) as client:
            assert client.llen("celery") == 1
        app.pool.force_close_all()


def test_it_asks_for_the_password_that_is_in_its_address() -> None:
    with (
        EmbeddedRedis() as server,
        Redis(port=port_of(server.url), retry=Retry(NoBackoff(), 0)) as stranger,
        pytest.raises(AuthenticationError),
    ):
        stranger.ping()


def test_it_listens_on_loopback_only() -> None:
    with EmbeddedRedis() as server, Redis.from_url(server.url) as client:
        assert client.config_get("bind") == {"bind": "127.0.0.1"}


def test_its_folder_is_private_and_goes_with_it() -> None:
    with EmbeddedRedis() as server, Redis.from_url(server.url, decode_responses=True) as client:
        folder = Path(client.config_get("dir")["dir"])
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((folder / "redis.conf").stat().st_mode) == 0o600

    assert not folder.exists()
    assert not is_listening(server.url)


def test_a_folder_of_the_caller_keeps_the_data(tmp_path: Path) -> None:
    with EmbeddedRedis(folder=tmp_path) as server, Redis.from_url(server.url) as client:
        client.set("learned", "much")

    with EmbeddedRedis(folder=tmp_path) as server, Redis.from_url(server.url) as client:
        assert client.get("learned") == b"much"


def test_it_starts_again_after_a_stop() -> None:
    server = EmbeddedRedis()
    for _ in range(2):
        with server, Redis.from_url(server.url) as client:
            assert client.ping()


def test_a_second_start_or_stop_changes_nothing() -> None:
    server = EmbeddedRedis().start()
    url = server.url

    assert server.start().url == url
    server.stop()
    server.stop()


def test_a_port_that_is_taken_meanwhile_is_tried_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = iter([taken.getsockname()[1], free_port()])
        monkeypatch.setattr(embedded, "free_port", lambda: next(ports))

        with EmbeddedRedis() as server:
            assert port_of(server.url) != taken.getsockname()[1]


def test_a_given_port_that_is_taken_is_an_error_that_says_so() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()

        with pytest.raises(BrokerError, match=r"did not start: .*in use"):
            EmbeddedRedis(port=taken.getsockname()[1]).start()


@pytest.mark.usefixtures("no_wheels")
def test_without_a_server_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(BrokerError, match=r"install redis-server .* 'owl-celery\[embedded\]'"):
        find_program()


@pytest.mark.usefixtures("no_wheels")
@pytest.mark.parametrize("answer", ["Redis server v=5.0.7 sha=0", "nonsense"])
def test_a_server_that_is_too_old_or_broken_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: str
) -> None:
    for name, says in (("redis-server", answer), ("valkey-server", "Valkey server v=8.1.0 sha=0")):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\necho '{says}'\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    assert find_program() == tmp_path / "valkey-server"

    (tmp_path / "valkey-server").unlink()
    with pytest.raises(BrokerError, match=r"No Redis 6\.2 or newer"):
        find_program()


def test_a_wheel_brings_a_server_where_the_system_has_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with EmbeddedRedis() as server, Redis.from_url(server.url) as client:
        assert client.ping()
    assert find_program().parent.parent.name in embedded.WHEELS


def test_redis_url_is_used_instead_when_set() -> None:
    settings = Settings.load(redis_url=SecretStr("redis://elsewhere/0"))

    with open_redis(settings) as url:
        assert url == "redis://elsewhere/0"


def test_without_redis_url_an_embedded_server_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REDIS_URL", "OWL_REDIS_URL"):
        monkeypatch.delenv(name, raising=False)

    with open_redis(Settings.load()) as url:
        assert is_listening(url)
    assert not is_listening(url)


def test_an_owner_that_forgets_to_stop_it_stops_it_by_ending() -> None:
    with owner(then="sys.exit(3)") as (process, url, folder):
        assert process.wait(20) == 3

        wait_until(lambda: not is_listening(url) and not folder.exists(), "the end of the server")


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_it_does_not_outlive_a_killed_owner(signum: signal.Signals) -> None:
    with owner(then="sys.stdin.read()") as (process, url, folder):
        process.send_signal(signum)

        wait_until(lambda: not is_listening(url) and not folder.exists(), "the end of the server")


def test_it_does_not_outlive_its_guard() -> None:
    others = psutil.Process().children()
    server = EmbeddedRedis().start()
    with Redis.from_url(server.url, decode_responses=True) as client:
        folder = Path(client.config_get("dir")["dir"])
    (guard,) = set(psutil.Process().children()) - set(others)

    guard.kill()

    wait_until(lambda: not is_listening(server.url), "the end of the server")
    server.stop()
    assert not folder.exists()


def test_a_forked_child_of_the_owner_does_not_stop_it() -> None:
    fork = "import os\nif os.fork() == 0: sys.exit()\nos.wait()\nprint('waited', flush=True)\n"
    with owner(then=fork + "sys.stdin.read()") as (process, url, _):
        assert process.stdout is not None
        assert process.stdout.readline() == "waited\n"

        assert is_listening(url)
        process.kill()
    wait_until(lambda: not is_listening(url), "the end of the server")


def test_a_locale_that_the_system_lacks_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "LC_ALL", "xx_XX.UTF-8")

    with EmbeddedRedis() as server:
        assert is_listening(server.url)
