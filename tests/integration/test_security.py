"""What docs/security.md promises: nothing from outside is run, or believed, and no secret shown."""

from __future__ import annotations

import ast
import json
import math
import os
import pickle
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import httpx
import pytest
from celery import Celery
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis

import owl_celery
from owl_celery import install
from owl_celery.brokers import open_broker
from owl_celery.brokers.base import Owner, Permit
from owl_celery.brokers.poison import embedded_in
from owl_celery.brokers.redis import RedisBroker, open_redis_broker
from owl_celery.cli.drain import drain
from owl_celery.cli.export import export
from owl_celery.cli.health import health
from owl_celery.cli.status import status
from owl_celery.controller.stealing import header_of
from owl_celery.embedded import EmbeddedRedis, free_port
from owl_celery.errors import StoreError
from owl_celery.exporter.families import gauge
from owl_celery.exporter.text import exposition
from owl_celery.feedback import due_time
from owl_celery.installation import parts_of, uninstall
from owl_celery.keys import Keys
from owl_celery.redis_state import RedisState
from owl_celery.sanity import sane
from owl_celery.settings import Settings
from owl_celery.store import open_store
from owl_celery.testing import wait_until
from owl_celery.types import Outcome
from owl_celery.wire import (
    MAX_NAME_LENGTH,
    Heartbeat,
    TaskHeader,
    decode_event,
    encode_event,
    header_in,
)
from tests.integration.test_store import commit
from tests.learning import outcome
from tests.redis_servers import HOST, plain
from tests.routed import send_routed

pytestmark = pytest.mark.integration

SOURCES: Final = sorted(Path(owl_celery.__file__).parent.rglob("*.py"))
RUNS_WHAT_IT_READS: Final = {
    *(
        "pickle",
        "cPickle",
        "dill",
        "cloudpickle",
        "marshal",
        "shelve",
        "joblib",
        "yaml",
        "jsonpickle",
    ),
}
OF_OS: Final = {"system", "popen", "mktemp"}
RUNS_TEXT: Final = {"eval", "exec", "compile", *OF_OS}
HOSTILE: Final = "'); DROP TABLE owl_outcome; --\"}\n# evil 1\x1b[2J<script>{{7*7}}\\"


def test_no_module_of_ours_runs_what_it_reads() -> None:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name.partition(".")[0] for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [(node.module or "").partition(".")[0]]
            assert not RUNS_WHAT_IT_READS.intersection(names), path
            if isinstance(node, ast.Call):
                called = node.func
                is_plain = isinstance(called, ast.Name)
                name = called.id if isinstance(called, ast.Name) else getattr(called, "attr", "")
                assert name not in (RUNS_TEXT if is_plain else OF_OS), f"{path}: {name}"
                for keyword in node.keywords:
                    is_said = ast.unparse(keyword.value) == "True"
                    assert keyword.arg not in ("shell", "allow_pickle") or not is_said, path


def test_what_an_application_accepts_stays_as_it_was(redis_url: str) -> None:
    plain_app = Celery("plain", broker=redis_url, set_as_current=False)
    app = install(Celery("proj", broker=redis_url, set_as_current=False))
    for name in ("accept_content", "result_accept_content", "task_serializer", "result_serializer"):
        assert app.conf[name] == plain_app.conf[name]
    uninstall(app)


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._path),)


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    bomb = pickle.dumps(Bomb(tmp_path / "exploded")).decode("latin-1")
    for kind in ("application/x-python-serialize", "application/data", "application/x-yaml"):
        message: dict[str, Any] = {
            "body": bomb,
            "content-type": kind,
            "content-encoding": "binary",
            "properties": {},
        }
        assert embedded_in(message) == {}
    assert not list(tmp_path.iterdir())


# What the broker and Redis say is untrusted -------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=300),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=30,
)


def is_bounded(value: object) -> bool:
    """Whether text is short, and a number finite and not beyond what a database holds."""
    if isinstance(value, str):
        return len(value) <= MAX_NAME_LENGTH
    if isinstance(value, tuple):
        return len(value) <= 16 and all(map(is_bounded, value))
    if isinstance(value, int | float):
        return math.isfinite(value) and abs(value) <= 2**62
    return value is None


