"""The composition root: one line in a user's module turns plain Celery into routed Celery."""

from __future__ import annotations

import atexit
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from weakref import WeakKeyDictionary

from celery import Celery, signals
from kombu.entity import Queue

from owl_celery.controller.embed import make_controller_step
from owl_celery.errors import OwlError, SettingsError
from owl_celery.feedback import Feedback
from owl_celery.gpus import current_gpu
from owl_celery.heartbeat import make_heartbeat_step
from owl_celery.lane import add_worker_options, configure_lane
from owl_celery.outbox import Outbox
from owl_celery.policies import policy_class
from owl_celery.redis_address import is_redis
from owl_celery.redis_state import RedisState, open_state
from owl_celery.router import LearningRouter, LearningRouterMixin, retry_lost, stamp_published
from owl_celery.settings import Settings
from owl_celery.sync import ProducerSync

log = logging.getLogger(__name__)

STAMP_UID: Final = "owl-stamp-published"


@dataclass(frozen=True, slots=True)
class Parts:
    """What one configured application uses.

    Parameters
    ----------
    settings
        As read when the application was configured.
    state
        The Redis with load and learning state.
    router
        The router at the end of ``task_routes``.
    sync
        The load view of this process.
    outbox, feedback
        What reports outcomes in a worker.
    steps
        What was added to the worker's bootsteps.

    """

    settings: Settings
    state: RedisState
    router: LearningRouterMixin
    sync: ProducerSync
    outbox: Outbox
    feedback: Feedback
    steps: tuple[type, ...]


class Installation:
    """What ``install`` added to one application.

    Attributes
    ----------
    parts
        None until the application is configured, and when a setting cannot be used.
    error
        Why the application was left with plain Celery; None when it was not.

    """

    def __init__(
        self, app: Celery, router_class: type[LearningRouterMixin], arguments: Any
    ) -> None:
        self.app = app
        self.parts: Parts | None = None
        self.error: OwlError | None = None
        self._router_class = router_class
        self._arguments = arguments
        self._has_warned = False

    def configure(self, **_: Any) -> None:
        """Put the parts in place; again after every change of the whole configuration."""
        try:
            settings = Settings.load(self.app.conf, **self._arguments)
            policy_class(settings.policy)
            configure_lane(self.app)
            if self.parts is None and self._is_wanted(settings):
                self.parts = self._build(settings)
                self._connect(self.parts)
            if self.parts is not None and settings.enable_continuous_learning:
                self._add_route(self.parts.router)
            self.error = None
        except SettingsError as error:
            self.error = error
            log.error("owl: %s Until then Celery routes as if owl_celery were not there.", error)
        except Exception as error:
            self.error = OwlError(f"owl_celery could not be installed: {error!r}.")
            log.exception("owl: not installed; Celery routes as if owl_celery were not there.")

    def is_routed(self) -> bool:
        """Whether our router is among the routes, where it should be."""
        return (
            self.parts is None
            or not self.parts.settings.enable_continuous_learning
            or self.parts.router in routes_of(self.app)
        )

    def warn_if_dropped(self) -> None:
        """Say once that a later assignment of ``task_routes`` dropped our router."""
        if not self._has_warned and not self.is_routed():
            self._has_warned = True
            log.warning(
                "owl: app.conf.task_routes was assigned after install(app), which dropped the "
                "learned router; assign it before, or call install(app) again."
            )

    def _is_wanted(self, settings: Settings) -> bool:
        """Whether there is anything to do: without learning, only where a Redis is at hand."""
        has_redis = settings.redis_url or is_redis(broker_url_of(self.app))
        return settings.enable_continuous_learning or bool(has_redis)

    def _build(self, settings: Settings) -> Parts:
        app = self.app
        state = open_state(settings, broker_url_of(app), namespace_of(app), app.conf)
        gpu = current_gpu()
        sync = ProducerSync(state, settings)
        outbox = Outbox(state, settings)
        router = self._router_class(
            sync,
            settings,
            make_queue=self._make_queue,
            current_gpu_model=lambda: gpu.model,
            current_queue=lambda: gpu.queue,
        )
        feedback = Feedback(
            self.app,
            outbox,
            gpu,
            out_of_memory_errors=settings.out_of_memory_errors,
            on_start=sync.start,
        )

        # Also when nothing is learned: it drains the worker and ends it with its supervisor.
        def prepare_retry(queue: str) -> None:
            if settings.enable_continuous_learning:
                retry_lost(queue)
                sync.flush()

        steps: tuple[type, ...] = (
            make_heartbeat_step(state, settings, prepare_retry=prepare_retry),
        )
        if settings.embed_controller and settings.enable_continuous_learning:
            steps += (make_controller_step(state, settings),)
        return Parts(settings, state, router, sync, outbox, feedback, steps)

    def _connect(self, parts: Parts) -> None:
        self.app.steps["worker"].update(parts.steps)
        if parts.settings.enable_continuous_learning:
            signals.before_task_publish.connect(stamp_and_check, weak=False, dispatch_uid=STAMP_UID)
            parts.feedback.connect()
            atexit.register(parts.sync.close)
            atexit.register(parts.outbox.close)

    def _add_route(self, router: LearningRouterMixin) -> None:
        routes = routes_of(self.app)
        if router not in routes:
            self.app.conf.task_routes = [*routes, router]
            if "amqp" in self.app.__dict__:
                self.app.amqp.flush_routes()
                self.app.amqp.router = self.app.amqp.Router()

    def _make_queue(self, name: str) -> Queue:
        """Describe a queue as Celery would for ``-Q name``, but add it to no list.

        A worker without ``-Q`` consumes every queue on Celery's own list.
        """
        queues = self.app.amqp.queues
        known: Queue | None = dict.get(queues, name)
        if known is not None:
            return known
        made: Any = queues.new_missing(name)
        if queues.max_priority is not None:
            # As its list would: RabbitMQ refuses a queue that is declared otherwise than it is.
            arguments = {"x-max-priority": queues.max_priority}
            made.queue_arguments = {**arguments, **(made.queue_arguments or {})}
        queue: Queue = made
        return queue


