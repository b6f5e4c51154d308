"""The exporter over HTTP: what it serves, and what it does when something is in its way."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import httpx
import pytest
from celery import Celery
from prometheus_client.parser import text_string_to_metric_families

from owl_celery.brokers import open_broker
from owl_celery.errors import SettingsError
from owl_celery.exporter import Exporter, start_exporter
from owl_celery.exporter import exporter as exporter_module
from owl_celery.exporter.exporter import visibility_timeout_seconds
from owl_celery.exporter.tail import OutcomeTail
from owl_celery.exporter.unserved import UnservedQueues
from owl_celery.keys import Keys
from owl_celery.metrics import METRICS
from owl_celery.overview import Overview, OverviewReader
from owl_celery.redis_address import RedisAddress
from owl_celery.redis_state import RedisState
from owl_celery.settings import Settings
from owl_celery.testing import wait_until
from owl_celery.types import Outcome
from owl_celery.wire import Started, encode_event
from tests.learning import outcome
from tests.overviews import overview
from tests.prometheus import free_port

pytestmark = pytest.mark.integration


@pytest.fixture
def state(redis_url: str) -> RedisState:
    return RedisState(redis_url, Keys("test"))


@contextmanager
def exporting(
    state: RedisState, read: Callable[[], Overview] = overview, **settings: Any
) -> Iterator[Exporter]:
    """Run an exporter on a port of its own."""
    settings = {"metrics_port": free_port(), **settings}
    exporter = Exporter(read, state, Settings.load(**settings))
    exporter.start()
    try:
        yield exporter
    finally:
        exporter.close()


def get(exporter: Exporter, path: str = "/metrics", **headers: str) -> httpx.Response:
    # Reading the certificates of the world takes longer than all the rest.
    return httpx.get(f"http://127.0.0.1:{exporter.port}{path}", headers=headers, verify=False)


def series(exporter: Exporter) -> dict[str, float]:
    """Sum of each sample's values."""
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(get(exporter).text):
        for sample in family.samples:
            sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    return sums


def publish(state: RedisState, *events: Outcome | Started) -> None:
    for event in events:
        state.client.xadd(state.keys.events, {"e": encode_event(event)})


def test_it_serves_all_metrics_of_the_table(state: RedisState) -> None:
    with exporting(state) as exporter:
        answer = get(exporter)
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert answer.headers["content-encoding"] == "gzip"
    names = {
        family.name + "_total" * (family.type == "counter")
        for family in text_string_to_metric_families(answer.text)
    }
    assert names == set(METRICS)


def test_it_answers_in_plain_text_and_nowhere_else(state: RedisState) -> None:
    with exporting(state) as exporter:
        plain = get(exporter, **{"Accept-Encoding": "identity"})
        assert "content-encoding" not in plain.headers
        assert plain.content.startswith(b"# HELP owl_task_types_count")
        assert get(exporter, "/").is_success
        assert get(exporter, "/metrics?x=1").is_success
        lost = get(exporter, "/favicon.ico")
        assert (lost.status_code, lost.text) == (404, "Metrics are at /metrics.\n")
        head = httpx.head(f"http://127.0.0.1:{exporter.port}/metrics")
        assert (head.is_success, head.content) == (True, b"")
        post = httpx.post(f"http://127.0.0.1:{exporter.port}/metrics")
        assert post.status_code == 501


def test_outcomes_are_counted_as_they_arrive(
    state: RedisState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter_module, "REFRESH_SECONDS", 0.02)
    publish(state, outcome(1))  # Before anybody looked.
    with exporting(state) as exporter:
        assert "owl_tasks_total" not in series(exporter)
        publish(state, Started("t", "d", 0, "train", "gpu.a.0", "gpu0@a", "V100"))
        publish(state, outcome(2), outcome(3))
        wait_until(lambda: series(exporter).get("owl_tasks_total") == 2.0, "both outcomes")
        assert series(exporter)["owl_task_duration_seconds_sum"] == 4.0


def test_a_scrape_of_a_large_fleet_costs_no_more_than_other_requests(state: RedisState) -> None:
    shown = overview(queue_count=1_000, type_count=500)
    seconds: dict[str, list[float]] = {"/metrics": [], "/nothing": []}
    with exporting(state, lambda: shown) as exporter:
        assert get(exporter).text.count("\n") > 20_000
        for _ in range(21):
            for path, taken in seconds.items():
                taken.append(get(exporter, path).elapsed.total_seconds())
    assert median(seconds["/metrics"]) < 5.0 * median(seconds["/nothing"])


def test_a_burst_is_read_in_full(state: RedisState) -> None:
    tail = OutcomeTail(state)
    assert list(tail.poll()) == []
    pipe = state.client.pipeline(transaction=False)
    for number in range(2_500):
        pipe.xadd(state.keys.events, {"e": encode_event(outcome(number))})
    pipe.execute()
    assert len(list(tail.poll())) == 2_500
    assert list(tail.poll()) == []


def test_outcomes_are_counted_on_after_redis_was_away_or_lost_its_data(state: RedisState) -> None:
    there, tail = state.address, OutcomeTail(state)
    assert list(tail.poll()) == []
    publish(state, outcome(1))
    state.address = RedisAddress.of_url("redis://127.0.0.1:1/0")
    state.forget()
    assert list(tail.poll()) == []
    state.address = there
    state.forget()
    assert [event.task_id for event in tail.poll()] == ["task-1"]
    # A stream that begins anew, on a clock that is behind.
    state.client.delete(state.keys.events)
    for number in (2, 3):
        event = encode_event(outcome(number))
        state.client.xadd(state.keys.events, {"e": event}, id=f"{number}-0")
    assert [event.task_id for event in tail.poll()] == ["task-2", "task-3"]
    publish(state, outcome(4))
    assert [event.task_id for event in tail.poll()] == ["task-4"]


