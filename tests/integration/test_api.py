"""The API over real servers: answers, pages, errors, checks, live events, faults."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from owl_celery.api.app import PREFIX
from owl_celery.api.cursors import encode_cursor
from owl_celery.api.gate import Limits
from owl_celery.api.server import ApiServer, open_server
from owl_celery.errors import SettingsError
from owl_celery.keys import Keys
from owl_celery.overview import OverviewReader
from owl_celery.redis_state import RedisState
from owl_celery.settings import Settings
from owl_celery.testing import wait_until
from owl_celery.types import QueueView
from owl_celery.wire import encode_event
from tests.api import NAMESPACE, TOKEN, Site, learn
from tests.learning import outcome, stream

pytestmark = pytest.mark.integration

QUEUES = tuple(
    QueueView(f"gpu.a.{number}", ("K80", "V100")[number % 2], waiting_count=number)
    for number in range(5)
)


@pytest.fixture
def site(redis_url: str, tmp_path: Path) -> Iterator[Site]:
    site = Site(redis_url, tmp_path)
    yield site
    site.close()


@pytest.fixture
def guarded(redis_url: str, tmp_path: Path) -> Iterator[Site]:
    """A site with a token."""
    site = Site(redis_url, tmp_path, api_token=TOKEN)
    yield site
    site.close()


@pytest.fixture
def published(site: Site) -> Site:
    """The site with queues; asked for before ``api``, whose first look is cached for a moment."""
    site.publish(QUEUES)
    return site


@pytest.fixture
def api(site: Site) -> Iterator[httpx.Client]:
    with site.served() as client:
        yield client


def problem(answer: httpx.Response, status: int) -> str:
    """The sentence of an answer that must be a problem of this status."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["status"] == status
    assert body["title"] and body["type"] == "about:blank"
    assert body["detail"].endswith(".")
    return str(body["detail"])


def all_items(api: httpx.Client, path: str, limit: int) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    cursor: str | None = None
    while True:
        parameters = {"limit": limit} | ({"cursor": cursor} if cursor else {})
        page = api.get(f"{PREFIX}/{path}", params=parameters).json()
        assert len(page["items"]) <= limit
        items += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            return items


