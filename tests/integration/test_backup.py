"""The commands of docs/backup.md, run as they stand there, on a site that goes on learning."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.postgres import PostgresServer, find_programs
from owl_celery.aggregates import Learned
from tests.site_of_three import Site

pytestmark = pytest.mark.integration

PAGE = Path(__file__).parents[2] / "docs" / "backup.md"


@pytest.fixture(params=["SQLite", "PostgreSQL"])
def kind(request: pytest.FixtureRequest) -> str:
    """Chapter of the page."""
    return str(request.param)


@pytest.fixture
def site(
    kind: str, redis_url: str, tmp_path: Path, postgres_server: PostgresServer
) -> Iterator[Site]:
    """A site that learns."""
    if kind == "SQLite":
        site = Site(redis_url, f"sqlite:///{tmp_path}/owl.sqlite3")
        site.pass_time(0.1)
        yield site
        site.controller.step_down()
        return
    with postgres_server.database() as url:
        site = Site(redis_url, url)
        site.pass_time(0.1)
        yield site
        site.controller.step_down()


def commands(kind: str) -> list[str]:
    """Backup and restore, as the page has them."""
    chapter = PAGE.read_text(encoding="utf-8").split(f"## {kind}\n")[1].split("\n## ")[0]
    return [block.split("```")[0] for block in chapter.split("```sh\n")[1:]]


def run(site: Site, command: str, folder: Path) -> None:
    url = site.settings.database_url
    assert url is not None
    address = url.get_secret_value()
    programs = [str(Path(sys.executable).parent), str(find_programs()), os.environ["PATH"]]
    environment = {
        **os.environ,
        "PATH": os.pathsep.join(programs),
        "DB": address.removeprefix("sqlite:///"),
        "DATABASE_URL": address,
        "BACKUP": str(folder / "copy"),
    }
    done = subprocess.run(
        ["sh", "-e", "-c", command], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def stored(site: Site) -> Learned:
    store = site.open_store()
    learned = store.load()
    store.close()
    return learned


def test_what_was_backed_up_while_learning_is_restored_and_learning_goes_on(
    site: Site, kind: str, tmp_path: Path
) -> None:
    backup, restore = commands(kind)
    site.run_tasks(36)
    run(site, backup, tmp_path)
    then = stored(site)
    site.run_tasks(36)
    after = stored(site)
    assert after.cursor != then.cursor
    if kind == "SQLite":
        site.controller.step_down()
        site.controller = site.make_controller()
    run(site, restore, tmp_path)
    assert stored(site) == then
    # One that runs still believes in what it had learned; its next commit finds out.
    site.run_tasks(18)
    for _ in range(3):
        site.pass_time(3.0)
    assert site.leader.learner.counters["stale_cursors"] == (kind == "PostgreSQL")
    rows = stored(site).aggregates.task_types
    assert sum(row.successes for row in rows) == 36 + 36 + 18
