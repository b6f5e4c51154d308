"""Everything is killed by SIGKILL in the middle of the load and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from celery import Celery

from owl_celery.installation import install, parts_of, uninstall
from owl_celery.keys import Keys
from owl_celery.records import Knowledge, decode_record
from owl_celery.redis_state import RedisState
from owl_celery.settings import Settings
from owl_celery.simulate.table import gavel_table
from owl_celery.store import open_store
from owl_celery.testing import wait_until
from tests.message_broker import MessageBroker

pytestmark = [pytest.mark.integration, pytest.mark.slow]

NAMESPACE = "survival"
TASK = "workers.tasks.replay"
JOBS = ["ResNet-18 (batch size 16)", "Recommendation (batch size 512)"]
TASK_SECONDS = 0.3
COUNT = 60
WAIT_SECONDS = 90.0


class Stack:
    """Workers on two virtual GPUs, which host the controller, and a producer in this process."""

    def __init__(self, broker: MessageBroker, database: dict[str, str], folder: Path) -> None:
        redis_url = broker.redis_url
        self.settings = Settings(**database)  # type: ignore[arg-type]
        self.state = RedisState(redis_url, Keys(NAMESPACE))
        self.log = folder / "workers.log"
        self._environment = {
            **os.environ,
            "REDIS_URL": redis_url,
            "TEST_BROKER_URL": broker.url,
            "OWL_NAMESPACE": NAMESPACE,
            **{f"OWL_{name.upper()}": value for name, value in database.items()},
        }
        self.app = Celery("producer", broker=broker.url, backend=redis_url, set_as_current=False)
        install(self.app, namespace=NAMESPACE, redis_url=redis_url)

    @contextmanager
    def workers(self) -> Iterator[subprocess.Popen[bytes]]:
        """Run the workers; whatever is left of them in the end is told to stop."""
        command = [sys.executable, "-m", "celery", "-A", "tests.integration.survival_app"]
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [*command, "owl", "worker", "--simulate", "k80=1,v100=1"],
                env=self._environment,
                stdout=log,
                stderr=log,
            )
        try:
            yield process
        finally:
            process.terminate()
            process.wait(timeout=60.0)

    def publish(self, number: int) -> Any:
        """Send one task by the router."""
        job = JOBS[number % len(JOBS)]
        best_seconds = min(gavel_table().seconds_on(job, model) or 0.0 for model in ("k80", "v100"))
        return self.app.send_task(TASK, (job, 1.0, TASK_SECONDS / best_seconds))

    def learned(self) -> tuple[int, int]:
        """Tasks that the database has aggregates of, and raw outcomes of successes."""
        store = open_store(self.settings, NAMESPACE)
        try:
            types = store.load().aggregates.task_types
            outcomes = store.recent(10 * COUNT)
        finally:
            store.close()
        return sum(row.tries for row in types), len(outcomes)

    def completed(self) -> int:
        """Completions that the published knowledge rests on."""
        text = self.state.client.get(self.state.keys.knowledge)
        knowledge = decode_record(Knowledge, text) if isinstance(text, str) else None
        return int(knowledge.snapshot.get("completed", 0)) if knowledge else 0

    def wait(self, holds: Callable[[], bool], what: str) -> None:
        """Wait for a condition; when it does not come, show what the workers said."""
        try:
            wait_until(holds, what, seconds=WAIT_SECONDS)
        except AssertionError as error:
            raise AssertionError(f"{error}; the workers:\n{self.log.read_text()}") from None

    def sees_queues(self) -> bool:
        """Whether the producer sees both queues open, by a fresh view."""
        snapshot = parts_of(self.app).sync.snapshot()
        return (
            snapshot is not None
            and int(snapshot.fleet.is_open.sum()) == 2
            and time.monotonic() - snapshot.changed_at < 1.0
        )


@pytest.fixture(params=["sqlite", "postgres"])
def stack(
    message_broker: MessageBroker,
    postgres_url: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> Iterator[Stack]:
    if request.param == "sqlite":
        database = {"continuous_learning_storage_path": str(tmp_path / "learned")}
    else:
        database = {"database_url": postgres_url}
    stack = Stack(message_broker, database, tmp_path)
    yield stack
    uninstall(stack.app)
    stack.app.close()


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """Kill the supervisor, every worker, the controller in one of them, and every child."""
    victims = [psutil.Process(process.pid)]
    victims += victims[0].children(recursive=True)
    for victim in victims:
        try:
            victim.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue  # It ended with its parent.
    psutil.wait_procs(victims, timeout=10.0)


@pytest.mark.parametrize(
    ("stack", "message_broker"),
    [("sqlite", "redis"), ("postgres", "rabbitmq")],
    indirect=True,
)
def test_no_task_is_lost_and_what_was_learned_goes_on(stack: Stack) -> None:
    with stack.workers() as process:
        stack.wait(stack.sees_queues, "both queues")
        results = [stack.publish(number) for number in range(COUNT)]
        stack.wait(lambda: stack.completed() >= COUNT // 4, "learning")
        kill_all(process)
    tries_before, outcomes_before = stack.learned()
    assert tries_before == outcomes_before < COUNT
    with stack.workers():
        stack.wait(lambda: all(result.ready() for result in results), "every result")
        assert all(result.successful() for result in results)
        # All but the few whose outcome died with its worker are learned from once.
        stack.wait(lambda: stack.completed() >= COUNT - 2, "learning the rest")
    tries, outcomes = stack.learned()
    assert tries == outcomes
    assert COUNT - 2 <= tries <= COUNT + 2
    assert parts_of(stack.app).router.decisions.total() > COUNT // 2


def test_a_restart_continues_from_what_was_learned(stack: Stack) -> None:
    with stack.workers():
        stack.wait(stack.sees_queues, "both queues")
        for number in range(10):
            stack.publish(number)
        stack.wait(lambda: stack.completed() == 10, "learning")
    stack.state.client.delete(stack.state.keys.knowledge, stack.state.keys.events)
    with stack.workers():
        stack.wait(lambda: stack.completed() == 10, "restoring")