class TestAnswers:
    def test_health_of_a_site_at_work(self, published: Site, api: httpx.Client) -> None:
        body = api.get(f"{PREFIX}/health").json()
        assert (body["status"], body["reasons"], body["mode"]) == ("ok", [], "on")
        assert body["controller"]["active_since"] == "1970-01-01T00:00:01Z"
        assert body["database"] == {"status": "ok", "kind": "sqlite"}
        assert (body["queues"], body["open_queues"], body["waiting_count"]) == (5, 5, 10)

    def test_lists_come_whole_in_pages(self, site: Site) -> None:
        site.publish(QUEUES, learn(site.store, stream(200)))
        with site.served() as api:
            names = [queue["name"] for queue in all_items(api, "queues", 2)]
            assert names == [queue.name for queue in QUEUES]
            types = [row["task_type"] for row in all_items(api, "task-types", 3)]
            assert types == [f"type-{number}" for number in range(7)]
            workers = [row["worker_id"] for row in all_items(api, "workers", 5)]
            assert workers == sorted(workers) and len(workers) == len(set(workers)) == 12
            cells = [(row["task_type"], row["gpu_model"]) for row in all_items(api, "matrix", 4)]
            assert cells == sorted(set(cells)) and len(cells) == 21

    def test_decisions_come_latest_first_with_their_reasons(self, site: Site) -> None:
        outcomes = [
            outcome(number, algorithm="expected_completion", predicted_seconds=2.5)
            for number in range(9)
        ]
        slow = [outcome(n, gpu_model="K80", service_seconds=8.0) for n in range(10, 15)]
        site.publish(QUEUES, learn(site.store, [*outcomes, *slow]))
        with site.served() as api:
            found = all_items(api, "decisions", 4)
            assert [item["task_id"] for item in found[5:]] == [
                f"task-{n}" for n in range(8, -1, -1)
            ]
            item = found[-1]
            assert item["reason"].startswith("Sent where it was predicted to finish first: 2.5 s")
            (other,) = item["alternatives"]
            assert other["gpu_model"] == "K80"
            assert other["predicted_seconds"] == pytest.approx(8.0, rel=0.2)
            assert item["finished_at"].endswith("Z")
            (one,) = api.get(f"{PREFIX}/decisions/task-3").json()["items"]
            assert one["task_id"] == "task-3"

    def test_decisions_of_one_type(self, api: httpx.Client, site: Site) -> None:
        learn(site.store, stream(100))
        found = api.get(f"{PREFIX}/decisions", params={"task_type": "type-3"}).json()["items"]
        assert found and {item["task_type"] for item in found} == {"type-3"}
        assert api.get(f"{PREFIX}/decisions?task_type=none").json()["items"] == []

    def test_performance_has_totals_curve_and_improvement(self, site: Site) -> None:
        site.publish(QUEUES, learn(site.store, stream(400)))
        with site.served() as api:
            body = api.get(f"{PREFIX}/performance").json()
            assert body["totals"]["tasks"] > 300
            assert body["totals"]["task_types"] == len(body["task_types"]) == 7
            assert {point["bucket_seconds"] for point in body["curve"]} == {60}
            assert body["curve"] == sorted(body["curve"], key=lambda point: point["started_at"])
            assert 0.5 < body["improvement"]["service"]["ratio"] < 1.5
            hours = api.get(f"{PREFIX}/performance?bucket_seconds=3600").json()["curve"]
            assert {point["bucket_seconds"] for point in hours} == {3600}

    def test_requirements_of_a_type(self, site: Site) -> None:
        tries = [
            outcome(
                number,
                worker_id=f"gpu{number % 2}@a",
                gpu_model=("V100", "K80")[number % 2],
                service_seconds=(1.0, 4.0)[number % 2] + 0.01 * (number % 7),
            )
            for number in range(40)
        ]
        site.publish(QUEUES, learn(site.store, tries))
        with site.served() as api:
            body = api.get(f"{PREFIX}/requirements/train").json()
            assert body["benefits_from"] == ["V100"]
            assert [model["gpu_model"] for model in body["models"]] == ["V100", "K80"]
            assert body["models"][0]["predicted_seconds"] == pytest.approx(1.03, rel=0.1)
            assert "as fast on V100 as on K80" in body["explanation"]
            for unknown in ("train2", "", "a/b", "%00", "x" * 3000):
                problem(api.get(f"{PREFIX}/requirements/{unknown}"), 404)

    def test_health_checks(self, api: httpx.Client, site: Site) -> None:
        assert api.get("/healthz").json() == {"status": "ok"}
        assert "no load view" in problem(api.get("/readyz"), 503)
        site.publish(QUEUES)
        wait_until(lambda: api.get("/readyz").status_code == 200, "readiness")

    def test_unknown_parameters_of_newer_clients_are_passed_over(self, api: httpx.Client) -> None:
        assert api.get(f"{PREFIX}/health?verbose=1").status_code == 200

    def test_the_description_is_of_this_release(self, api: httpx.Client) -> None:
        found = api.get("/api/v1/openapi.json").json()
        assert found["info"]["title"] == "owl_celery"
        assert f"{PREFIX}/health" in found["paths"]
        assert found["components"]["securitySchemes"]["token"]["scheme"] == "bearer"

    def test_a_page_lists_the_paths_without_scripts(self, api: httpx.Client) -> None:
        answer = api.get("/docs")
        assert answer.headers["content-type"].startswith("text/html")
        assert "GET /api/v1/learning/decisions/{task_id}" in answer.text
        assert "gpu.host1.0" in answer.text
        assert "<script" not in answer.text


