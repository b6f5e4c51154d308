"""What the demo starts: a broker of its own and one worker for each virtual GPU."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from redis.exceptions import RedisError

from owl_celery.controller.health import Health
from owl_celery.embedded import open_redis
from owl_celery.errors import BrokerError, WorkerError
from owl_celery.guard import GuardedProcess
from owl_celery.keys import Keys
from owl_celery.records import FleetRecord, View, decode_record
from owl_celery.redis_state import RedisState
from owl_celery.redis_trouble import trouble_of
from owl_celery.settings import Settings, bare_names
from owl_celery.store import open_store
from owl_celery.types import Outcome

NAMESPACE: Final = "demo"
START_SECONDS: Final = 90.0
LAST_LINES: Final = 5
WORKER_BYTES: Final = 150 * 1024**2
"""Memory of one worker and its child, measured."""


@dataclass(frozen=True, slots=True)
class Stack:
    """The running parts.

    Parameters
    ----------
    broker_url
        Redis: broker, results and learning state.
    environment
        Variables that any other process of the application needs.
    state
        The same Redis, as the application uses it.
    folder
        Where what is learned is kept.

    """

    broker_url: str
    environment: Mapping[str, str]
    state: RedisState

    folder: Path

    def learned(self) -> str:
        """Say how much has been learned so far."""
        text = self.state.client.get(self.state.keys.health)
        health = Health.decode(text) if isinstance(text, str) else None
        learned = health.counters.get("outcomes", 0) if health else 0
        return f"learned from {learned} outcomes"

    def outcomes(self, limit: int) -> list[Outcome]:
        """The latest outcomes that were learned from, in order of finishing."""
        settings = Settings.load(continuous_learning_storage_path=self.folder)
        store = open_store(settings, NAMESPACE)
        try:
            return sorted(store.recent(limit), key=lambda outcome: outcome.finished_at)
        finally:
            store.close()

    def set_mode(self, mode: str) -> None:
        """Turn the kill switch: ``off`` makes it plain Celery."""
        self.state.client.set(self.state.keys.mode, mode)


def fit_fleet(fleet: Mapping[str, int], available_bytes: int | None) -> dict[str, int]:
    """Shrink a fleet, each model alike, to what the memory holds; one of each is the least.

    Examples
    --------
    >>> fit_fleet({"k80": 4, "v100": 4}, available_bytes=700 * 1024**2)
    {'k80': 2, 'v100': 2}

    """
    if available_bytes is None:
        return dict(fleet)
    share = min(available_bytes / (sum(fleet.values()) * WORKER_BYTES), 1.0)
    return {model: max(int(count * share), 1) for model, count in fleet.items()}


def available_bytes() -> int | None:
    """Memory that processes may still take; None where the system does not tell."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None


def forget_settings() -> None:
    """Run on our own defaults, whatever this shell says to another application.

    Its database, above all, is not to be learned into.
    """
    for name in list(os.environ):
        upper = name.upper()
        if upper.startswith("OWL_") or upper in bare_names() - {"REDIS_URL"}:
            del os.environ[name]


@contextmanager
def empty_broker() -> Iterator[str]:
    """Address of a Redis that holds nothing: ``REDIS_URL``, or one of our own.

    Raises
    ------
    BrokerError
        When there is no Redis, or the one that is named holds somebody's data.

    """
    with open_redis(Settings.load()) as url:
        try:
            is_used = RedisState(url, Keys(NAMESPACE)).client.dbsize() > 0
        except (RedisError, OSError) as error:
            raise BrokerError(
                "Setting REDIS_URL: "
                + trouble_of(error, "Unset it, and the demo starts one of its own.")
            ) from error
        if is_used:
            raise BrokerError(
                "Setting REDIS_URL names a Redis that holds data, and the demo's workers would "
                "take its tasks: unset it, or name an empty database, such as .../15."
            )
        yield url


@contextmanager
def running_stack(
    broker_url: str, fleet: Mapping[str, int], folder: Path, on_wait: Callable[[int], None]
) -> Iterator[Stack]:
    """Start the workers and wait until each has a queue; stop them in the end.

    Parameters
    ----------
    folder
        Takes the database.
    on_wait
        Called with the number of queues that are up, about five times a second.

    Raises
    ------
    WorkerError
        When the workers do not come up; the message has their last words.

    """
    environment = {
        "REDIS_URL": broker_url,
        "OWL_NAMESPACE": NAMESPACE,
        "OWL_CONTINUOUS_LEARNING_STORAGE_PATH": str(folder / "learned"),
        # At the end of the demo nothing waits that anybody would miss.
        "OWL_DRAIN_TIMEOUT_SECONDS": "0",
    }
    state = RedisState(broker_url, Keys(NAMESPACE))
    stack = Stack(broker_url, environment, state, folder / "learned")
    simulate = ",".join(f"{model}={count}" for model, count in fleet.items())
    command = [sys.executable, "-m", "celery", "-A", "workers.app", "owl", "worker"]
    # It ends with us, also when we are killed.
    workers = GuardedProcess([*command, "--simulate", simulate], env={**os.environ, **environment})
    try:
        deadline = time.monotonic() + START_SECONDS
        while (up := open_queues(stack.state)) < sum(fleet.values()):
            if not workers.is_running or time.monotonic() > deadline:
                last = "\n".join(workers.output().splitlines()[-LAST_LINES:])
                raise WorkerError(f"The demo's workers did not start. Their last words:\n{last}")
            on_wait(up)
            time.sleep(0.2)
        yield stack
    finally:
        workers.stop()


def open_queues(state: RedisState) -> int:
    """Count the queues that the controller says are open."""
    fleet_text, view_text = state.client.mget([state.keys.fleet, state.keys.view])
    record = decode_record(FleetRecord, fleet_text) if fleet_text else None
    view = decode_record(View, view_text) if view_text else None
    if record is None or view is None or record.version != view.fleet_version:
        return 0
    return len(record.names) - len(view.closed)
