"""The broker is gone for some seconds."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from benchmarks.faults.cluster import Cluster
from benchmarks.faults.fault import ALL_ARMS, Fault, Trial
from benchmarks.faults.ledger import Account
from benchmarks.faults.load import Publisher
from benchmarks.faults.plan import Plan

SLACK_SECONDS = 1.0


class BrokerGone(Fault):
    """Connections to the broker are cut, and come back."""

    name = "broker gone"
    strikes = "connections to the broker are closed and new ones refused, for 5 s"
    must = (
        "exactly plain Celery's behaviour: the same errors after as long a time; what was "
        "published without an error runs; workers come back by themselves"
    )
    recovery = "from the return of the broker until the last task has finished"
    arms = ALL_ARMS
    plan = Plan(proxied="broker")
    limit_seconds = 20.0
    tasks = 140
    over_seconds = 14.0
    patience_seconds = 25.0
    lasts_seconds: ClassVar[float] = 5.0

    def strike(self, cluster: Cluster, trial: Trial, draw: random.Random) -> None:
        trial.held = len(cluster.ledger.read().running())
        cluster.proxy.cut()
        time.sleep(self.lasts_seconds)
        cluster.proxy.restore()
        trial.parameters["back_at"] = cluster.ledger.now()

    def mend(self, cluster: Cluster) -> None:
        cluster.proxy.restore()

    def recovered_at(self, cluster: Cluster, account: Account, numbers: set[int]) -> float:
        return account.ended_at(numbers) - self.lasts_seconds

    def judge(self, cluster: Cluster, trial: Trial, publisher: Publisher, account: Account) -> None:
        errors, longest = dict(publisher.errors()), max(one.latency for one in publisher.done)
        trial.parameters.update(errors=errors, longest_publication=round(longest, 2))
        shown = ", ".join(f"{name} {count} times" for name, count in errors.items())
        trial.check("publishing without a broker raises, as with plain Celery", shown, bool(errors))
        trial.check(
            "the longest publication, as long as with plain Celery", f"{longest:.2f} s", True
        )

    def compare(self, by_arm: Mapping[str, Sequence[Trial]]) -> list[str]:
        errors = {arm: errors_of(trials) for arm, trials in by_arm.items() if trials}
        longest = {arm: longest_of(trials) for arm, trials in by_arm.items() if trials}
        plain = [arm for arm in errors if arm != "owl"]
        wrong = []
        if plain and not any(set(errors["owl"]) == set(errors[arm]) for arm in plain):
            wrong.append(f"other errors than plain Celery: {', '.join(errors['owl']) or 'none'}")
        if plain and longest["owl"] > max(longest[arm] for arm in plain) + SLACK_SECONDS:
            wrong.append(f"a publication took {longest['owl']:.1f} s")
        return wrong


class RabbitGone(BrokerGone):
    """The same on RabbitMQ."""

    name = "broker gone, RabbitMQ"
    strikes = (
        f"{BrokerGone.strikes}; all publish with `confirm_publish`, without which Celery "
        "loses what is on its way"
    )
    plan = replace(BrokerGone.plan, broker="rabbitmq")


def errors_of(trials: Sequence[Trial]) -> Counter[str]:
    """What publishing raised."""
    found: Counter[str] = Counter()
    for trial in trials:
        found.update(trial.parameters.get("errors", {}))
    return found


def longest_of(trials: Sequence[Trial]) -> float:
    """Seconds that the longest publication took."""
    return max((trial.parameters.get("longest_publication", 0.0) for trial in trials), default=0.0)