class TestErrors:
    @pytest.mark.parametrize(
        ("path", "status"),
        [
            ("/nothing", 404),
            (f"{PREFIX}/nothing", 404),
            (f"{PREFIX}/decisions/unknown", 404),
            (f"{PREFIX}/decisions/%00", 404),
            (f"{PREFIX}/queues/", 404),
            (f"{PREFIX}/queues?limit=0", 422),
            (f"{PREFIX}/queues?limit=99999999999999999999", 422),
            (f"{PREFIX}/queues?limit=many", 422),
            (f"{PREFIX}/queues?cursor=" + "x" * 3000, 422),
            (f"{PREFIX}/queues?cursor=nonsense", 400),
            (f"{PREFIX}/queues?cursor=%C3%A9", 400),
            (f"{PREFIX}/queues?cursor=" + encode_cursor("workers", "x"), 400),
            (f"{PREFIX}/queues?cursor=" + encode_cursor("queues", 7), 400),
            (f"{PREFIX}/decisions?cursor=" + encode_cursor("decisions", "x"), 400),
            (f"{PREFIX}/decisions?task_type=" + "x" * 300, 422),
            (f"{PREFIX}/performance?bucket_seconds=61", 422),
            ("/" + "x" * 9000, 414),
            (f"{PREFIX}/health?" + "x" * 9000, 414),
        ],
    )
    def test_a_bad_request_is_told_what_is_wrong(
        self, published: Site, api: httpx.Client, path: str, status: int
    ) -> None:
        problem(api.get(path), status)

    def test_huge_positions_are_ends(self, published: Site, api: httpx.Client, site: Site) -> None:
        learn(site.store, stream(3))
        for number in (-(10**30), 0):
            cursor = encode_cursor("decisions", number)
            found = api.get(f"{PREFIX}/decisions", params={"cursor": cursor}).json()
            assert found == {"items": [], "next_cursor": None}
        cursor = encode_cursor("decisions", 10**30)
        assert len(api.get(f"{PREFIX}/decisions", params={"cursor": cursor}).json()["items"]) == 3
        cursor = encode_cursor("queues", "\U0010ffff")
        assert api.get(f"{PREFIX}/queues", params={"cursor": cursor}).json()["items"] == []

    @pytest.mark.parametrize("method", ["POST", "PATCH", "DELETE"])
    def test_other_methods_are_refused(self, guarded: Site, method: str) -> None:
        with guarded.served(authorization=f"Bearer {TOKEN}") as api:
            answer = api.request(method, f"{PREFIX}/health")
            problem(answer, 405)
            assert "GET" in answer.headers["allow"]

    def test_a_dead_redis_is_said(self, tmp_path: Path) -> None:
        site = Site("redis://127.0.0.1:1/0", tmp_path, api_token=TOKEN)
        learn(site.store, stream(5))
        with site.served(authorization=f"Bearer {TOKEN}") as api:
            body = api.get(f"{PREFIX}/health").json()
            assert (body["status"], body["reasons"][0]["part"]) == ("down", "redis")
            for path in ("queues", "workers"):
                answer = api.get(f"{PREFIX}/{path}")
                assert "Redis does not answer" in problem(answer, 503)
                assert answer.headers["retry-after"]
            assert api.get(f"{PREFIX}/performance").json()["totals"]["tasks"] > 0
            problem(api.get("/readyz"), 503)
            problem(api.put(f"{PREFIX}/mode", json={"mode": "off"}), 503)
        site.close()

    def test_a_dead_database_is_said(self, redis_url: str, tmp_path: Path) -> None:
        url = "postgresql://u:s3cret@127.0.0.1:1/x"
        site = Site(redis_url, tmp_path, database_url=url)
        site.publish(QUEUES)
        with site.served() as api:
            body = api.get(f"{PREFIX}/health").json()
            assert body["status"] == "degraded"
            assert len(api.get(f"{PREFIX}/queues").json()["items"]) == 5
            for path in (
                "performance",
                "task-types",
                "matrix",
                "requirements/x",
                "decisions",
                "decisions/x",
            ):
                sentence = problem(api.get(f"{PREFIX}/{path}"), 503)
                assert "cannot reach Postgres" in sentence
                assert "s3cret" not in sentence
        site.close()


