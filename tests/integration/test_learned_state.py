"""What a real controller keeps in a real database: the readable Q table, and exact state."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from benchmarks.postgres import PostgresServer
from owl_celery.controller.learner import Q_VALUES_SECONDS
from owl_celery.fleet import Fleet
from owl_celery.learned_requirements import LearnedRequirements
from owl_celery.policies import make_policy
from owl_celery.tracker import TaskPerformanceTracker
from owl_celery.types import TaskView
from tests.site_of_three import GPUS, NAMESPACE, Site

pytestmark = pytest.mark.integration


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(
    request: pytest.FixtureRequest, tmp_path: Path, postgres_server: PostgresServer
) -> Iterator[str]:
    """Address of a fresh database of either kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/owl.sqlite3"
    else:
        with postgres_server.database() as url:
            yield url


@pytest.fixture
def site(redis_url: str, database_url: str) -> Iterator[Site]:
    """A site whose controller has just taken the lease."""
    site = Site(redis_url, database_url)
    site.pass_time(0.1)
    yield site
    site.controller.step_down()


def test_the_q_table_can_be_read_from_the_database(site: Site) -> None:
    for _ in range(20):
        site.run_tasks(18)
    site.pass_time(Q_VALUES_SECONDS + 1.0)
    site.pass_time(Q_VALUES_SECONDS + 1.0)
    store = site.open_store()
    entries = {(e.task_type, e.queue): e for e in store.q_values()}
    assert entries.keys() == {(f"type-{n}", queue) for n in range(3) for queue in GPUS}
    for entry in entries.values():
        assert entry.gpu_model == GPUS[entry.queue]
        assert entry.is_open
        assert entry.visits == (40 if entry.gpu_model == "K80" else 80)
        assert entry.seconds == pytest.approx(entry.idle_seconds)
    fast, slow = entries["type-0", "gpu.a.0"], entries["type-0", "gpu.a.2"]
    assert slow.idle_seconds > fast.idle_seconds > 0.0
    # The query of the documentation, as Grafana and people write it.
    with store.engine().connect() as connection:
        query = (Path(__file__).parents[2] / "docs" / "state.md").read_text()
        query = query.split("```sql\n")[1].split("```")[0]
        found = connection.execute(text(query), {"namespace": NAMESPACE}).all()
    assert [row.task_type for row in found] == ["type-0", "type-1", "type-2"]
    store.close()


def test_the_q_table_follows_the_backlog_and_says_what_is_closed(site: Site) -> None:
    for _ in range(10):
        site.run_tasks(18)
    site.pass_time(Q_VALUES_SECONDS + 1.0)
    site.broker.depth = 5
    site.state.client.sadd(site.state.keys.drained, "gpu.a.1")
    for queue in GPUS:
        site.state.client.hincrby(site.state.keys.assigned_count, queue, 5)
        site.state.client.hincrbyfloat(site.state.keys.assigned_seconds, queue, 10.0)
    site.pass_time(1.0)
    site.pass_time(Q_VALUES_SECONDS + 1.0)
    store = site.open_store()
    for entry in store.q_values():
        assert entry.seconds > entry.idle_seconds + 5.0
        assert entry.is_open is (entry.queue != "gpu.a.1")
    store.close()


def test_an_idle_site_writes_nothing(site: Site) -> None:
    site.run_tasks(18)
    for _ in range(4):
        site.pass_time(Q_VALUES_SECONDS + 1.0)
    before = site.leader.learner.counters["commits"]
    for _ in range(3):
        site.pass_time(Q_VALUES_SECONDS + 1.0)
    assert site.leader.learner.counters["commits"] == before


def test_the_requirements_of_a_process_that_does_not_lead_are_those_of_the_controller(
    site: Site,
) -> None:
    for _ in range(5):
        site.run_tasks(36)
    store = site.open_store()
    elsewhere = LearnedRequirements(store.load(), site.settings)
    store.close()
    memory = {"V100": 16 * 2**30, "K80": 12 * 2**30}
    needs = elsewhere.of("type-1", memory)
    assert needs == site.leader.learner.tracker.requirements("type-1", memory_bytes=memory)
    assert needs.benefits_from == ("V100",)
    assert needs.smallest_sufficient is not None
    assert needs.smallest_sufficient.gpu_model == "K80"


@pytest.mark.parametrize("policy", ["q_learning", "expected_completion"])
def test_a_restart_at_any_point_changes_no_decision(
    redis_url: str, database_url: str, policy: str
) -> None:
    site = Site(redis_url, database_url, policy)
    site.pass_time(0.1)
    store = site.open_store()
    fleet = Fleet([*GPUS], [*GPUS.values()])
    fleet.waiting_seconds[:], fleet.waiting_count[:] = [3.0, 1.0, 0.5], 1
    for _ in range(6):
        site.run_tasks(31)
        site.pass_time(3.0)
        site.run_tasks(7)
        ours = site.leader.learner.host.policy
        restored = make_policy(site.settings)
        TaskPerformanceTracker(restored).restore(store.load())
        # The same state, so the controller may go on with either: also when both learn on.
        assert restored.state() == ours.state()
        now = site.leader.now()
        for step in range(20):
            task = TaskView(f"type-{step % 4}", size=1.0 + step % 3)
            assert restored.choose(task, fleet, now) == ours.choose(task, fleet, now)
        assert json.dumps(restored.state()) == json.dumps(ours.state())
    site.controller.step_down()
    store.close()
