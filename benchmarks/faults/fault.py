"""What a fault is, and the account of one trial of it."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

from benchmarks.faults.cluster import Cluster, Plan
from benchmarks.faults.ledger import Account
from benchmarks.faults.load import Publication, Publisher, steady

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

    """

    what: str
    found: str
    holds: bool


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
    recovery_seconds
        As the fault defines it; None when it did not recover.
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
    checks: list[Check] = field(default_factory=list)
    parameters: dict[str, Any] = field(default_factory=dict)
    error: str = ""

    def check(self, what: str, found: object, holds: bool) -> None:
        """Add one thing that must hold."""
        shown = f"{found:.3g}" if isinstance(found, float) else str(found)
        self.checks.append(Check(what, shown, bool(holds)))


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
    spoils
        Whether the cluster is of no use to another fault afterwards.
    limit_seconds
        Longest recovery.
    tasks, over_seconds
        How many are published, in what time.
    least_seconds, most_seconds
        How long each takes, drawn at random.
    window
        In which share of the publishing it strikes.
    patience_seconds
        How long after the last publication what has not finished counts as lost.

    """

    name: ClassVar[str]
    strikes: ClassVar[str]
    must: ClassVar[str]
    recovery: ClassVar[str] = "from the strike until the last task has finished"
    arms: ClassVar[tuple[str, ...]] = ("owl",)
    plan: ClassVar[Plan] = Plan()
    spoils: ClassVar[bool] = False
    limit_seconds: ClassVar[float] = 20.0
    tasks: ClassVar[int] = 60
    over_seconds: ClassVar[float] = 6.0
    least_seconds: ClassVar[float] = 0.02
    most_seconds: ClassVar[float] = 0.2
    window: ClassVar[tuple[float, float]] = (0.3, 0.7)
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

    def strike(self, cluster: Cluster, trial: Trial, draw: random.Random) -> None:
        """Do harm, at a random moment; return when no more harm is done.

        One that measures recovery itself notes it in the trial.
        """

    def recovered_at(self, cluster: Cluster, account: Account, numbers: set[int]) -> float:
        """When all was well again, by the ledger's clock."""
        return account.ended_at(numbers)

    def judge(self, cluster: Cluster, trial: Trial, publisher: Publisher, account: Account) -> None:
        """Check what must hold beside, once all has come to rest."""

    def mend(self, cluster: Cluster) -> None:
        """Leave the cluster as it was found, also when the trial broke."""

    def run(self, cluster: Cluster, seed: int) -> Trial:
        """One trial."""
        draw = random.Random(f"{self.name} {seed}")
        trial = Trial(self.name, cluster.arm, seed)
        self.prepare(cluster, trial, draw)
        at = draw.uniform(*self.window) * self.over_seconds
        publisher = self.publisher(cluster, draw)
        trial.parameters["strikes_after_seconds"] = round(at, 3)
        publisher.start()
        try:
            time.sleep(max(publisher.began + at - time.monotonic(), 0.0))
            struck_at = cluster.ledger.now()
            self.strike(cluster, trial, draw)
        finally:
            publisher.join()
            self.mend(cluster)
        numbers = publisher.numbers()
        account = cluster.ledger.wait(numbers, self.patience_seconds)
        trial.published = len(numbers)
        trial.refused = sum(publisher.errors().values())
        trial.lost = len(account.lost(numbers))
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
