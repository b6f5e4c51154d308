"""The one line: what it adds, what it leaves alone, and that taking it back restores Celery."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery, signals
from celery.app.routes import MapRoute

from owl_celery import LearningRouterMixin, install
from owl_celery.errors import OwlError, SettingsError
from owl_celery.installation import installation_of, parts_of, uninstall
from owl_celery.redis_address import RedisAddress

BROKER = "redis://127.0.0.1:1/0"
MakeApp = Callable[..., Celery]


@pytest.fixture
def make_app() -> Iterator[MakeApp]:
    """Make applications that are taken apart after the test."""
    made: list[Celery] = []

    def make(name: str = "proj", broker: str = BROKER, **conf: Any) -> Celery:
        app = Celery(name, broker=broker, set_as_current=False)
        app.conf.update(conf)
        made.append(app)
        return app

    yield make
    for app in made:
        uninstall(app)
        app.close()


def installation_error(app: Celery) -> OwlError | None:
    """Why the application was left with plain Celery."""
    try:
        return installation_of(app).error
    except OwlError as error:
        return error


def sent_to(app: Celery, name: str, **options: Any) -> str:
    """Name the queue that Celery's own machinery would send a task to."""
    return str(app.amqp.router.route(options, name)["queue"].name)


def test_returns_the_application_and_a_second_call_changes_nothing(make_app: MakeApp) -> None:
    app = make_app()
    assert install(app) is app
    parts, routes, steps = parts_of(app), list(app.conf.task_routes), set(app.steps["worker"])
    assert install(app) is app
    assert parts_of(app) is parts
    assert app.conf.task_routes == routes
    assert set(app.steps["worker"]) == steps


def test_removing_it_restores_celery(make_app: MakeApp) -> None:
    route = {"mine": {"queue": "by.user"}}
    plain, app = make_app("plain", task_routes=route), make_app(task_routes=route)
    receivers = len(signals.task_prerun.receivers)
    install(app)
    parts_of(app)
    uninstall(app)
    for name in ("mine", "other"):
        assert sent_to(app, name) == sent_to(plain, name)
    assert app.conf.task_routes == [route]
    assert len(signals.task_prerun.receivers) == receivers
    assert app.steps["worker"] == plain.steps["worker"]


def test_the_users_routes_come_first(make_app: MakeApp) -> None:
    app = make_app(task_routes={"mine": {"queue": "by.user"}})
    install(app)
    router = parts_of(app).router
    assert sent_to(app, "mine") == "by.user"
    assert app.conf.task_routes[-1] is router
    assert isinstance(app.amqp.router.routes[0], MapRoute)
    assert router.fallbacks.total() == 0


def test_before_a_view_has_arrived_tasks_go_to_the_default_queue(make_app: MakeApp) -> None:
    app = install(make_app(task_default_queue="work"))
    assert sent_to(app, "other") == "work"
    assert parts_of(app).router.fallbacks["no_view"] == 1


def test_works_before_the_application_is_configured(make_app: MakeApp) -> None:
    app = Celery("late", set_as_current=False)
    install(app)
    app.config_from_object({"broker_url": BROKER, "owl_exploration_rate": 0.05})
    try:
        assert parts_of(app).settings.exploration_rate == 0.05
        assert parts_of(app).router in app.conf.task_routes
    finally:
        uninstall(app)
        app.close()


def test_works_after_routes_were_used(make_app: MakeApp) -> None:
    app = make_app()
    assert sent_to(app, "other") == "celery"
    install(app)
    assert parts_of(app).router in app.amqp.router.routes


