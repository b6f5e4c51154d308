"""Keeps the metrics fresh in a thread of its own, and serves them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from owl_celery.brokers import open_broker
from owl_celery.brokers.base import BlindBroker
from owl_celery.exporter.collector import OwlCollector
from owl_celery.exporter.observed import Observed
from owl_celery.exporter.server import MetricsServer, Page
from owl_celery.exporter.tail import OutcomeTail
from owl_celery.exporter.text import exposition
from owl_celery.exporter.unserved import UnservedQueues
from owl_celery.overview import Overview
from owl_celery.redis_state import RedisState
from owl_celery.settings import Settings

log = logging.getLogger(__name__)

REFRESH_SECONDS: Final = 1.0
SHARE_OF_TIME: Final = 0.1
"""Most of one processor that refreshing takes: a large fleet is refreshed less often."""

RETRY_SECONDS: Final = 10.0
CLOSE_SECONDS: Final = 5.0
REDIS_VISIBILITY_TIMEOUT_SECONDS: Final = 3600.0
"""What kombu's Redis transport takes when nothing is configured."""


class Exporter:
    """Exports metrics from ``start`` to ``close``; nothing that fails here stops its process.

    Parameters
    ----------
    read
        Gives the overview.
    state
        Where the stream of outcomes is.
    settings
        Where to listen.
    visibility_timeout_seconds
        Of the broker; None when it has none.
    unserved
        Looks for tasks that nobody will take; nobody does when omitted.
    clock
        Monotonic seconds.

    """

    def __init__(
        self,
        read: Callable[[], Overview],
        state: RedisState,
        settings: Settings,
        visibility_timeout_seconds: float | None = None,
        unserved: UnservedQueues | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._observed = Observed()
        self._tail = OutcomeTail(state)
        self._unserved = unserved or UnservedQueues(state, BlindBroker(), "", clock)
        self._collector = OwlCollector(
            read,
            self._observed,
            visibility_timeout_seconds,
            self._unserved.counts,
            self._unserved.totals,
        )
        self._page = Page(clock)
        self._server: MetricsServer | None = None
        self._refresher: threading.Thread | None = None
        self._stop = threading.Event()
        self._has_failed = False
        self._is_refused = False

    @property
    def port(self) -> int | None:
        """Where it listens; None while somebody else does."""
        return None if self._server is None else self._server.server_port

    def start(self) -> None:
        """Begin; a port that is taken is logged, and tried again every ten seconds."""
        self._listen()
        self._refresher = threading.Thread(target=self._run, name="owl-exporter", daemon=True)
        self._refresher.start()

    def close(self) -> None:
        """End the threads and stop listening."""
        self._stop.set()
        if self._refresher is not None:
            self._refresher.join(timeout=CLOSE_SECONDS)
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
        self._unserved.close()

    def text(self) -> bytes:
        """What there is to export now; for the thread that refreshes, or when it has ended."""
        self._observed.add(self._tail.poll())
        return exposition(self._collector.collect())

    def _run(self) -> None:
        retry_at = self._clock() + RETRY_SECONDS
        while not self._stop.is_set():
            began = self._clock()
            try:
                self._page.write(self.text(), began)
                self._has_failed = False
            except Exception:
                # What is served grows old, which is a metric of its own.
                if not self._has_failed:
                    self._has_failed = True
                    log.exception("owl exporter: the metrics cannot be refreshed")
            ended = self._clock()
            if self._server is None and ended >= retry_at:
                retry_at = ended + RETRY_SECONDS
                self._listen()
            self._stop.wait(max(REFRESH_SECONDS, (ended - began) / SHARE_OF_TIME))

    def _listen(self) -> None:
        host, port = self._settings.metrics_host, self._settings.metrics_port
        try:
            server = MetricsServer(host, port, self._page)
        except (OSError, ValueError) as error:
            if not self._is_refused:
                self._is_refused = True
                log.error(
                    "owl exporter: nobody can listen on %s port %d (%s): set METRICS_PORT or "
                    "OWL_METRICS_HOST to another; all else goes on without metrics.",
                    host,
                    port,
                    getattr(error, "strerror", None) or error,
                )
            return
        self._server, self._is_refused = server, False
        threading.Thread(target=server.serve_forever, name="owl-metrics", daemon=True).start()
        log.info("owl exporter: metrics are on http://%s:%d/metrics", host, port)


def start_exporter(
    read: Callable[[], Overview], state: RedisState, settings: Settings, app: Any
) -> Exporter | None:
    """Start the exporter of an application, unless ``ENABLE_METRICS`` is false.

    Parameters
    ----------
    read
        Gives the overview.
    state
        Where the stream of outcomes is.
    settings
        Whether and where to listen.
    app
        The Celery application, whose broker holds the queues.

    """
    if not settings.enable_metrics:
        return None
    unserved = UnservedQueues(state, open_broker(app), app.conf.task_default_queue)
    exporter = Exporter(read, state, settings, visibility_timeout_seconds(app), unserved)
    exporter.start()
    return exporter


def visibility_timeout_seconds(app: Any) -> float | None:
    """Time after which the broker delivers a running task again; None for one that does not."""
    connection = app.connection_for_read()
    if connection.transport.driver_type != "redis":
        return None
    configured = connection.transport_options.get("visibility_timeout")
    try:
        return float(configured or REDIS_VISIBILITY_TIMEOUT_SECONDS)
    except (TypeError, ValueError):
        return None  # Celery says so when it connects.