class TestAccess:
    def test_with_a_token_all_but_the_checks_need_it(self, guarded: Site) -> None:
        with guarded.served() as api:
            assert api.get("/healthz").status_code == 200
            for path in (f"{PREFIX}/health", "/api/v1/openapi.json", "/nothing"):
                answer = api.get(path)
                assert "Authorization" in problem(answer, 401)
                assert answer.headers["www-authenticate"] == "Bearer"
            for given in ("Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer", "é"):
                odd = [(b"authorization", given.encode())]
                problem(api.get(f"{PREFIX}/health", headers=odd), 401)
            headers = {"authorization": f"bearer {TOKEN}"}
            assert api.get(f"{PREFIX}/health", headers=headers).status_code == 200

    def test_without_a_token_nothing_can_be_changed(self, api: httpx.Client, site: Site) -> None:
        site.publish(QUEUES)
        for answer in (
            api.put(f"{PREFIX}/mode", json={"mode": "off"}),
            api.post(f"{PREFIX}/queues/gpu.a.0/drain"),
        ):
            assert "OWL_API_TOKEN" in problem(answer, 403)
        assert site.reader.read().health.mode == "on"

    def test_with_it_the_mode_and_a_queue_change(self, guarded: Site) -> None:
        guarded.publish(QUEUES)
        with guarded.served(authorization=f"Bearer {TOKEN}") as api:
            answer = api.put(f"{PREFIX}/mode", json={"mode": "shadow", "why": "a try"})
            assert answer.json() == {"mode": "shadow", "before": "on"}
            path = f"{PREFIX}/queues/gpu.a.1"
            drained = {"queue": "gpu.a.1", "is_drained": True, "changed": True}
            assert api.post(f"{path}/drain").json() == drained
            assert api.post(f"{path}/drain").json() == drained | {"changed": False}
            found = wait_until(
                lambda: [q for q in api.get(f"{PREFIX}/queues").json()["items"] if q["is_drained"]],
                "the drained queue",
            )
            assert [queue["name"] for queue in found] == ["gpu.a.1"]
            assert api.post(f"{path}/resume").json()["is_drained"] is False

    def test_bad_changes_are_refused(self, guarded: Site) -> None:
        guarded.publish(QUEUES)
        with guarded.served(authorization=f"Bearer {TOKEN}") as api:
            bodies: tuple[Any, ...] = ({"mode": "fast"}, {}, [], {"mode": None})
            for body in bodies:
                problem(api.put(f"{PREFIX}/mode", json=body), 422)
            problem(api.put(f"{PREFIX}/mode", content=b"{"), 422)
            problem(api.put(f"{PREFIX}/mode", content=b"x" * 20_000), 413)
            problem(api.put(f"{PREFIX}/mode", content=iter([b"x" * 10_000] * 3)), 413)
            sentence = problem(api.post(f"{PREFIX}/queues/none/drain"), 404)
            assert "gpu.a.0" in sentence

    def test_foreign_names_of_a_loopback_server_are_refused(self, api: httpx.Client) -> None:
        for host in ("evil.example", "evil.example:8080", "127.0.0.1.evil.example", "[::2]:80"):
            problem(api.get(f"{PREFIX}/health", headers={"host": host}), 421)
        for host in ("localhost:1234", "127.0.0.1", "[::1]:8080", "[::1]", "LOCALHOST"):
            assert api.get(f"{PREFIX}/health", headers={"host": host}).status_code == 200

    def test_any_name_will_do_with_a_token(self, guarded: Site) -> None:
        with guarded.served(authorization=f"Bearer {TOKEN}", host="owl.example") as api:
            assert api.get(f"{PREFIX}/health").status_code == 200

    def test_every_answer_has_headers_that_protect_a_browser(self, api: httpx.Client) -> None:
        for path in ("/healthz", "/nothing", f"{PREFIX}/health"):
            headers = api.get(path).headers
            assert headers["x-content-type-options"] == "nosniff"
            assert "default-src 'self'" in headers["content-security-policy"]
            assert headers["x-frame-options"] == "DENY"
            assert "server" not in headers

    def test_too_many_requests_are_told_to_wait(self, site: Site) -> None:
        with site.served(Limits(requests_per_second=0.001, burst=3)) as api:
            answers = [api.get(f"{PREFIX}/health") for _ in range(4)]
            assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
            assert "a second" in problem(answers[-1], 429)
            assert answers[-1].headers["retry-after"] == "1"
            assert api.get("/healthz").status_code == 200


