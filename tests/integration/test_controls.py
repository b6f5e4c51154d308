"""``owl mode``, ``owl drain`` and ``owl resume``, against a real Redis and a real controller."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from click import Command
from click.testing import CliRunner, Result

from owl_celery import install
from owl_celery.brokers import open_broker
from owl_celery.cli.drain import drain
from owl_celery.cli.mode import mode
from owl_celery.cli.resume import resume
from owl_celery.controller.controller import Controller
from owl_celery.controller.health import Health
from owl_celery.controls import drained_queues, known_queues, queue_load, read_mode, set_mode
from owl_celery.errors import UnknownModeError
from owl_celery.installation import Parts, parts_of, uninstall
from owl_celery.records import FleetRecord, View, decode_record
from owl_celery.store.memory import MemoryStore
from owl_celery.testing import wait_until
from owl_celery.types import Outcome, TryState
from owl_celery.wire import Heartbeat, Started, TaskHeader, encode_event
from tests.message_broker import MessageBroker, on_both

pytestmark = pytest.mark.integration

QUEUE, OTHER = "gpu.a.0", "gpu.a.1"


@pytest.fixture
def app(message_broker: MessageBroker, tmp_path: Path) -> Iterator[Celery]:
    """A routed application."""
    message_broker.declare(QUEUE, OTHER, "celery")
    app = Celery("proj", broker=message_broker.url, set_as_current=False)
    install(
        app,
        redis_url=message_broker.redis_url,
        continuous_learning_storage_path=tmp_path,
        heartbeat_ttl_seconds=60.0,
    )
    yield app
    uninstall(app)
    app.close()


@pytest.fixture
def parts(app: Celery) -> Parts:
    """What ``install`` made of it."""
    return parts_of(app)


def run(app: Celery | None, command: Command, *arguments: str) -> Result:
    obj = None if app is None else SimpleNamespace(app=app)
    return CliRunner().invoke(command, arguments, obj=obj)


def beat(parts: Parts, queue: str, gpu_model: str = "V100", **values: Any) -> None:
    """What a live worker of that queue would send."""
    node = f"gpu{queue[-1]}@a"
    keys, client = parts.state.keys, parts.state.client
    client.sadd(keys.nodes, node)
    client.set(
        keys.heartbeat(node), Heartbeat(node, queue, gpu_model, **values).encode(), px=60_000
    )


class Running:
    """A controller in a thread."""

    def __init__(self, app: Celery, name: str) -> None:
        parts = parts_of(app)
        self._stop = threading.Event()
        controller = Controller(parts.state, open_broker(app), parts.settings, MemoryStore, name)
        self._thread = threading.Thread(target=controller.run, args=(self._stop,))
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


@pytest.fixture
def controller(app: Celery, parts: Parts) -> Iterator[Running]:
    """A controller that has seen two workers."""
    beat(parts, QUEUE)
    beat(parts, OTHER)
    running = Running(app, "first")
    try:
        wait_until(lambda: known_queues(parts.state) == [QUEUE, OTHER], "both queues")
        yield running
    finally:
        running.stop()


def health(parts: Parts) -> Health:
    text: Any = parts.state.client.get(parts.state.keys.health)
    return (Health.decode(text) if text else None) or Health()


def closed_queues(parts: Parts) -> list[str]:
    """Queues that the published view closes."""
    texts: Any = parts.state.client.mget([parts.state.keys.fleet, parts.state.keys.view])
    fleet, view = decode_record(FleetRecord, texts[0]), decode_record(View, texts[1])
    assert fleet is not None
    assert view is not None
    return [fleet.names[row] for row in view.closed]


def test_the_mode_is_on_until_it_is_set(app: Celery, parts: Parts) -> None:
    assert run(app, mode).output == "on\n"
    assert run(app, mode, "off").output == "off (was on)\n"
    assert run(app, mode, "shadow").output == "shadow (was off)\n"
    assert run(app, mode).output == "shadow\n"
    assert read_mode(parts.state) == ("shadow", "")


def test_an_unknown_mode_is_refused_and_changes_nothing(app: Celery, parts: Parts) -> None:
    set_mode(parts.state, "off")

    result = run(app, mode, "of")

    assert result.exit_code == 2
    assert "'on', 'shadow', 'off'" in result.output
    with pytest.raises(UnknownModeError, match="on, shadow, off"):
        set_mode(parts.state, "of")
    assert read_mode(parts.state)[0] == "off"


def test_producers_follow_the_mode_at_their_next_sync(parts: Parts) -> None:
    parts.sync.flush()
    before = parts.sync.mode
    set_mode(parts.state, "off")
    parts.sync.flush()

    assert (before, parts.sync.mode) == ("on", "off")
    assert parts.settings.sync_idle_seconds <= 1.0


def test_what_is_no_mode_in_redis_is_reported(
    app: Celery, parts: Parts, controller: Running
) -> None:
    parts.state.client.set(parts.state.keys.mode, "of")

    result = run(app, mode)
    found = wait_until(lambda: health(parts).troubles.get("mode"), "the trouble") or ""

    assert result.stdout == "on\n"
    assert "'of'" in result.stderr
    assert "'of'" in found
    set_mode(parts.state, "on")
    wait_until(lambda: not health(parts).troubles, "the end of the trouble")


def test_a_drained_queue_is_closed_under_every_controller_until_it_is_resumed(
    app: Celery, parts: Parts, controller: Running
) -> None:
    assert run(app, drain, QUEUE).output == f"{QUEUE} is drained until owl resume {QUEUE}.\n"
    wait_until(lambda: closed_queues(parts) == [QUEUE], "the closed queue")
    wait_until(lambda: health(parts).drained_queues == [QUEUE], "what health says")
    assert run(app, drain).output == f"{QUEUE}\n"
    assert "as before" in run(app, drain, QUEUE).output

    controller.stop()
    second = Running(app, "second")
    try:
        wait_until(lambda: health(parts).controller == "second", "another controller")
        assert closed_queues(parts) == [QUEUE]

        assert run(app, resume, QUEUE).output == f"{QUEUE} takes tasks again.\n"
        wait_until(lambda: closed_queues(parts) == [], "the open queue")
    finally:
        second.stop()
    assert "was not drained" in run(app, resume, QUEUE).output
    assert run(app, drain).output == "No queue is drained.\n"


def test_a_queue_that_nobody_serves_is_an_error_that_lists_those_there_are(
    app: Celery, parts: Parts, controller: Running
) -> None:
    for command in (drain, resume):
        result = run(app, command, "gpu.a.7")

        assert result.exit_code == 1
        assert f"known are {QUEUE}, {OTHER}." in result.output
    assert drained_queues(parts.state) == []


def test_a_drained_queue_can_be_resumed_while_its_worker_is_away(app: Celery, parts: Parts) -> None:
    parts.state.client.sadd(parts.state.keys.drained, QUEUE)

    assert "takes tasks again" in run(app, resume, QUEUE).output


def send(app: Celery, queue: str, count: int, algorithm: str = "q_learning") -> None:
    """Publish tasks as if a router of another process had sent them there."""
    header = TaskHeader("d1", queue, algorithm, "train", 1.7e9, service_seconds=2.0)
    with Celery("plain", broker=app.conf.broker_url, set_as_current=False) as plain:
        for _ in range(count):
            plain.send_task("proj.train", queue=queue, headers={"owl": header.encode()})


def depths(app: Celery) -> dict[str, int]:
    broker = open_broker(app)
    found = broker.depths([QUEUE, OTHER, "celery"])
    broker.close()
    return found


@on_both
def test_what_we_sent_to_a_drained_queue_moves_and_what_names_it_stays(
    app: Celery, parts: Parts, controller: Running
) -> None:
    send(app, QUEUE, 5)
    send(app, QUEUE, 1, algorithm="user")
    app.send_task("proj.plain", queue=QUEUE)

    run(app, drain, QUEUE)

    expected = {QUEUE: 2, OTHER: 5, "celery": 0}
    wait_until(lambda: depths(app) == expected, "the routed tasks to move")
    send(app, QUEUE, 1)  # By a producer that does not know it yet.
    wait_until(lambda: depths(app) == {**expected, OTHER: 6}, "the late one to follow")
    wait_until(lambda: health(parts).counters.get("tasks_drained") == 6, "the counter")
    assert health(parts).troubles == {}


@on_both
def test_a_queue_whose_workers_are_gone_can_be_emptied(
    app: Celery, parts: Parts, controller: Running, message_broker: MessageBroker
) -> None:
    gone = "gpu.gone.0"
    message_broker.declare(gone)
    send(app, gone, 2)
    send(app, gone, 1, algorithm="user")
    parts.state.client.hincrby(parts.state.keys.assigned_count, gone, 2)

    result = run(app, drain, gone, "--wait", "--timeout", "4")

    assert "After 4 s 1 tasks wait" in result.output
    assert sum(depths(app).values()) == 2
    assert depths(app)["celery"] == 0
    message_broker.take(gone)
    assert run(app, drain, gone, "--wait").output.endswith(f"Nothing waits or runs in {gone}.\n")


def test_foreign_memory_closes_a_queue_to_what_needs_more_and_to_nothing_else(
    app: Celery, parts: Parts, controller: Running
) -> None:
    need, client = 10 * 2**30, parts.state.client
    for number in range(20):
        for kind, peak in (("large", need), ("small", 2**30)):
            outcome = Outcome(
                f"{kind}{number}", f"d{kind}{number}", 0, kind, 1.0, QUEUE, "gpu0@a", "V100",
                TryState.SUCCESS, 1.0, 1.7e9, peak_memory_bytes=peak,
            )  # fmt: skip
            client.xadd(parts.state.keys.events, {"e": encode_event(outcome)})

    def sent(kind: str) -> set[str]:
        parts.sync.flush()
        routes = [parts.router(kind, (), {}, {}) for _ in range(20)]
        return {route["queue"].name if route else "celery" for route in routes}

    def free(queue: str, free_bytes: int, own_bytes: int = 0) -> None:
        memory: dict[str, Any] = {"memory_total_bytes": 16 * 2**30, "memory_free_bytes": free_bytes}
        beat(parts, queue, **memory, memory_own_bytes=own_bytes)

    # Our own process keeps the memory of its last task; the other GPU is taken by somebody else.
    free(QUEUE, 4 * 2**30, own_bytes=12 * 2**30)
    free(OTHER, 4 * 2**30)
    wait_until(lambda: sent("large") == {QUEUE}, "one queue to be closed to large tasks")
    assert sent("small") == {QUEUE, OTHER}
    free(OTHER, 16 * 2**30)
    wait_until(lambda: sent("large") == {QUEUE, OTHER}, "it to be open again")


@on_both
def test_without_another_open_queue_tasks_move_to_the_default_queue(
    app: Celery, parts: Parts, controller: Running
) -> None:
    beat(parts, OTHER, draining=True)
    wait_until(lambda: closed_queues(parts) == [OTHER], "the other queue to close")
    send(app, QUEUE, 3)

    run(app, drain, QUEUE)

    wait_until(lambda: depths(app) == {QUEUE: 0, OTHER: 0, "celery": 3}, "the tasks to move")


def test_waiting_ends_when_nothing_waits_or_runs(
    app: Celery, parts: Parts, controller: Running
) -> None:
    result = run(app, drain, QUEUE, "--wait", "--timeout", "20")

    assert result.exit_code == 0
    assert f"Nothing waits or runs in {QUEUE}." in result.output


def test_waiting_gives_up_and_says_what_is_left(
    app: Celery, parts: Parts, controller: Running
) -> None:
    begun = Started("t1", "d1", 0, "train", QUEUE, "gpu0@a", "V100", 60.0)
    parts.state.client.xadd(parts.state.keys.events, {"e": encode_event(begun)})
    wait_until(lambda: queue_load(parts.state, QUEUE).running_count == 1, "the running task")

    result = run(app, drain, QUEUE, "--wait", "--timeout", "0.2")

    assert result.exit_code == 1
    assert "0 tasks wait" in result.output
    assert "1 run." in result.output


def test_without_a_controller_a_drain_warns(app: Celery, parts: Parts) -> None:
    parts.state.client.sadd(parts.state.keys.drained, QUEUE)

    result = run(app, drain, QUEUE)

    assert result.exit_code == 0
    assert "No controller is active" in result.stderr


@pytest.mark.parametrize(
    ("command", "arguments"), [(mode, []), (drain, [QUEUE]), (resume, [QUEUE])]
)
def test_what_is_missing_is_said_in_a_sentence(command: Command, arguments: list[str]) -> None:
    without = run(None, command, *arguments)
    assert without.exit_code == 2
    assert f"celery -A proj owl {command.name}" in without.output

    app = Celery("proj", broker="redis://127.0.0.1:1/0", set_as_current=False)
    install(app)
    result = run(app, command, *arguments)
    uninstall(app)
    assert result.exit_code == 1
    assert "Redis does not answer" in result.output
    assert "Traceback" not in result.output
