"""Several releases at once: policies, workers and messages."""

from __future__ import annotations

import random
from typing import Any, Final

from benchmarks.faults.application import WORK, make_app
from benchmarks.faults.cluster import KEYS, Cluster
from benchmarks.faults.database import DatabaseFault
from benchmarks.faults.fault import Fault, Trial
from benchmarks.faults.ledger import Account
from benchmarks.faults.load import Publication, Publisher

OTHER_POLICY: Final = "shortest_queue"
RUNNING: Final = "Console and API:"
HEADERS: Final[tuple[Any, ...]] = (
    {"v": 99, "d": "future", "q": "gpu.elsewhere.7", "a": "oracle", "k": "x", "colour": ["red"]},
    {"d": "d1", "q": None, "t": "soon", "s": "much", "p": -1, "m": "?", "tried": "k80"},
    {"d": 5, "q": ["gpu"]},
    {"d": "x" * 100_000, "q": "y" * 10_000, "k": "z\0" * 100},
    "text",
    [1, 2, 3],
    None,
)
"""What other releases, or somebody else, may have put in our header."""

EVENTS: Final = ("", "no JSON", '{"e": "moved", "to": "gpu.x.1"}', '{"e": "end", "task_id": 7}')


class VersionsMixed(Fault):
    """Old and new run beside each other."""

    name = "two policy versions, old workers, no header"
    strikes = (
        "controllers of another policy take over; a plain Celery worker serves the queue of a GPU "
        "and the default queue; messages come without our header, and with headers of another "
        "release or of no sense; so do events"
    )
    must = "all tasks run, routing goes on by the policy that leads"
    recovery = "from the end of the old controllers until tasks are routed by the other policy"
    plan = DatabaseFault.plan
    spoils = True
    limit_seconds = 10.0
    tasks = 600
    over_seconds = 60.0
    most_seconds = 0.1
    until_mended = True
    window = (1.0, 3.0)

    def publisher(self, cluster: Cluster, draw: random.Random) -> Publisher:
        self._plain = make_app(cluster.addresses, "celery")
        queues = ["celery", *(cluster.queue(n) for n in range(len(cluster.workers)))]

        def send(one: Publication) -> None:
            arguments = (one.number, one.seconds)
            if draw.random() < 0.5:
                cluster.app.send_task(WORK, arguments)
            elif draw.random() < 0.5:
                self._plain.send_task(WORK, arguments, queue=draw.choice(queues))
            else:
                headers = {"owl": draw.choice(HEADERS)}
                self._plain.send_task(WORK, arguments, queue=draw.choice(queues), headers=headers)

        return Publisher(cluster.app, self.publications(cluster, draw), send)

    def strike(self, cluster: Cluster, trial: Trial, draw: random.Random) -> None:
        # One of them takes work that would be another's: it counts as a worker of the cluster.
        cluster.workers.append(cluster.start_plain_worker("celery", cluster.queue(0)))
        old = list(cluster.controllers)
        said = cluster.log().count(RUNNING)
        cluster.controllers.append(cluster.start_controller({"OWL_POLICY": OTHER_POLICY}))
        cluster.wait(lambda: cluster.log().count(RUNNING) > said, "another controller", 30.0)
        for controller in old:
            controller.kill_group()
        router = cluster.parts.router
        before = router.decisions[OTHER_POLICY]
        took = cluster.wait(
            lambda: (
                cluster.health().policy == OTHER_POLICY and router.decisions[OTHER_POLICY] > before
            ),
            "routing by the other policy",
            20.0,
        )
        trial.recovery_seconds = round(took, 2)
        # To the one that leads from now on: what another has counted went with it.
        for text in EVENTS:
            cluster.state.xadd(KEYS.events, {"e": text})

    def judge(self, cluster: Cluster, trial: Trial, publisher: Publisher, account: Account) -> None:
        ran = sum(line.node == "plain@faults" for line in account.lines if line.what == "finished")
        trial.parameters["run_by_the_old_worker"] = ran
        skipped = cluster.health().counters.get("undecodable", 0)
        trial.check("events of no sense are counted", skipped, skipped >= len(EVENTS))

    def close(self) -> None:
        self._plain.close()