@settings(max_examples=50)
@given(st.dictionaries(st.sampled_from([*"vdqakztmwsxpb", "tried", "owl"]), json_values))
def test_a_header_is_bounded_whatever_is_in_it(value: dict[str, Any]) -> None:
    for headers in ({"owl": value}, {"headers": {"owl": value}}):
        header = header_in(headers)
        assert header is None or all(map(is_bounded, header))
        assert header is None or header.propensity is None or header.propensity <= 1.0
    due_time(TaskHeader.decode({**value, "d": "1"}), value.get("t"))


@settings(max_examples=50)
@given(st.dictionaries(st.sampled_from(sorted(Outcome.__dataclass_fields__)), json_values))
def test_an_outcome_is_bounded_or_refused(fields: dict[str, Any]) -> None:
    usual = json.loads(encode_event(outcome()))
    found = decode_event(json.dumps({**usual, **fields}))
    learned = sane(found) if isinstance(found, Outcome) else None
    if learned is not None:
        values = [getattr(learned, name) for name in Outcome.__dataclass_fields__]
        assert all(is_bounded(value) or value is learned.state for value in values)


@settings(max_examples=50)
@given(st.dictionaries(st.sampled_from(sorted(Heartbeat.__dataclass_fields__)), json_values))
def test_a_heartbeat_is_bounded_or_refused(fields: dict[str, Any]) -> None:
    beat = Heartbeat.decode(json.dumps({"node": "gpu0@a", **fields}))
    if beat is not None:
        names = (beat.node, beat.queue, beat.gpu_model, beat.gpu_uuid)
        numbers = (beat.memory_total_bytes, beat.memory_free_bytes, beat.concurrency)
        assert all(map(is_bounded, (*names, *numbers)))
        json.loads(beat.encode())


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


MESSAGES: Final = [
    b"",
    b"\xff\xfe\x00",
    b"null",
    b"[]",
    b'{"headers": []}',
    b'{"headers": {"owl": 7, "id": {}}}',
    b'{"headers": {"id": "x", "owl": {"d": 1e999}}}',
    f'{{"headers": {{"id": "deep", "owl": {{"d": "1", "y": {nested(990)}}}}}}}'.encode(),
    f'{{"headers": {{"id": "deeper", "owl": {{"d": "1", "y": {nested(90_000)}}}}}}}'.encode(),
    b'{"headers": {"id": "q", "owl": {"d": "1", "q": "' + b"q" * 5_000 + b'"}}}',
    b'{"properties": {"delivery_info": {"routing_key": "\\"}}", "exchange": 7}}, "headers": 7}',
    b'{"headers": {"eta": null, "owl": {"d": "1\\u0000"}, "id": "n"}, "eta": null, "owl": {',
]


@pytest.fixture
def broker(redis_url: str) -> Iterator[tuple[Celery, RedisBroker, Redis]]:
    app = Celery("proj", broker=redis_url, set_as_current=False)
    found = open_redis_broker(app)
    with Redis.from_url(redis_url) as client:
        yield app, found, client
    found.close()
    app.close()


def test_hostile_messages_hinder_no_other_and_none_is_lost(
    broker: tuple[Celery, RedisBroker, Redis],
) -> None:
    app, redis, client = broker
    permit = Permit("lease", "token", "fence", 1)
    for message in MESSAGES:
        client.lpush("gpu.a.0", message)
    send_routed(app, "gpu.a.0", 1)

    seen = redis.peek(["gpu.a.0"], 50, 50)["gpu.a.0"]
    assert len(seen) == len(MESSAGES) + 1
    for one in seen[:-1]:
        assert not redis.take("gpu.a.0", one, "1", "gpu.a.1", permit)
    assert redis.redirect("gpu.a.0", lambda header: "gpu.a.1", 100) >= 1
    assert 1 in numbers_in(client, "gpu.a.1")
    # Whatever else went there, and the rest with it: as it was.
    redis.move_all("gpu.a.0", "gpu.a.1")
    there = client.lrange("gpu.a.1", 0, -1)
    assert len(there) == len(MESSAGES) + 1
    assert set(MESSAGES) <= set(there)