def test_a_port_that_is_taken_is_one_sentence_and_is_tried_again(
    state: RedisState, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(exporter_module, "RETRY_SECONDS", 0.1)
    monkeypatch.setattr(exporter_module, "REFRESH_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with exporting(state, metrics_port=port) as exporter:
            assert exporter.port is None
            (record,) = caplog.records
            assert record.levelno == logging.ERROR
            assert f"port {port} (Address already in use): set METRICS_PORT" in record.message
            other.close()
            wait_until(lambda: exporter.port, "the port")
            assert get(exporter).is_success
    assert len(caplog.records) == 1


@pytest.mark.parametrize("host", ["no.such.host.invalid", "a..b", "203.0.113.7"])
def test_a_host_that_is_not_ours_is_one_sentence(
    state: RedisState, caplog: pytest.LogCaptureFixture, host: str
) -> None:
    with exporting(state, metrics_host=host):
        pass
    (record,) = caplog.records
    assert f"nobody can listen on {host} port" in record.message


def test_it_listens_by_ipv6(state: RedisState) -> None:
    with exporting(state, metrics_host="::1") as exporter:
        assert httpx.get(f"http://[::1]:{exporter.port}/metrics").is_success


def test_what_cannot_be_refreshed_grows_old(
    state: RedisState, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(exporter_module, "REFRESH_SECONDS", 0.01)
    shown = [overview()]
    with exporting(state, lambda: shown[0]) as exporter:
        assert get(exporter).is_success
        shown.clear()
        wait_until(lambda: caplog.records, "the failure")
        last = series(exporter)["owl_exporter_age_seconds"]
        wait_until(lambda: series(exporter)["owl_exporter_age_seconds"] > last + 0.2, "its age")
        assert series(exporter)["owl_total_tasks_processed"] == 65.0
        shown.append(overview())
        wait_until(lambda: series(exporter)["owl_exporter_age_seconds"] < last + 0.1, "news")
    assert len(caplog.records) == 1


def test_before_there_is_anything_it_says_so(
    state: RedisState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("owl_celery.exporter.server.FIRST_SECONDS", 0.01)
    with exporting(state, lambda: 1 / 0) as exporter:  # type: ignore[arg-type,return-value]
        assert get(exporter).status_code == 503


def test_without_redis_and_database_it_serves_what_is_known() -> None:
    away = RedisState("redis://127.0.0.1:1/0", Keys("test"))
    settings = Settings.load(database_url="postgresql://owl@127.0.0.1:1/owl")
    reader = OverviewReader(away, settings)
    with exporting(away, reader.read) as exporter:
        for part in ("redis", "database"):
            trouble = f'owl_trouble{{part="{part}"}} 1'
            wait_until(lambda line=trouble: line in get(exporter).text, trouble, 60.0)  # type: ignore[misc]
        text = get(exporter).text
        assert "owl_controller_active 0.0" in text
        assert "# TYPE owl_total_tasks_processed gauge" in text
    reader.close()


def test_tasks_that_nobody_will_take_are_found(state: RedisState, redis_url: str) -> None:
    app = Celery("proj", broker=redis_url, set_as_current=False)
    workers = overview(queue_count=2).workers  # They serve gpu.host.0 and gpu.host.1.
    for queue, count in {"gpu.host.0": 2, "gpu.gone.0": 3, "gpu.gone.1": 0, "celery": 4}.items():
        state.client.hset(state.keys.assigned_count, queue, 9)
        for _ in range(count):
            app.send_task("train", queue=queue)
    state.client.hdel(state.keys.assigned_count, "celery")
    clock = iter(range(0, 1_000, 10))
    unserved = UnservedQueues(state, open_broker(app), "celery", lambda: next(clock))
    assert unserved.counts(overview(workers=workers)) == {"gpu.gone.0": 3}
    assert unserved.counts(overview(workers=())) == {"gpu.host.0": 2, "gpu.gone.0": 3, "celery": 4}
    assert unserved.counts(overview(workers=(), is_redis_down=True)) == {}
    there, state.address = state.address, RedisAddress.of_url("redis://127.0.0.1:1/0")
    state.forget()
    assert unserved.counts(overview(workers=())) == {}
    state.address = there
    state.forget()
    unserved.close()
    app.close()


def test_it_can_be_turned_off(state: RedisState) -> None:
    settings = Settings.load(enable_metrics=False)
    assert start_exporter(overview, state, settings, Celery("proj")) is None


def test_an_empty_host_is_refused() -> None:
    with pytest.raises(SettingsError, match="OWL_METRICS_HOST"):
        Settings.load(metrics_host="")


@pytest.mark.parametrize(
    ("broker", "options", "seconds"),
    [
        ("redis://127.0.0.1:1", {}, 3600.0),
        ("redis://127.0.0.1:1", {"visibility_timeout": 600}, 600.0),
        ("redis://127.0.0.1:1", {"visibility_timeout": "soon"}, None),
        ("amqp://127.0.0.1:1", {"visibility_timeout": 600}, None),
        ("memory://", {}, None),
    ],
)
def test_the_visibility_timeout_is_that_of_the_broker(
    broker: str, options: dict[str, Any], seconds: float | None
) -> None:
    app = Celery("proj", broker=broker, set_as_current=False)
    app.conf.broker_transport_options = options
    assert visibility_timeout_seconds(app) == seconds
