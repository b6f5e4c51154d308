"""What a scrape costs: the exporter of a large fleet next to that of a small one, in one run.

    python -m benchmarks.scrape --json scrape.json

Everything is exported as by ``owl serve`` and read over HTTP as Prometheus does, while the
exporter goes on refreshing. A page that is not there is asked for in turn from the same server, so
that the ratio of the two says what the metrics cost, and not what the machine does.
"""

from __future__ import annotations

import http.client
import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from owl_celery.embedded import EmbeddedRedis
from owl_celery.exporter import Exporter
from owl_celery.keys import Keys
from owl_celery.redis_state import RedisState
from owl_celery.settings import Settings
from tests.overviews import overview
from tests.prometheus import free_port

SIZES = ((8, 10), (64, 50), (1_000, 500))
LIMIT_MS = 50.0


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the result: milliseconds, and the ratio to an empty answer in the same run."""

    queues: int
    task_types: int
    series: int
    bytes_gzip: int
    p50_ms: float
    p99_ms: float
    empty_p50_ms: float
    ratio: float
    refresh_ms: float


def fetch(port: int, path: str) -> tuple[float, bytes]:
    """Milliseconds of one request, and the answer as it travels."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30.0)
    began = time.perf_counter()
    connection.request("GET", path, headers={"Accept-Encoding": "gzip"})
    body = connection.getresponse().read()
    took = (time.perf_counter() - began) * 1e3
    connection.close()
    return took, body


def measure(url: str, queues: int, task_types: int, scrapes: int) -> Row:
    """Scrape an exporter that shows a fleet of this size."""
    shown = overview(queues, task_types)
    state = RedisState(url, Keys(f"scrape-{queues}"))
    exporter = Exporter(lambda: shown, state, Settings.load(metrics_port=free_port()))
    exporter.start()
    try:
        assert exporter.port is not None
        _, body = fetch(exporter.port, "/metrics")
        times: list[float] = []
        empty: list[float] = []
        for _ in range(scrapes):
            times.append(fetch(exporter.port, "/metrics")[0])
            empty.append(fetch(exporter.port, "/nothing")[0])
    finally:
        exporter.close()
    began = time.perf_counter()
    text = exporter.text()
    refresh = (time.perf_counter() - began) * 1e3
    p50, empty_p50 = statistics.median(times), statistics.median(empty)
    return Row(
        queues,
        task_types,
        sum(not line.startswith(b"#") for line in text.splitlines()),
        len(body),
        round(p50, 2),
        round(statistics.quantiles(times, n=100)[98], 2),
        round(empty_p50, 2),
        round(p50 / empty_p50, 2),
        round(refresh, 1),
    )


@click.command()
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write the rows here.")
@click.option("--scrapes", default=300, show_default=True, help="Scrapes of each size.")
def main(path: Path | None, scrapes: int) -> None:
    """Measure scrapes of fleets of three sizes; fail when the largest takes 50 ms or more."""
    rows = []
    with EmbeddedRedis() as server:
        for queues, task_types in SIZES:
            row = measure(server.url, queues, task_types, scrapes)
            rows.append(row)
            click.echo(
                f"{row.queues:5} queues {row.task_types:4} task types {row.series:6} series  "
                f"p50 {row.p50_ms:6.2f} ms  p99 {row.p99_ms:6.2f} ms  "
                f"{row.ratio:.2f} times an empty answer  refreshed in {row.refresh_ms:.1f} ms"
            )
    if path is not None:
        path.write_text(json.dumps({"rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    if rows[-1].p50_ms >= LIMIT_MS:
        raise click.ClickException(f"A scrape takes {rows[-1].p50_ms} ms, more than {LIMIT_MS:g}.")


if __name__ == "__main__":
    main()
