"""Ten thousand names of tasks, some of them very long or made to break something."""

from __future__ import annotations

import random
import time
import urllib.request
from collections.abc import Sequence
from typing import Any, Final

import psutil
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.faults.application import NAMED_TASKS
from benchmarks.faults.cluster import KEYS, Cluster
from benchmarks.faults.fault import Fault, Trial
from benchmarks.faults.hostile import PATTERNS, hostile_names
from benchmarks.faults.ledger import Account
from benchmarks.faults.load import Publication, Publisher
from benchmarks.faults.plan import Plan

NAMES: Final = 10_000
MOST_SAMPLES: Final = 5_000
MOST_BYTES: Final = 250 * 2**20
SCRAPE_SECONDS: Final = 10.0


class ManyNames(Fault):
    """Every task has another name."""

    name = "10,000 task names, long and hostile"
    strikes = (
        f"{NAMES:,} tasks of as many names: up to 10 kB long, in several scripts, with injections "
        "of SQL, HTML, format strings and metrics"
    )
    must = "all run; memory and labels stay bounded; what Prometheus reads can be parsed"
    recovery = "from the first such task until the last has finished"
    plan = Plan(environment=((NAMED_TASKS, str(NAMES)),), metrics=True)
    limit_seconds = 120.0
    most_trials = 1
    tasks = NAMES
    over_seconds = 15.0
    window = (0.0, 0.1)
    patience_seconds = 100.0

    def publications(self, cluster: Cluster, draw: random.Random) -> Sequence[Publication]:
        return [
            Publication(self.over_seconds * place / NAMES, next(cluster.numbers), 0.0)
            for place in range(NAMES)
        ]

    def publisher(self, cluster: Cluster, draw: random.Random) -> Publisher:
        names = list(hostile_names(NAMES))
        draw.shuffle(names)

        def send(one: Publication) -> None:
            cluster.app.send_task(names.pop(), (one.number, one.seconds), ignore_result=True)

        return Publisher(cluster.app, self.publications(cluster, draw), send)

    def strike(self, cluster: Cluster, trial: Trial, draw: random.Random) -> None:
        self._before = self._memory(cluster)

    def judge(self, cluster: Cluster, trial: Trial, publisher: Publisher, account: Account) -> None:
        grown = self._memory(cluster) - self._before
        trial.check(
            f"the controller's memory grows by at most {MOST_BYTES >> 20} MiB",
            f"{grown / 2**20:.0f} MiB",
            grown <= MOST_BYTES,
        )
        kept = int(cluster.state.memory_usage(KEYS.knowledge) or 0)
        trial.check(
            "what producers fetch is at most 4 MiB", f"{kept / 2**20:.1f} MiB", kept <= 4 * 2**20
        )
        families = self._scrape(cluster)
        samples = [sample for family in families for sample in family.samples]
        trial.check(
            f"Prometheus can read the metrics, at most {MOST_SAMPLES:,} series",
            len(samples),
            0 < len(samples) <= MOST_SAMPLES,
        )
        labels = [value for sample in samples for value in sample.labels.values()]
        longest = max(map(len, labels), default=0)
        trial.check("no label is longer than 255 characters", longest, longest <= 255)
        kinds = sum(any(pattern[:6] in label for label in labels) for pattern in PATTERNS[1:5])
        trial.parameters["hostile_kinds_among_labels"] = kinds
        check_table(cluster, trial)

    def _memory(self, cluster: Cluster) -> int:
        return sum(psutil.Process(one.pid).memory_info().rss for one in cluster.controllers)

    def _scrape(self, cluster: Cluster) -> list[Any]:
        url = f"http://127.0.0.1:{cluster.metrics_ports[0]}/metrics"
        deadline = time.monotonic() + SCRAPE_SECONDS
        while True:
            with urllib.request.urlopen(url, timeout=SCRAPE_SECONDS) as reply:
                families = list(text_string_to_metric_families(reply.read().decode()))
            named = {family.name for family in families}
            if "owl_tasks" in named or time.monotonic() > deadline:
                return families
            time.sleep(0.5)


def check_table(cluster: Cluster, trial: Trial) -> None:
    """Check that the database is still what it was."""
    tries = cluster.database.tries()
    trial.check("the database still counts", tries, tries > 0)
