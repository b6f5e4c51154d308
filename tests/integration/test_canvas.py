"""Every program of Celery's canvas gives with ``install(app)`` what it gives without.

Celery's own integration tests are not in its distribution; these are written from its
documentation.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, chain, chord, group
from celery.beat import ScheduleEntry, Scheduler
from celery.canvas import StampingVisitor
from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import GroupResult
from celery.schedules import schedule

from owl_celery.embedded import EmbeddedRedis
from owl_celery.installation import parts_of, uninstall
from tests.integration.canvas_app import ROUTED, make_app
from tests.message_broker import MessageBroker

pytestmark = [pytest.mark.integration, pytest.mark.slow]

WAIT_SECONDS = 20.0
Program = Callable[[Celery], Any]


def task(app: Celery, name: str) -> Any:
    """Find a task, typed loosely as Celery is."""
    return app.tasks[name]


def get(result: Any) -> Any:
    """Wait for a result; an error is a result too."""
    value = result.get(timeout=WAIT_SECONDS, propagate=False)
    return repr(value) if isinstance(value, BaseException) else value


def noted(app: Celery, key: str, count: int) -> list[str]:
    """Wait for so many notes under a key."""
    deadline = time.monotonic() + WAIT_SECONDS
    while len(notes := app.backend.client.lrange(key, 0, -1)) < count:
        assert time.monotonic() < deadline, f"only {notes} of {count} notes"
        time.sleep(0.02)
    app.backend.client.delete(key)
    return sorted(note.decode() for note in notes)


def linked(app: Celery) -> Any:
    task(app, "add").apply_async((1, 2), link=task(app, "note").s("linked"))
    return noted(app, "linked", 1)


def linked_error(app: Celery) -> Any:
    app.backend.client.delete("errors")
    error = get(task(app, "fail").apply_async(link_error=task(app, "count_errors").s()))
    deadline = time.monotonic() + WAIT_SECONDS
    while app.backend.client.get("errors") is None and time.monotonic() < deadline:
        time.sleep(0.02)
    return error, app.backend.client.get("errors")


def revoked(app: Celery) -> Any:
    result = task(app, "add").apply_async((1, 2), countdown=1.5)
    app.control.revoke(result.id)
    return get(result)


def terminated(app: Celery) -> Any:
    result = task(app, "wait").delay("begun")
    began = noted(app, "begun", 1)
    app.control.revoke(result.id, terminate=True, signal="SIGKILL")
    error = get(result)
    # The reason is that of the last worker that heard of it, also of those which did not run it.
    reason = error in ("TaskRevokedError('terminated')", "TaskRevokedError('revoked')")
    # It is not tried again, and the next one is served.
    return began, reason, get(task(app, "add").delay(1, 2)), app.backend.client.llen("begun")


def revoked_by_stamp(app: Celery) -> Any:
    signature = task(app, "add").s(1, 2)
    signature.stamp(owner="revoked")
    app.control.revoke_by_stamped_headers({"owner": "revoked"})
    result = signature.apply_async(countdown=1.0)
    return get(result)


def rejected(app: Celery) -> Any:
    task(app, "reject").delay("rejected")
    once = get(task(app, "reject_once").delay("tried"))
    app.backend.client.delete("tried")
    return noted(app, "rejected", 1), once


def custom_state(app: Celery) -> Any:
    result = task(app, "ignore").delay()
    deadline = time.monotonic() + WAIT_SECONDS
    while result.state == "PENDING" and time.monotonic() < deadline:
        time.sleep(0.02)
    return result.state, result.info


def chord_with_errbacks(app: Celery) -> Any:
    app.backend.client.delete("errors")
    body = task(app, "total").s().on_error(task(app, "count_errors").s())
    error = get(chord([task(app, "add").s(1, 1), task(app, "fail").s()])(body))
    deadline = time.monotonic() + WAIT_SECONDS
    while app.backend.client.get("errors") is None and time.monotonic() < deadline:
        time.sleep(0.02)
    return error.split("(")[0], app.backend.client.get("errors")


def chain_with_errback(app: Celery) -> Any:
    app.backend.client.delete("errors")
    add, fail = task(app, "add"), task(app, "fail")
    steps = chain(add.s(1, 1), fail.si(), add.si(1, 1))
    error = get(steps.apply_async(link_error=task(app, "count_errors").s()).parent)
    deadline = time.monotonic() + WAIT_SECONDS
    while app.backend.client.get("errors") is None and time.monotonic() < deadline:
        time.sleep(0.02)
    return error, app.backend.client.get("errors")


def saved_group(app: Celery) -> Any:
    result = group(task(app, "add").s(i, i) for i in range(3)).apply_async()
    result.save()
    restored = GroupResult.restore(result.id, app=app)
    return restored.join(timeout=WAIT_SECONDS), restored.successful(), restored.completed_count()


def graph(app: Celery) -> Any:
    result = chain(task(app, "add").s(1, 1), task(app, "add").s(2)).apply_async()
    return get(result), get(result.parent), [value for _, value in result.parent.collect()]


class Owner(StampingVisitor):  # type: ignore[misc]
    """Stamps each signature with its task."""

    def on_signature(self, sig: Any, **headers: Any) -> dict[str, Any]:
        return {"of": sig.task, "stamped_headers": ["of"]}


def stamped_canvas(app: Celery) -> Any:
    stamps = task(app, "stamps")
    canvas = chain(group(stamps.s(), stamps.s()), stamps.s())
    canvas.stamp(visitor=Owner())
    replaced = task(app, "retry_stamps").s()
    replaced.stamp(visitor=Owner(), append_stamps=True)
    return get(canvas.apply_async()), get(replaced.apply_async())


def expired(app: Celery) -> Any:
    result = task(app, "add").apply_async((1, 2), expires=datetime.now(UTC) - timedelta(hours=1))
    return get(result)


def ignored(app: Celery) -> Any:
    result = task(app, "note").apply_async((1, "ignored"), ignore_result=True)
    notes = noted(app, "ignored", 1)
    try:
        return notes, result.get(timeout=0.3)
    except CeleryTimeoutError:
        return notes, "no result"


def given_id(app: Celery) -> Any:
    name = f"given-{time.monotonic_ns()}"
    return task(app, "add").apply_async((1, 1), task_id=name).id == name


def stamped(app: Celery) -> Any:
    signature = task(app, "echo_headers").s()
    signature.stamp(owner="me")
    return get(signature.apply_async(headers={"mine": "kept"}))


def beat(app: Celery) -> Any:
    entry = ScheduleEntry(
        name="sum", task="add", args=(1, 2), schedule=schedule(timedelta(hours=1)), app=app
    )
    return get(Scheduler(app=app, lazy=True).apply_async(entry, advance=False))


def eager(app: Celery) -> Any:
    app.conf.task_always_eager = True
    try:
        return get(chain(task(app, "add").s(1, 1), task(app, "add").s(2)).apply_async())
    finally:
        app.conf.task_always_eager = False


PROGRAMS: dict[str, Program] = {
    "apply_async": lambda app: get(task(app, "add").apply_async((1, 2))),
    "delay": lambda app: get(task(app, "add").delay(1, 2)),
    "send_task": lambda app: get(app.send_task("add", (1, 2))),
    "signature": lambda app: get(app.signature("add", (1, 2)).apply_async()),
    "group": lambda app: get(group(task(app, "add").s(i, i) for i in range(5)).apply_async()),
    "chain": lambda app: get(
        chain(task(app, "add").s(1, 1), task(app, "add").s(2), task(app, "add").s(3)).apply_async()
    ),
    "chain of a group": lambda app: get(
        chain(
            task(app, "add").s(1, 1), group(task(app, "add").s(i) for i in range(3))
        ).apply_async()
    ),
    "chord": lambda app: get(
        chord([task(app, "add").s(i, i) for i in range(5)])(task(app, "total").s())
    ),
    "group upgraded to a chord": lambda app: get(
        chain(
            group(task(app, "add").s(i, 1) for i in range(4)), task(app, "total").s()
        ).apply_async()
    ),
    "failing chord": lambda app: get(
        chord([task(app, "add").s(1, 1), task(app, "fail").s()])(task(app, "total").s())
    ).split("(")[0],
    "failing chain": lambda app: get(
        chain(task(app, "fail").si(), task(app, "add").si(1, 1)).apply_async().parent
    ),
    "map": lambda app: get(task(app, "total").map([[1, 2], [3, 4]]).apply_async()),
    "starmap": lambda app: get(task(app, "add").starmap([(1, 2), (3, 4)]).apply_async()),
    "chunks": lambda app: get(task(app, "add").chunks([(i, i) for i in range(6)], 2).apply_async()),
    "link": linked,
    "link_error": linked_error,
    "countdown": lambda app: get(task(app, "add").apply_async((1, 2), countdown=0.2)),
    "eta": lambda app: get(
        task(app, "add").apply_async((1, 2), eta=datetime.now(UTC) + timedelta(seconds=0.2))
    ),
    "expired": expired,
    "revoked": revoked,
    "ignore_result": ignored,
    "given task id": given_id,
    "retry": lambda app: get(task(app, "try_again").delay(2)),
    "retries exhausted": lambda app: get(task(app, "try_again").delay(9)).split(" ")[0],
    "autoretry_for": lambda app: get(task(app, "auto").delay()),
    "retry to a queue": lambda app: get(task(app, "retry_elsewhere").delay()),
    "retry of an explicit queue": lambda app: get(
        task(app, "retry_pinned").apply_async(queue="by.user")
    ),
    "retry with its own error": lambda app: get(task(app, "retry_with_error").delay()),
    "retry with other arguments": lambda app: get(task(app, "retry_with_others").delay(1)),
    "dont_autoretry_for": lambda app: get(task(app, "auto_no").delay()),
    "revoked while it runs": terminated,
    "revoked by its stamp": revoked_by_stamp,
    "rejected": rejected,
    "ignored, with a state of its own": custom_state,
    "soft time limit": lambda app: get(task(app, "hurried").delay()),
    "hard time limit": lambda app: get(task(app, "cut_off").delay()),
    "chord with errbacks": chord_with_errbacks,
    "chain with an errback": chain_with_errback,
    "group saved and restored": saved_group,
    "results of a chain": graph,
    "stamped canvas": stamped_canvas,
    "group of chains": lambda app: get(
        group(
            chain(task(app, "add").s(i, 1), task(app, "add").s(10)) for i in range(3)
        ).apply_async()
    ),
    "chord of chains": lambda app: get(
        chord(
            [chain(task(app, "add").s(i, 1), task(app, "add").s(10)) for i in range(3)],
            task(app, "total").s(),
        ).apply_async()
    ),
    "chain of chords": lambda app: get(
        chain(
            group(task(app, "add").s(i, 1) for i in range(2)),
            task(app, "total").s(),
            group(task(app, "add").s(i) for i in range(2)),
            task(app, "total").s(),
        ).apply_async()
    ),
    "groups in a group": lambda app: get(
        group(
            task(app, "add").s(1, 1), group(task(app, "add").s(2, 2), task(app, "add").s(3, 3))
        ).apply_async()
    ),
    "chord of one": lambda app: get(chord([task(app, "add").s(1, 1)])(task(app, "total").s())),
    "chord in a chord": lambda app: get(
        chord(
            [chord([task(app, "add").s(i, i) for i in range(2)], task(app, "total").s())] * 2,
            task(app, "total").s(),
        ).apply_async()
    ),
    "chord that grows": lambda app: get(
        chord([task(app, "add_to_chord").s(2)])(task(app, "total").s())
    ),
    "replaced by a chain": lambda app: get(task(app, "become_chain").delay(1)),
    "replaced by a group": lambda app: get(task(app, "become_group").delay(1)),
    "replaced inside a chain": lambda app: get(
        chain(task(app, "become_chain").s(1), task(app, "add").s(100)).apply_async()
    ),
    "map of a chain": lambda app: get(
        chain(task(app, "total").map([[1, 2], [3]]), task(app, "total").s()).apply_async()
    ),
    "replace": lambda app: get(task(app, "become").delay(1, 2)),
    "headers and stamps": stamped,
    "request": lambda app: get(task(app, "give_back").apply_async(priority=5, shadow="other")),
    "explicit queue": lambda app: get(task(app, "where").apply_async(queue="by.user")),
    "the user's own route": lambda app: get(task(app, "user_routed").delay()),
    "beat": beat,
    "eager": eager,
}


@pytest.fixture(scope="module", params=["redis", "rabbitmq"])
def brokers(request: pytest.FixtureRequest) -> Iterator[dict[str, MessageBroker]]:
    """A broker for each of the two applications."""
    with ExitStack() as stack:
        brokers = {}
        for kind in ("plain", "routed"):
            url = stack.enter_context(EmbeddedRedis()).url
            brokers[kind] = MessageBroker(url, url)
            if request.param == "rabbitmq":
                server = request.getfixturevalue("rabbit_server")
                address = stack.enter_context(server.virtual_host())
                brokers[kind] = MessageBroker(url, address, server)
        yield brokers


@pytest.fixture(scope="module")
def apps(
    brokers: dict[str, MessageBroker], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Celery]]:
    """The two applications, each with running workers."""
    folder = tmp_path_factory.mktemp("canvas")
    module = [sys.executable, "-m", "celery", "-A", "tests.integration.canvas_app"]
    commands = {
        "plain": [*module, "worker", "-c", "1", "-Q", "celery,by.user", "-l", "WARNING"],
        "routed": [*module, "owl", "worker", "--simulate", "k80=1,v100=1", "-l", "WARNING"],
    }
    # Nothing of ours consumes a queue that a user names; the users' own worker does.
    commands["user"] = [*module, "worker", "-c", "1", "-Q", "by.user", "-n", "user@%h"]
    processes: list[subprocess.Popen[bytes]] = []
    made = {
        kind: make_app(broker.url, broker.redis_url, is_routed=kind == "routed")
        for kind, broker in brokers.items()
    }
    try:
        for kind, command in commands.items():
            is_routed = kind != "plain"
            environment = {
                **os.environ,
                **brokers["routed" if is_routed else "plain"].environment(),
                ROUTED: str(int(is_routed)),
                "OWL_CONTINUOUS_LEARNING_STORAGE_PATH": str(folder / "learned"),
            }
            with (folder / f"{kind}.log").open("wb") as log:
                processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
        wait_for_queues(made["routed"], folder)
        yield made
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(timeout=30.0)
        uninstall(made["routed"])
        for app in made.values():
            app.close()


def wait_for_queues(app: Celery, folder: Path) -> None:
    """Wait until the producer sees both queues."""
    sync, deadline = parts_of(app).sync, time.monotonic() + 60.0
    while (snapshot := sync.snapshot()) is None or snapshot.fleet.is_open.sum() < 2:
        assert time.monotonic() < deadline, (folder / "routed.log").read_text()
        time.sleep(0.05)


@pytest.mark.parametrize("name", PROGRAMS)
def test_gives_what_plain_celery_gives(apps: dict[str, Celery], name: str) -> None:
    plain, routed = (PROGRAMS[name](apps[kind]) for kind in ("plain", "routed"))
    assert json.dumps(routed, default=str) == json.dumps(plain, default=str)


def test_tasks_of_the_programs_were_routed(apps: dict[str, Celery]) -> None:
    where = task(apps["routed"], "where")
    assert {get(where.delay()) for _ in range(4)} <= {queue_name(apps, 0), queue_name(apps, 1)}
    assert sum(parts_of(apps["routed"]).router.decisions.values()) >= 4


def queue_name(apps: dict[str, Celery], row: int) -> str:
    snapshot = parts_of(apps["routed"]).sync.snapshot()
    assert snapshot is not None
    return snapshot.fleet.names[row]


def test_tasks_of_celery_itself_stay_on_the_default_queue(apps: dict[str, Celery]) -> None:
    router = parts_of(apps["routed"]).router
    assert router("celery.chord_unlock", (), {}, {}) is None
