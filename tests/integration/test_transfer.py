"""Export at one site, import at another: taken exactly once, whatever runs and whatever breaks."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from click.testing import CliRunner, Result

from benchmarks.postgres import PostgresServer
from owl_celery import install
from owl_celery.cli.export import export
from owl_celery.cli.import_ import import_
from owl_celery.errors import StaleCursorError, StoreError
from owl_celery.policies.priced_q import PricedQ
from owl_celery.prior import PRIOR_SAMPLES
from owl_celery.store.sql import SqlStore
from owl_celery.testing import wait_until
from tests.site_of_three import Site

pytestmark = pytest.mark.integration


@pytest.fixture(params=["sqlite", "postgres"])
def databases(
    request: pytest.FixtureRequest, tmp_path: Path, postgres_server: PostgresServer
) -> Iterator[tuple[str, str]]:
    """Addresses of two fresh databases of either kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/old.sqlite3", f"sqlite:///{tmp_path}/new.sqlite3"
    else:
        with postgres_server.database() as first, postgres_server.database() as second:
            yield first, second


@pytest.fixture
def old(redis_url: str, databases: tuple[str, str]) -> Iterator[Site]:
    """A site that has learned, and goes on running."""
    site = Site(redis_url, databases[0], namespace="old")
    site.pass_time(0.1)
    for _ in range(10):
        site.run_tasks(36)
    yield site
    site.controller.step_down()


@pytest.fixture
def new(redis_url: str, databases: tuple[str, str]) -> Iterator[Site]:
    """A site that has learned nothing; its controller does not lead yet."""
    site = Site(redis_url, databases[1], namespace="new")
    yield site
    site.controller.step_down()


def run(site: Site, command: Any, *arguments: str) -> Result:
    app = Celery("proj", broker="memory://")
    url = site.settings.database_url
    assert url is not None
    app.conf.update(
        owl_redis_url=site.settings.redis_url,
        owl_database_url=url.get_secret_value(),
        owl_namespace=site.settings.namespace,
    )
    install(app)
    return CliRunner().invoke(command, arguments, obj=SimpleNamespace(app=app))


def policy_of(site: Site) -> PricedQ:
    """The policy as the database of a site has it."""
    store = site.open_store()
    state = store.load().policy_state
    store.close()
    policy = PricedQ(seed=1)
    assert state is not None
    policy.restore(state)
    return policy


def counts(site: Site) -> list[float]:
    """Samples of every pair that is known."""
    cells = policy_of(site).learner.cells
    return sorted(cells["count"][cells["count"] > 0.0].tolist())


def test_an_empty_site_predicts_as_the_trained_one_does(
    old: Site, new: Site, tmp_path: Path
) -> None:
    file = tmp_path / "learned.json"
    written = run(old, export, str(file))
    assert written.exit_code == 0, written.output
    assert "Wrote 6 pairs" in written.output
    text = file.read_text()
    assert "gpu.a" not in text
    assert "@a" not in text
    imported = run(new, import_, str(file), "--wait", "0")
    assert imported.exit_code == 0, imported.output
    assert "6 pairs (3 task types, 2 GPU models), 0 load times" in imported.output
    assert "Import 1: kept for the next controller" in imported.output
    new.pass_time(0.1)
    here, there = policy_of(new), policy_of(old)
    for row in json.loads(text)["pairs"]:
        known = there.learner.beliefs.predict_seconds(_task(row["task_type"]), row["gpu_model"])
        assert row["seconds"] == pytest.approx(known, rel=0.05)
        assert row["standard_deviation_seconds"] == pytest.approx(0.2 * known, rel=0.5)
        guess = here.learner.beliefs.predict_seconds(_task(row["task_type"]), row["gpu_model"])
        assert guess == pytest.approx(known, rel=0.05)
    assert counts(new) == [PRIOR_SAMPLES] * 6


def _task(task_type: str) -> Any:
    return SimpleNamespace(task_type=task_type, size=1.0)


