"""A controller in a process of its own, to be killed: ``python -m tests.controller_process``."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from celery import Celery

from owl_celery.brokers import open_broker
from owl_celery.brokers.base import BlindBroker, Broker
from owl_celery.controller.controller import Controller
from owl_celery.redis_state import open_state
from owl_celery.settings import Settings

NAMESPACE = "test"


def controller_settings(redis_url: str, folder: Path, **fields: Any) -> Settings:
    """Settings of a controller that notices a dead one soon."""
    fields = {"lease_seconds": 1.0, "namespace": NAMESPACE, "seed": 1, **fields}
    return Settings.load(redis_url=redis_url, continuous_learning_storage_path=folder, **fields)


def start_controller(redis_url: str, folder: Path, *broker: str) -> subprocess.Popen[bytes]:
    """Start one; TERM stops it cleanly.

    Parameters
    ----------
    broker
        Address of the broker, and namespace of the application; without them it sees no broker.

    """
    command = [sys.executable, "-m", "tests.controller_process", redis_url, str(folder), *broker]
    return subprocess.Popen(command)


def main(redis_url: str, folder: str, broker_url: str = "", namespace: str = NAMESPACE) -> None:
    """Run one until TERM."""
    settings = controller_settings(redis_url, Path(folder), namespace=namespace)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    broker: Broker = BlindBroker()
    if broker_url:
        broker = open_broker(Celery("proj", broker=broker_url, set_as_current=False))
    Controller(open_state(settings, "", "test"), broker, settings).run(stop)


if __name__ == "__main__":
    main(*sys.argv[1:])