STRANGE_HEADERS: Final[list[dict[str, Any]]] = [
    {},
    {"owl": 7, "id": 1},
    {"owl": {"d": "1", "a": "random", "k": "x" * 5_000, "tried": [{}, None, 2**40]}},
    {"owl": {"d": "1", "a": "random", "k": "x", "z": 1e300, "t": datetime(2026, 1, 1, tzinfo=UTC)}},
    {"headers": {"owl": {"d": "1\n", "a": "random", "k": "x", "m": -(2**60)}}, "eta": 7},
    {"headers": [1, [2, [3]]], "owl": [None]},
]


def test_hostile_headers_on_rabbitmq_hinder_no_other_and_none_is_lost(rabbit_url: str) -> None:
    app = Celery("proj", broker=rabbit_url, set_as_current=False)
    broker = open_broker(app)
    with app.connection_for_write() as connection, connection.channel() as channel:
        for queue in ("gpu.a.0", "gpu.a.1"):
            app.amqp.queues.new_missing(queue).bind(channel).declare()
        producer = connection.Producer(channel)
        for headers in STRANGE_HEADERS:
            producer.publish(b"\xff", routing_key="gpu.a.0", headers=headers, exchange="")
    send_routed(app, "gpu.a.0", 1)

    assert broker.redirect("gpu.a.0", lambda header: "gpu.a.1", 100) >= 1
    broker.move_all("gpu.a.0", "gpu.a.1")

    count = len(STRANGE_HEADERS) + 1
    assert broker.depths(["gpu.a.0", "gpu.a.1"]) == {"gpu.a.0": 0, "gpu.a.1": count}
    seen = broker.peek(["gpu.a.1"], count, count)["gpu.a.1"]
    assert all(is_bounded(header) for one in seen if (header := header_of(one.text)))
    broker.release()
    broker.close()
    app.close()


def numbers_in(client: Redis, name: str) -> list[int]:
    """Arguments of those messages that Celery itself has written."""
    found = []
    texts: Any = client.lrange(name, 0, -1)
    for text in texts:
        match = re.search(rb'"argsrepr": "\((\d+),\)"', text)
        found += [int(match[1])] if match else []
    return found


def test_hostile_messages_of_a_dead_worker_hinder_no_other(
    broker: tuple[Celery, RedisBroker, Redis],
) -> None:
    app, redis, client = broker
    send_routed(app, "gpu.a.0", 1)
    waiting: Any = client.lrange("gpu.a.0", 0, -1)
    (sound,) = waiting
    client.delete("gpu.a.0")
    for number, message in enumerate([*MESSAGES, sound]):
        client.hset("unacked", f"tag-{number}", b'[%s, "", "gpu.a.0"]' % message)
        client.hset("unacked", f"odd-{number}", message)
        client.zadd("unacked_index", {f"tag-{number}": 1.0})

    handed = redis.restore({"gpu.a.0": Owner("owl:proj:claim:gpu.a.0")}, max_losses=3)

    assert handed >= 1
    assert numbers_in(client, "gpu.a.0") == [1]
    left = client.hlen("unacked")
    assert left + handed == 2 * (len(MESSAGES) + 1)


# Names are text, wherever they are shown ----------------------------------------------------------


@settings(max_examples=50)
@given(st.text(max_size=400))
def test_any_name_is_one_value_of_one_label(name: str) -> None:
    page = exposition([gauge("owl_queue_unserved_tasks", [((name,), 1.0)])]).decode()

    (family,) = text_string_to_metric_families(page)
    (sample,) = family.samples
    assert sample.value == 1.0
    assert list(sample.labels) == ["queue"]
    assert len(sample.labels["queue"]) <= MAX_NAME_LENGTH


def test_a_name_is_a_value_to_the_database(tmp_path: Path) -> None:
    store = open_store(Settings.load(continuous_learning_storage_path=tmp_path), HOSTILE)
    strange = outcome(task_type=HOSTILE, worker_id=HOSTILE, queue=HOSTILE)
    commit(store, outcomes=[strange])

    assert store.recent(10) == [strange]
    assert [number.outcome for number in store.outcome_page(10, task_type=HOSTILE)] == [strange]
    store.close()


