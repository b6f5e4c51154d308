"""What a fault is, and the account of one trial of it."""

from __future__ import annotations

import random
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

from benchmarks.faults.cluster import Cluster
from benchmarks.faults.ledger import Account
from benchmarks.faults.load import JOIN_SECONDS, Publication, Publisher, quantile, steady
from benchmarks.faults.plan import Plan

AFTER_SECONDS: Final = 2.0
"""How long publishing goes on after a fault that is mended."""

WARM_SECONDS: Final = 0.5
"""How long a publisher connects and imports, which is no measure of what follows."""

P99_RATIO: Final = 2.0
P99_SECONDS: Final = 0.025
LONGEST_SECONDS: Final = 0.25
ALL_ARMS: Final = ("owl", "celery", "celery_late")


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must hold.

    Parameters
    ----------
    what
        In words.
    found
        What was found, in words or as a number.
    holds
        Whether it does.
    is_timing
        Whether a machine with other work could make it fail.

    """

    what: str
    found: str
    holds: bool
    is_timing: bool = False


def check_latencies(trial: Trial, publisher: Publisher, since: float, until: float) -> None:
    """Check that publishing takes no longer between two monotonic times than before and after."""
    during = publisher.latencies(since, until)
    first = publisher.began + WARM_SECONDS
    beside = sorted(publisher.latencies(first, since) + publisher.latencies(until, float("inf")))
    there, here = quantile(during, 0.99), quantile(beside, 0.99)
    limit = max(P99_RATIO * here, P99_SECONDS)
    trial.check(
        f"publishing: p99 at most {P99_RATIO:g} times what it is outside the fault, or "
        f"{1000 * P99_SECONDS:g} ms",
        f"{1000 * there:.1f} ms, outside {1000 * here:.1f} ms",
        there <= limit,
        is_timing=True,
    )
    longest = during[-1] if during else 0.0
    trial.check(
        f"no publication takes more than {LONGEST_SECONDS:g} s",
        f"{1000 * longest:.0f} ms",
        longest <= LONGEST_SECONDS,
        is_timing=True,
    )


@dataclass(slots=True)
class Trial:
    """The account of one trial of one arm.

    Parameters
    ----------
    fault, arm, seed
        What was tried.
    published
        Tasks whose publication succeeded.
    refused
        Publications that raised.
    lost
        Tasks published that have not finished when the patience was over.
    doubled
        Tasks that finished more than once.
    run_again
        Tasks that started more than once.
    held
        Tasks that ran on what was struck: these alone may finish twice.
    recovery_seconds, limit_seconds
        As the fault defines it, None when it did not recover; and what it may take.
    checks
        What must hold beside.
    parameters
        What was drawn at random.
    error
        Why the trial broke; empty when it did not.

    """

    fault: str
    arm: str
    seed: int
    published: int = 0
    refused: int = 0
    lost: int = 0
    doubled: int = 0
    run_again: int = 0
    held: int = 0
    recovery_seconds: float | None = None
    limit_seconds: float = 0.0
    checks: list[Check] = field(default_factory=list)
    parameters: dict[str, Any] = field(default_factory=dict)
    error: str = ""

    def check(self, what: str, found: object, holds: bool, is_timing: bool = False) -> None:
        """Add one thing that must hold."""
        # Temporary folders have another name each time.
        shown = re.sub(rf"{re.escape(tempfile.gettempdir())}/owl-[\w-]*", "", str(found))
        self.checks.append(Check(what, shown, bool(holds), is_timing))


class Fault:
    """A fault: how it strikes, and what must hold.

    ``run`` publishes tasks, strikes at a random moment, and counts what became of each. Override
    ``strike``, and whatever else is different.

    Attributes
    ----------
    name, strikes, must
        For the report: a name, what happens, and what must hold.
    recovery
        From when to when recovery is measured.
    arms
        Who suffers it.
    plan
        What cluster it needs.
    needs_cluster
        False for one that starts what it needs itself: it overrides ``run_alone``.
    spoils
        Whether the cluster is of no use to another fault afterwards.
    limit_seconds
        Longest recovery.
    most_trials
        How often at most it is tried: one that takes long, and is much the same each time.
    tasks, over_seconds
        How many are published, in what time.
    least_seconds, most_seconds
        How long each takes, drawn at random.
    window
        When it strikes: at the least and at the most so many seconds after publishing began.
    until_mended
        Whether it is published until some seconds after the strike, ``over_seconds`` being the
        longest.
    patience_seconds
        How long after the last publication what has not finished counts as lost.

    """

    name: ClassVar[str]
    strikes: ClassVar[str]
    must: ClassVar[str]
    recovery: ClassVar[str] = "from the strike until the last task has finished"
    arms: ClassVar[tuple[str, ...]] = ("owl",)
    plan: ClassVar[Plan] = Plan()
    needs_cluster: ClassVar[bool] = True
    spoils: ClassVar[bool] = False
    limit_seconds: ClassVar[float] = 20.0
    most_trials: ClassVar[int] = 100
    tasks: ClassVar[int] = 60
    over_seconds: ClassVar[float] = 6.0
    least_seconds: ClassVar[float] = 0.02
    most_seconds: ClassVar[float] = 0.2
    window: ClassVar[tuple[float, float]] = (2.0, 4.0)
    until_mended: ClassVar[bool] = False
    patience_seconds: ClassVar[float] = 25.0

    def publications(self, cluster: Cluster, draw: random.Random) -> Sequence[Publication]:
        """What to publish."""
        return steady(
            draw,
            cluster.numbers,
            self.tasks,
            self.over_seconds,
            self.least_seconds,
            self.most_seconds,
        )

    def publisher(self, cluster: Cluster, draw: random.Random) -> Publisher:
        """Who publishes it."""
        return Publisher(cluster.app, self.publications(cluster, draw))

    def prepare(self, cluster: Cluster, trial: Trial, draw: random.Random) -> None:
        """Before anything is published."""

    def compare(self, by_arm: Mapping[str, Sequence[Trial]]) -> list[str]:
        """What is otherwise than with plain Celery and must not be, in words."""
        return []

    def strike(self, cluster: Cluster, trial: Trial, draw: random.Random) -> None:
        """Do harm, at a random moment; return when no more harm is done.

        One that measures recovery itself notes it in the trial.
        """

    def recovered_at(self, cluster: Cluster, account: Account, numbers: set[int]) -> float:
        """When all was well again, by the ledger's clock."""
        return account.ended_at(numbers)

    def missing(self, cluster: Cluster, account: Account, numbers: set[int]) -> set[int]:
        """Which of the published tasks have not come to their end."""
        return account.lost(numbers)

    def judge(self, cluster: Cluster, trial: Trial, publisher: Publisher, account: Account) -> None:
        """Check what must hold beside, once all has come to rest."""

    def mend(self, cluster: Cluster) -> None:
        """Undo the harm once it is done, also when the trial broke."""

    def close(self) -> None:
        """Give back what the trial took for itself."""

    def run_alone(self, seed: int) -> Trial:
        """One trial without a cluster."""
        raise NotImplementedError

    def run(self, cluster: Cluster, seed: int) -> Trial:
        """One trial."""
        try:
            return self._run(cluster, seed)
        finally:
            self.close()

    def _run(self, cluster: Cluster, seed: int) -> Trial:
        draw = random.Random(f"{self.name} {seed}")
        trial = Trial(self.name, cluster.arm, seed, limit_seconds=self.limit_seconds)
        self.prepare(cluster, trial, draw)
        at = draw.uniform(*self.window)
        publisher = self.publisher(cluster, draw)
        trial.parameters["strikes_after_seconds"] = round(at, 3)
        publisher.start()
        try:
            time.sleep(max(publisher.began + at - time.monotonic(), 0.0))
            struck_at = cluster.ledger.now()
            self.strike(cluster, trial, draw)
            if self.until_mended:
                time.sleep(AFTER_SECONDS)
        finally:
            self.mend(cluster)
        if self.until_mended:
            publisher.finish()
        publisher.join_within(self.over_seconds + max(JOIN_SECONDS, self.patience_seconds))
        numbers = publisher.numbers()
        account = self._settle(cluster, numbers)
        trial.published = len(numbers)
        trial.refused = sum(publisher.errors().values())
        missing = self.missing(cluster, account, numbers)
        trial.lost = len(missing)
        if missing:
            queues = ["celery", *map(cluster.queue, range(len(cluster.workers)))]
            trial.parameters["lost"] = {
                "started": len(missing & account.started.keys()),
                "waiting": {queue: cluster.waiting(queue) for queue in queues},
                "held": {queue: cluster.held(queue) for queue in queues},
            }
        trial.doubled = account.doubled(numbers)
        trial.run_again = account.run_again(numbers)
        if trial.lost:
            trial.recovery_seconds = None
        elif trial.recovery_seconds is None:
            trial.recovery_seconds = round(
                max(self.recovered_at(cluster, account, numbers) - struck_at, 0.0), 2
            )
        self.judge(cluster, trial, publisher, account)
        return trial

    def _settle(self, cluster: Cluster, numbers: set[int]) -> Account:
        """Wait until all tasks have come to their end, or the patience is over."""
        deadline = time.monotonic() + self.patience_seconds
        while (
            self.missing(cluster, account := cluster.ledger.read(), numbers)
            and time.monotonic() < deadline
        ):
            time.sleep(0.05)
        return account
