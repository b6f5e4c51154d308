"""Run everything for some minutes and draw the dashboard of it: ``make dashboard-figures``.

Kept out of the tests: it takes minutes, and Grafana's components half a gigabyte.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from grafana.render.drawing import build, draw
from grafana.source.answers import answers, filled, panels_by_row
from grafana.source.dashboard import dashboard
from grafana.source.panels import Json
from owl_celery.demo.arm import TASK
from owl_celery.demo.load import draw_jobs
from owl_celery.demo.run import wait_for_view
from owl_celery.embedded import EmbeddedRedis
from owl_celery.simulate.table import parse_fleet
from tests.chain import Chain, running_chain
from tests.prometheus import PrometheusServer

FIGURES: Final = Path(__file__).parents[2] / "docs" / "figures"
LAST: Final = Path(__file__).parent / "build" / "results.json"
APP: Final = "workers"
"""As in ``prometheus.yml``."""

SCRAPE_SECONDS: Final = 2.0
RATE_INTERVAL: Final = "30s"
PLAIN_SHARE: Final = 0.35
FAILING_EVERY: Final = 40
NO_SUCH_JOB: Final = "no such job"


def main() -> None:
    """Read the command line, run, ask, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--simulate", default="k80=2,p100=2,v100=2", help="virtual GPUs")
    parser.add_argument("--seconds", type=float, default=420.0, help="how long to send tasks")
    parser.add_argument("--mean-seconds", type=float, default=1.0, help="of a task at its best")
    parser.add_argument("--load", type=float, default=0.75)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--theme", choices=("light", "dark"), default="light")
    parser.add_argument("--output", type=Path, default=FIGURES)
    parser.add_argument("--again", action="store_true", help="draw what was measured last")
    arguments = parser.parse_args()
    build()
    if not arguments.again:
        LAST.write_text(json.dumps(measure(arguments)))
    results = json.loads(LAST.read_text())
    for path in draw({**results, "theme": arguments.theme}, arguments.output):
        print(f"{path} ({path.stat().st_size // 1024} kB)")


def measure(arguments: argparse.Namespace) -> Json:
    """Run it all, and ask what the panels ask."""
    with (
        tempfile.TemporaryDirectory() as folder,
        EmbeddedRedis() as redis,
        running_chain(redis.url, Path(folder), parse_fleet(arguments.simulate)) as chain,
        PrometheusServer(
            Path(folder), {"owl": chain.metrics_address}, SCRAPE_SECONDS
        ) as prometheus,
    ):
        prometheus.wait_for("owl_build_info")
        start = time.time()
        send(chain, arguments)
        return ask(prometheus, start, time.time())


def send(chain: Chain, arguments: argparse.Namespace) -> None:
    """Send the demo's mix: a third as Celery routes it, the rest as learned; a few fail."""
    os.environ.update(chain.environment)
    # Its tasks say what their type and size are; and its settings are those of just now.
    from workers.app import app

    app.loader.import_default_modules()
    wait_for_view(app)
    fleet, seconds = parse_fleet(arguments.simulate), arguments.seconds
    jobs = draw_jobs(fleet, arguments.load, seconds, arguments.mean_seconds, arguments.seed)
    chain.set_mode("shadow")
    start, is_plain = time.monotonic(), True
    for index, job in enumerate(jobs):
        time.sleep(max(start + job.at - time.monotonic(), 0.0))
        if is_plain and job.at > PLAIN_SHARE * seconds:
            chain.set_mode("on")
            is_plain = False
        name = NO_SUCH_JOB if index % FAILING_EVERY == 7 else job.task_type
        app.tasks[TASK].apply_async((name, job.size, job.scale_seconds))


def ask(prometheus: PrometheusServer, start: float, end: float) -> Json:
    """Everything that the page shows, as Prometheus tells it."""
    rows = [
        {
            "slug": slug,
            "title": title,
            "panels": [
                {
                    **panel,
                    "results": answers(prometheus, panel, APP, RATE_INTERVAL, start, end),
                }
                for panel in panels
            ],
        }
        for slug, title, panels in panels_by_row()
    ]
    return {
        "from": start * 1000,
        "to": end * 1000,
        "marks": list(marks(prometheus, start, end)),
        "rows": rows,
    }


def marks(prometheus: PrometheusServer, start: float, end: float) -> Iterator[Json]:
    """When each annotation begins."""
    for mark in dashboard()["annotations"]["list"]:
        if "expr" not in mark:
            continue
        query = filled(mark["expr"], APP, RATE_INTERVAL)
        step = SCRAPE_SECONDS
        data = prometheus.get("query_range", query=query, start=start, end=end, step=step)
        for series in data["result"]:
            times = [time for time, _ in series["values"]]
            for previous, time_ in zip([0.0, *times], times, strict=False):
                if time_ - previous > 1.5 * step:
                    yield {"time": time_ * 1000, "colour": mark["iconColor"]}


if __name__ == "__main__":
    main()