_installations: WeakKeyDictionary[Celery, Installation] = WeakKeyDictionary()


def install(
    app: Celery,
    *,
    router_class: type[LearningRouterMixin] = LearningRouter,
    **settings: Any,
) -> Celery:
    """Route the tasks of an application by what is learned; a second call changes nothing.

    Call it at module level, once the application exists. The user's own ``task_routes`` come
    first, an explicit ``queue=`` always wins, and whatever fails leaves Celery's own routing.

    Parameters
    ----------
    app
        The Celery application.
    router_class
        A router of your own; see ``LearningRouterMixin``.
    settings
        Any field of ``Settings``; wins over the environment and ``app.conf.owl_...``.

    Returns
    -------
    Celery
        The same application.

    Raises
    ------
    SettingsError
        When one of these arguments cannot be used. What cannot be used in the environment or
        in ``app.conf`` is logged, and leaves plain Celery.

    Examples
    --------
    >>> app = Celery("proj", broker="redis://localhost")
    >>> install(app, exploration_rate=0.1) is app
    True

    """
    installation = _installations.get(app)
    if installation is None:
        Settings.check(settings)
        if "policy" in settings:
            policy_class(settings["policy"])
        installation = _installations[app] = Installation(app, router_class, settings)
        add_worker_options(app)
        app.on_after_configure.connect(installation.configure, weak=False)
    if app.configured:
        installation.configure()
    return app


def uninstall(app: Celery) -> None:
    """Give Celery back its own routing; for tests and for a console."""
    installation = _installations.pop(app, None)
    if installation is None:
        return
    app.on_after_configure.disconnect(installation.configure)
    if not _installations:
        signals.before_task_publish.disconnect(dispatch_uid=STAMP_UID)
    parts = installation.parts
    if parts is None:
        return
    app.steps["worker"].difference_update(parts.steps)
    parts.feedback.disconnect()
    parts.sync.close()
    parts.outbox.close()
    atexit.unregister(parts.sync.close)
    atexit.unregister(parts.outbox.close)
    app.conf.task_routes = [route for route in routes_of(app) if route is not parts.router]
    if "amqp" in app.__dict__:
        app.amqp.flush_routes()
        app.amqp.router = app.amqp.Router()


def installation_of(app: Celery) -> Installation:
    """Find what ``install`` added to an application, and configure it.

    Raises
    ------
    OwlError
        When ``install(app)`` was not called, or a setting cannot be used.

    """
    installation = _installations.get(app)
    if installation is None:
        raise OwlError(
            "This application is not routed: add install(app) from owl_celery to its module."
        )
    app.conf.broker_url  # noqa: B018 - reading a key configures the application
    if installation.error is not None:
        raise installation.error
    return installation


def parts_of(app: Celery) -> Parts:
    """Find what ``install`` made for an application.

    Raises
    ------
    OwlError
        As ``installation_of``, and when the settings disable it.

    """
    parts = installation_of(app).parts
    if parts is None or not parts.settings.enable_continuous_learning:
        raise OwlError("Setting ENABLE_CONTINUOUS_LEARNING is false: set it to true to use owl.")
    return parts


def stamp_and_check(sender: str | None = None, **published: Any) -> None:
    """Stamp the header; for ``before_task_publish`` of every application in the process."""
    try:
        if not stamp_published(sender=sender, **published):
            for installation in list(_installations.values()):
                installation.warn_if_dropped()
    except Exception:
        log.exception("owl: a task was published without the header owl")


def routes_of(app: Celery) -> list[Any]:
    """List ``task_routes`` in the order in which Celery asks them."""
    routes = app.conf.task_routes
    if routes is None:
        return []
    return list(routes) if isinstance(routes, list | tuple) else [routes]


def broker_url_of(app: Celery) -> str:
    """The broker that workers read from; several, among which Celery fails over, by semicolons."""
    url = app.conf.broker_read_url or app.conf.broker_url or ""
    return ";".join(map(str, url)) if isinstance(url, list | tuple) else str(url)


def namespace_of(app: Celery) -> str:
    """Name an application the same way in a script and in a worker that imports it."""
    main = app.main or "celery"
    if main == "__main__":
        path = getattr(sys.modules["__main__"], "__file__", None)
        main = Path(path).stem if path else "celery"
    return str(main)