def test_an_import_is_taken_once_over_crashes_and_restarts(
    old: Site, new: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "learned.json"
    run(old, export, str(file))
    new.pass_time(0.1)
    run(new, import_, str(file), "--wait", "0")
    commit = SqlStore.commit

    def fails(self: SqlStore, **arguments: Any) -> None:
        raise StoreError("The database is away.")

    monkeypatch.setattr(SqlStore, "commit", fails)
    new.pass_time(3.0)
    monkeypatch.setattr(SqlStore, "commit", commit)
    store = new.open_store()
    assert store.load().prior == 0
    for _ in range(3):
        new.pass_time(5.0)
    assert store.load().prior == 1
    assert counts(new) == [PRIOR_SAMPLES] * 6
    new.controller.step_down()
    new.controller = new.make_controller()
    for _ in range(3):
        new.pass_time(5.0)
    new.run_tasks(18)
    assert counts(new) == sorted([PRIOR_SAMPLES + 2.0] * 3 + [PRIOR_SAMPLES + 4.0] * 3)
    assert "took 6 service times" in (store.prior_report(1) or "")
    again = run(new, import_, str(file), "--wait", "0")
    assert "Import 2" in again.output
    new.pass_time(3.0)
    assert store.prior_report(2) is not None
    assert "12 numbers left, known here already" in (store.prior_report(2) or "")
    assert store.priors(0) == [(1, ""), (2, "")]
    store.close()


def test_a_controller_that_does_not_know_of_an_import_cannot_undo_it(new: Site) -> None:
    store = new.open_store()
    new.run_tasks(18)
    learned = store.load()
    number = store.add_prior("{}")
    new.pass_time(3.0)
    assert store.load().prior == number
    with pytest.raises(StaleCursorError):
        store.commit(
            expected_cursor=learned.cursor,
            cursor=learned.cursor,
            outcomes=(),
            policy_name="q_learning",
            policy_state=learned.policy_state,
            aggregates=learned.aggregates,
            expected_prior=learned.prior,
        )
    store.close()


def test_the_command_waits_for_a_controller_that_runs(old: Site, new: Site, tmp_path: Path) -> None:
    file = tmp_path / "learned.json"
    run(old, export, str(file))
    stop = threading.Event()
    new.clock.is_real = True
    controller = threading.Thread(target=new.controller.run, args=[stop], name="owl-test")
    controller.start()
    try:
        wait_until(lambda: new.controller.leader is not None, "a leader")
        imported = run(new, import_, str(file), "--wait", "30")
    finally:
        stop.set()
        controller.join()
    assert "Import 1: policy q_learning took 6 service times, 6 failure rates" in imported.output
    assert counts(new) == [PRIOR_SAMPLES] * 6


def test_imports_of_many_at_once_are_all_kept(new: Site) -> None:
    stores = [new.open_store() for _ in range(4)]
    numbers: list[int] = []
    threads = [
        threading.Thread(target=lambda store=store: numbers.append(store.add_prior("{}")))
        for store in stores
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = [number for number, _ in stores[0].priors(0)]
    for store in stores:
        store.close()
    assert sorted(numbers) == kept == [1, 2, 3, 4]


def test_what_cannot_be_used_is_refused_and_changes_nothing(new: Site, tmp_path: Path) -> None:
    file = tmp_path / "learned.json"
    file.write_text('{"format": "owl-celery-prior", "version": 9}')
    refused = run(new, import_, str(file))
    assert refused.exit_code == 1
    assert "learned.json is not imported. It is of version 9" in refused.output
    file.write_bytes(b"\xff\xfe")
    assert "no UTF-8 text" in run(new, import_, str(file)).output
    store = new.open_store()
    assert store.priors(0) == []
    store.add_prior("not JSON, and not from the command")
    new.pass_time(3.0)
    assert (store.prior_report(1) or "").startswith("not taken. It is no JSON")
    new.run_tasks(18)
    assert store.load().prior == 1
    store.close()


def test_export_to_standard_output_and_from_a_site_that_has_learned_nothing(new: Site) -> None:
    written = run(new, export)
    assert written.exit_code == 0
    assert json.loads(written.stdout)["pairs"] == []
    assert "Wrote 0 pairs" in written.stderr