def test_a_name_gives_no_command_to_a_terminal(redis_url: str) -> None:
    app = install(Celery("proj", broker=redis_url, set_as_current=False))
    keys, client = parts_of(app).state.keys, parts_of(app).state.client
    node = f"\x1b]0;title\x07\x1b[2J@{os.uname().nodename}"
    client.sadd(keys.nodes, node)
    client.set(keys.heartbeat(node), Heartbeat(node, node, node).encode())
    client.set(keys.health, json.dumps({"controller": node, "troubles": {node: node}}))
    client.sadd(keys.drained, node)

    for command in (health, status, drain):
        output = CliRunner().invoke(command, obj=SimpleNamespace(app=app), color=True).output
        assert "title" in output
        assert "\x1b]" not in output
        assert "\x1b[2J" not in output
        assert "\x07" not in output
    uninstall(app)
    app.close()


# Secrets ------------------------------------------------------------------------------------------

SECRETS: Final = {
    "broker": "hunter2-broker",
    "state": "hunter2-state",
    "database": "hunter2-database",
    "token": "hunter2-token-of-the-api",
}
PATHS: Final = (
    *("/healthz", "/readyz", "/openapi.json", "/api/v1/learning/health"),
    *("/api/v1/learning/performance", "/api/v1/learning/queues", "/api/v1/learning/workers"),
    *("/api/v1/learning/task-types", "/api/v1/learning/decisions", "/nothing"),
)