def test_arguments_win_over_environment_over_configuration(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OWL_LEARNING_RATE", "0.3")
    monkeypatch.setenv("OWL_EXPLORATION_RATE", "0.4")
    app = make_app(owl_learning_rate=0.5, owl_seed=7)
    settings = parts_of(install(app, exploration_rate=0.6)).settings
    assert (settings.exploration_rate, settings.learning_rate, settings.seed) == (0.6, 0.3, 7)


@pytest.mark.parametrize("arguments", [{"exploration_rate": 2}, {"explore": 1}, {"policy": "no"}])
def test_a_bad_argument_is_refused_at_once(make_app: MakeApp, arguments: dict[str, Any]) -> None:
    app = make_app()
    with pytest.raises(SettingsError, match=f"(?i){next(iter(arguments))}"):
        install(app, **arguments)
    assert sent_to(app, "other") == "celery"
    assert app.conf.task_routes is None


@pytest.mark.parametrize(
    ("name", "value"),
    [("EXPLORATION_RATE", "7"), ("OWL_POLICY", "oracle"), ("REDIS_URL", "http://localhost")],
)
def test_a_bad_environment_leaves_plain_celery_and_one_log_line(
    make_app: MakeApp,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
    value: str,
) -> None:
    monkeypatch.setenv(name, value)
    app = install(make_app())
    assert sent_to(app, "other") == "celery"
    assert not app.conf.task_routes
    (record,) = caplog.records
    assert name.removeprefix("OWL_") in record.getMessage()
    with pytest.raises(SettingsError, match=name.removeprefix("OWL_")):
        parts_of(app)


def test_another_broker_needs_a_redis_for_the_state(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    app = install(make_app(broker="memory://"))
    assert sent_to(app, "other") == "celery"
    assert "REDIS_URL" in caplog.text
    with_redis = install(make_app("two", broker="memory://"), redis_url=BROKER)
    assert parts_of(with_redis).state.address == RedisAddress.of_url(BROKER)


@pytest.mark.parametrize("broker", [[f"{BROKER}", "redis://b/0"], f"{BROKER};redis://b/0"])
def test_the_first_of_several_brokers_keeps_the_state(
    make_app: MakeApp, broker: str | list[str]
) -> None:
    app = Celery("several", set_as_current=False)
    app.conf.broker_url = broker
    try:
        options = parts_of(install(app)).state.address.options
        assert (options["host"], options["port"]) == ("127.0.0.1", 1)
    finally:
        uninstall(app)
        app.close()


def test_where_workers_read_is_where_the_state_is(make_app: MakeApp) -> None:
    app = make_app(broker_read_url="redis://reads:3/0", broker_write_url="redis://writes:4/0")
    assert parts_of(install(app)).state.address.options["host"] == "reads"


def test_whatever_goes_wrong_leaves_plain_celery(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(LearningRouterMixin):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            raise ZeroDivisionError

    app = install(make_app(), router_class=Broken)
    assert sent_to(app, "other") == "celery"
    assert "not installed" in caplog.text
    with pytest.raises(OwlError, match="ZeroDivisionError"):
        parts_of(app)


def test_a_setting_that_was_corrected_is_forgiven(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPLORATION_RATE", "7")
    app = install(make_app())
    assert installation_error(app) is not None
    monkeypatch.setenv("EXPLORATION_RATE", "0.1")
    assert parts_of(install(app)).settings.exploration_rate == 0.1


def test_switched_off_needs_no_redis(make_app: MakeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENABLE_CONTINUOUS_LEARNING", "false")
    app = install(make_app(broker="memory://"))
    assert sent_to(app, "other") == "celery"
    assert installation_of(app).error is None


def test_switched_off_adds_no_route(make_app: MakeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENABLE_CONTINUOUS_LEARNING", "false")
    app = install(make_app())
    assert sent_to(app, "other") == "celery"
    assert not app.conf.task_routes
    assert installation_of(app).error is None
    with pytest.raises(OwlError, match="ENABLE_CONTINUOUS_LEARNING"):
        parts_of(app)


def test_an_application_without_the_line_is_told_so(make_app: MakeApp) -> None:
    with pytest.raises(OwlError, match=r"install\(app\)"):
        parts_of(make_app())


def test_routes_assigned_later_are_noticed_once(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app("dropped")
    install(app)
    parts_of(app)
    app.conf.task_routes = {}
    for _ in range(3):
        signals.before_task_publish.send(sender="other", headers={}, routing_key="celery")
    assert [r.getMessage() for r in caplog.records if "task_routes" in r.getMessage()]
    assert sum("task_routes" in r.getMessage() for r in caplog.records) == 1
    install(app)
    assert parts_of(app).router in app.conf.task_routes


def test_a_router_of_ones_own(make_app: MakeApp) -> None:
    class Mine(LearningRouterMixin):
        pass

    assert type(parts_of(install(make_app(), router_class=Mine)).router) is Mine


def test_queues_stay_off_celerys_list(make_app: MakeApp) -> None:
    # A worker without -Q consumes every queue on that list.
    app = install(make_app())
    before = set(app.amqp.queues)
    router = parts_of(app).router
    assert router.queue("gpu.a.0").name == "gpu.a.0"
    assert set(app.amqp.queues) == before


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_queues_are_declared_as_celery_declares_them(make_app: MakeApp, kind: str) -> None:
    # RabbitMQ refuses any other declaration, and the task could not be sent.
    app = make_app(task_queue_max_priority=10, task_create_missing_queue_type=kind)
    install(app)
    made: Any = parts_of(app).router.queue("gpu.a.0")
    assert made.as_dict() == app.amqp.queues["gpu.a.0"].as_dict()


def test_two_applications_have_their_own_parts(make_app: MakeApp) -> None:
    one, two = install(make_app("one")), install(make_app("two"))
    assert parts_of(one).state.keys.namespace == "one"
    assert parts_of(two).state.keys.namespace == "two"
    assert parts_of(one).router is not parts_of(two).router
