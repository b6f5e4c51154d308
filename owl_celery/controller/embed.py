"""Host a controller in a worker parent: a thread that never hurts its worker."""

from __future__ import annotations

import logging
import threading
from typing import Any, Final

from celery import bootsteps

from owl_celery.brokers import open_broker
from owl_celery.controller.controller import Controller
from owl_celery.errors import SettingsError
from owl_celery.redis_state import RedisState
from owl_celery.settings import Settings

log = logging.getLogger(__name__)

STOP_SECONDS: Final = 8.0


def make_controller_step(state: RedisState, settings: Settings) -> type[bootsteps.StartStopStep]:
    """Make the worker bootstep that runs a controller; it leads when no other one does.

    Parameters
    ----------
    state
        Redis of load and learning state.
    settings
        Settings of the application.

    """

    class ControllerStep(bootsteps.StartStopStep):  # type: ignore[misc]
        """Runs a controller in a daemon thread of the worker parent."""

        # After the pool: no process is forked while the thread holds a lock.
        requires = ("celery.worker.components:Pool",)

        def __init__(self, parent: Any, **kwargs: Any) -> None:
            super().__init__(parent, **kwargs)
            self._stop = threading.Event()
            self._thread: threading.Thread | None = None

        def start(self, parent: Any) -> None:
            """Start the thread; a setting that cannot be used is logged."""
            try:
                controller = Controller(
                    state,
                    open_broker(parent.app),
                    settings,
                    name=str(parent.hostname),
                    default_queue=parent.app.conf.task_default_queue,
                )
            except SettingsError as error:
                log.error("owl: This worker hosts no controller. %s", error)
                return
            self._stop.clear()
            self._thread = threading.Thread(
                target=controller.run, args=(self._stop,), name="owl-controller", daemon=True
            )
            self._thread.start()

        def stop(self, parent: Any) -> None:
            """Give the lease back, waiting a few seconds at most."""
            thread, self._thread = self._thread, None
            self._stop.set()
            if thread is not None:
                thread.join(timeout=STOP_SECONDS)

    return ControllerStep