class Processes:
    """Celery commands on one application, with all that they print."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder = folder
        self._environment = {**os.environ, **environment, "PYTHONPATH": self._path(folder)}
        self.log = folder / "log"
        self.said = ""

    @staticmethod
    def _path(folder: Path) -> str:
        return os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])

    @contextmanager
    def running(self, *arguments: str) -> Iterator[None]:
        """A command that runs until it is told to stop."""
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", "proj", *arguments],
                cwd=self._folder,
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            yield
        finally:
            process.terminate()
            process.wait(timeout=60.0)

    def hear(self, *arguments: str) -> None:
        """What a short command says."""
        done = subprocess.run(
            [sys.executable, "-m", "celery", "-A", "proj", *arguments],
            cwd=self._folder,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        self.said += done.stdout + done.stderr

    def get(self, port: int, path: str) -> httpx.Response:
        token = {"Authorization": f"Bearer {SECRETS['token']}"}
        answer = httpx.get(f"http://{HOST}:{port}{path}", headers=token, timeout=20.0)
        self.said += f"{answer.headers} {answer.text}"
        return answer


@pytest.mark.slow
def test_no_secret_is_said_by_anything_while_all_is_well_and_when_nothing_is(
    tmp_path: Path, postgres_url: str
) -> None:
    (tmp_path / "proj.py").write_text(
        "import os\n"
        "from celery import Celery\n"
        "from owl_celery import install\n"
        "app = install(Celery('proj', broker=os.environ['BROKER']))\n"
        "@app.task(name='work')\n"
        "def work():\n"
        "    raise RuntimeError('as asked')\n"
    )
    api, metrics = free_port(), free_port()
    with (
        plain(f"requirepass {SECRETS['broker']}") as broker,
        plain(f"requirepass {SECRETS['state']}") as state,
    ):
        state_url = f"redis://:{SECRETS['state']}@{HOST}:{state.port}/0"
        processes = Processes(
            tmp_path,
            {
                "BROKER": f"redis://:{SECRETS['broker']}@{HOST}:{broker.port}/0",
                "REDIS_URL": state_url,
                "DATABASE_URL": postgres_url.replace("owl@", f"owl:{SECRETS['database']}@"),
                "OWL_API_TOKEN": SECRETS["token"],
                "OWL_API_PORT": str(api),
                "METRICS_PORT": str(metrics),
            },
        )
        with (
            processes.running("owl", "serve"),
            processes.running("owl", "worker", "--simulate", "k80=1", "-l", "DEBUG"),
        ):
            keys, client = Keys("proj"), RedisState(state_url, Keys("proj")).client
            wait_until(lambda: client.exists(keys.knowledge), "the first knowledge", 90.0)
            wait_until(lambda: client.scard(keys.nodes), "a worker", 60.0)
            wait_until(lambda: answers(api), "the API", 60.0)
            processes.hear("call", "work")
            wait_until(lambda: b"as asked" in processes.log.read_bytes(), "the task", 60.0)
            processes.said += str([client.get(key) for key in (keys.health, keys.view, keys.fleet)])
            client.close()
            for is_up in (True, False):
                if not is_up:
                    state.kill()
                    broker.kill()
                    wait_until(
                        lambda: processes.get(api, "/readyz").status_code == 503, "it to notice"
                    )
                    not_ready = processes.get(api, "/readyz").text
                for path in PATHS:
                    processes.get(api, path)
                processes.get(metrics, "/metrics")
                processes.hear("owl", "status" if is_up else "health")
        processes.hear("owl", "serve")

    said = processes.said + processes.log.read_text()
    assert "Redis does not answer" in said
    assert "hunter2" not in said
    assert HOST not in not_ready


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://{HOST}:{port}/healthz").status_code == 200
    except httpx.TransportError:
        return False


def test_a_password_that_is_wrong_is_not_said(redis_url: str) -> None:
    with plain("requirepass right") as server:
        url = f"redis://:hunter2@{HOST}:{server.port}/0"
        app = install(Celery("proj", broker=redis_url, set_as_current=False), redis_url=url)
        result = CliRunner().invoke(health, obj=SimpleNamespace(app=app))
        uninstall(app)
    assert "Redis refuses the user or the password: correct REDIS_URL" in result.output
    assert "hunter2" not in result.output


# Files --------------------------------------------------------------------------------------------


@pytest.fixture
def open_to_all() -> Iterator[None]:
    """A umask that hides nothing."""
    before = os.umask(0)
    yield
    os.umask(before)


def modes_under(folder: Path) -> dict[str, int]:
    """Modes of a folder and all in it that are neither 0700 nor 0600."""
    wrong = {}
    for path in (folder, *folder.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode != (0o700 if path.is_dir() else 0o600):
            wrong[str(path.relative_to(folder))] = mode
    return wrong


@pytest.mark.usefixtures("open_to_all")
def test_what_is_learned_is_private_whatever_the_umask(tmp_path: Path) -> None:
    settings = Settings.load(continuous_learning_storage_path=tmp_path / "a" / "b")
    database = tmp_path / "a" / "b" / "owl.sqlite3"
    for _ in range(2):
        store = open_store(settings, "app")
        commit(store)
        assert {path.suffix for path in database.parent.iterdir()} >= {".sqlite3", ".lock"}
        assert not modes_under(tmp_path / "a")
        store.close()
        database.write_bytes(b"damaged" * 1000)
    open_store(settings, "app").load()
    assert list(database.parent.glob("*.corrupt-*"))
    assert not modes_under(tmp_path / "a")


def test_a_link_is_not_followed_to_where_nothing_is(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    for name in ("owl.sqlite3", "owl.sqlite3.lock"):
        folder = tmp_path / f"folder of {name}"
        folder.mkdir()
        (folder / name).symlink_to(elsewhere)
        with pytest.raises(StoreError, match="cannot write"):
            open_store(Settings.load(continuous_learning_storage_path=folder), "app").load()
    assert not elsewhere.exists()


@pytest.mark.usefixtures("open_to_all")
def test_what_an_embedded_redis_keeps_is_private(tmp_path: Path) -> None:
    folder = tmp_path / "redis"
    folder.mkdir(mode=0o700)
    (folder / "redis.conf").touch(mode=0o666)
    with EmbeddedRedis(folder=folder) as server, Redis.from_url(server.url) as client:
        client.set("learned", "much")
        client.save()
        assert {path.name for path in folder.iterdir()} >= {"redis.conf", "appendonlydir"}
        assert not modes_under(folder)


@pytest.mark.usefixtures("open_to_all")
def test_an_exported_file_is_private(tmp_path: Path, redis_url: str) -> None:
    file = tmp_path / "learned.json"
    app = install(
        Celery("proj", broker=redis_url, set_as_current=False),
        continuous_learning_storage_path=tmp_path / "learned",
    )
    result = CliRunner().invoke(export, [str(file)], obj=SimpleNamespace(app=app))
    uninstall(app)
    assert result.exit_code == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
