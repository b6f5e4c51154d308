"""A controller in a process of its own, to be killed: ``python -m tests.controller_process``."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from owl_celery.brokers.base import BlindBroker
from owl_celery.controller.controller import Controller
from owl_celery.redis_state import open_state
from owl_celery.settings import Settings

NAMESPACE = "test"


def controller_settings(redis_url: str, folder: Path, **fields: Any) -> Settings:
    """Settings of a controller that notices a dead one soon."""
    return Settings.load(
        redis_url=redis_url,
        continuous_learning_storage_path=folder,
        lease_seconds=1.0,
        namespace=NAMESPACE,
        seed=1,
        **fields,
    )


def start_controller(redis_url: str, folder: Path) -> subprocess.Popen[bytes]:
    """Start one; TERM stops it cleanly."""
    command = [sys.executable, "-m", "tests.controller_process", redis_url, str(folder)]
    return subprocess.Popen(command)


def main(redis_url: str, folder: str) -> None:
    """Run one until TERM."""
    settings = controller_settings(redis_url, Path(folder))
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    Controller(open_state(settings, "", "test"), BlindBroker(), settings).run(stop)


if __name__ == "__main__":
    main(*sys.argv[1:])