Live = Generator[tuple[str, dict[str, Any]], None, None]


def events_of(api: httpx.Client) -> Live:
    """Events of a live stream, as they come."""
    with api.stream("GET", f"{PREFIX}/events") as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        kind = ""
        for line in answer.iter_lines():
            if line.startswith("event: "):
                kind = line.removeprefix("event: ")
            elif line.startswith("data: "):
                yield kind, json.loads(line.removeprefix("data: "))


class TestLiveEvents:
    def test_the_fleet_and_outcomes_are_told(
        self, published: Site, api: httpx.Client, site: Site
    ) -> None:
        live = events_of(api)
        kind, body = next(live)
        assert (kind, body["health"]["status"], len(body["queues"])) == ("fleet", "ok", 5)
        site.state.client.xadd(site.state.keys.events, {"e": encode_event(outcome(3))})
        kind, body = next(event for event in live if event[0] == "outcome")
        assert (body["task_id"], body["state"]) == ("task-3", "success")
        assert next(event for event in live if event[0] == "fleet")
        live.close()

    def test_readers_are_counted_and_limited(self, site: Site) -> None:
        site.publish(QUEUES)
        with site.served(Limits(burst=1000, live_clients=2)) as api:
            first, second = events_of(api), events_of(api)
            next(first), next(second)
            assert "2 clients" in problem(api.get(f"{PREFIX}/events"), 503)
            first.close()
            third = wait_until(lambda: _opened(api), "a free place")
            assert third is not None
            third.close()
            second.close()

    def test_a_server_that_stops_ends_them_at_once(self, site: Site) -> None:
        site.publish(QUEUES)
        server = ApiServer(site.app(), "127.0.0.1", 0)
        server.start()
        ended = threading.Event()
        with httpx.Client(base_url=server.url) as api:
            live = events_of(api)
            next(live)

            def read_on() -> None:
                for _ in live:
                    pass
                ended.set()

            thread = threading.Thread(target=read_on, name="reader")
            thread.start()
            server.stop()
            assert ended.wait(5.0)
            thread.join()

    def test_a_dead_redis_is_told_live(self, tmp_path: Path) -> None:
        site = Site("redis://127.0.0.1:1/0", tmp_path)
        with site.served() as api:
            live = events_of(api)
            assert next(live)[1]["health"]["status"] == "down"
            live.close()
        site.close()


def _opened(api: httpx.Client) -> Live | None:
    if api.get(f"{PREFIX}/health").status_code != 200:
        return None
    live = events_of(api)
    try:
        next(live)
    except AssertionError:
        return None
    return live


class TestAddress:
    def test_a_busy_port_is_one_sentence(self, site: Site) -> None:
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            port = other.getsockname()[1]
            with pytest.raises(SettingsError, match=f"OWL_API_PORT: port {port} of 127.0.0.1"):
                ApiServer(site.app(), "127.0.0.1", port)

    def test_a_host_that_is_not_ours_is_one_sentence(self, site: Site) -> None:
        with pytest.raises(SettingsError, match="OWL_API_HOST"):
            ApiServer(site.app(), "192.0.2.1", 0)

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
    def test_others_may_connect_with_a_token_only(self, host: str) -> None:
        settings = Settings.load(api_host=host)
        state = RedisState("redis://127.0.0.1:1/0", Keys(NAMESPACE))
        with pytest.raises(SettingsError, match="set OWL_API_TOKEN"):
            open_server(settings, state, OverviewReader(state, settings))
