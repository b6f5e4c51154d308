"""Tasks that kill their process, hang, or find too little memory."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from typing import Final

from celery.states import READY_STATES

from benchmarks.faults.application import STUMBLE
from benchmarks.faults.cluster import Cluster
from benchmarks.faults.fault import Fault, Trial
from benchmarks.faults.ledger import Account
from benchmarks.faults.load import Publication, Publisher
from benchmarks.faults.plan import Plan

MOST: Final = ("fine", "fine", "fine", "killed", "memory")
TIME_LIMIT_SECONDS: Final = 2
MAX_TRIES: Final = 3


class TasksStumble(Fault):
    """Tasks among others that kill their pool process, are out of memory, hang or are poison."""

    name = "child killed, out of memory, hung, poison"
    strikes = (
        "among tasks that are fine, some kill their pool process in the first try (SIGKILL), some "
        "are out of CUDA memory on a K80, one hangs until its hard time limit of "
        f"{TIME_LIMIT_SECONDS} s, and one kills its process every time"
    )
    must = (
        "what was killed runs elsewhere; out of memory, never again on the same GPU model; the one "
        f"that hangs ends by its time limit; the poison after {MAX_TRIES} tries with a reason"
    )
    recovery = "from the first such task until all of them have ended"
    arms = ("owl", "celery_late")
    plan = Plan(workers=3)
    limit_seconds = 25.0
    tasks = 50
    over_seconds = 6.0
    most_seconds = 0.1
    window = (0.0, 0.1)
    patience_seconds = 30.0

    def publisher(self, cluster: Cluster, draw: random.Random) -> Publisher:
        plan = self.publications(cluster, draw)
        self._hows = {one.number: draw.choice(MOST) for one in plan}
        hung, poison = draw.sample([one.number for one in plan[: len(plan) // 2]], 2)
        self._hows.update({hung: "hung", poison: "poison"})
        self._ids: dict[int, str] = {}

        def send(one: Publication) -> None:
            how = self._hows[one.number]
            limit = {"time_limit": TIME_LIMIT_SECONDS} if how == "hung" else {}
            arguments = (one.number, how, one.seconds)
            sent = cluster.app.send_task(f"{STUMBLE}.{how}", arguments, **limit)
            self._ids[one.number] = str(sent.id)

        return Publisher(cluster.app, plan, send)

    def numbered(self, how: str) -> list[int]:
        """Tasks that stumble in this way."""
        return [number for number, found in self._hows.items() if found == how]

    def _end(self, cluster: Cluster, number: int) -> str:
        """What the result of a task says; empty as long as it has none."""
        meta = cluster.app.backend.get_task_meta(self._ids[number])
        return repr(meta["result"]) if meta["status"] in READY_STATES else ""

    def strike(self, cluster: Cluster, trial: Trial, draw: random.Random) -> None:
        """The tasks do."""

    def missing(self, cluster: Cluster, account: Account, numbers: set[int]) -> set[int]:
        return {
            number
            for number in account.lost(numbers)
            if self._hows[number] not in ("hung", "poison") or not self._end(cluster, number)
        }

    def judge(self, cluster: Cluster, trial: Trial, publisher: Publisher, account: Account) -> None:
        models: dict[int, list[str]] = defaultdict(list)
        for line in account.lines:
            if line.what == "started":
                models[line.number].append(line.gpu_model)
        trial.parameters["hows"] = dict(Counter(self._hows.values()))
        for how in ("hung", "poison"):
            (number,) = self.numbered(how)
            said = self._end(cluster, number) or "no end"
            trial.parameters[how] = {"tries": len(models[number]), "said": said}
        if cluster.arm != "owl":
            return
        again = [models[n] for n in self.numbered("memory") if Counter(models[n])["k80"] > 1]
        trial.check(
            "none is tried again on the GPU model that lacks the memory", again or "none", not again
        )
        hung, poison = trial.parameters["hung"], trial.parameters["poison"]
        trial.check("the hung task has ended", hung["said"], hung["said"] != "no end")
        trial.check(
            f"the poison has ended after at most {MAX_TRIES} tries",
            f"{poison['tries']} tries: {poison['said']}",
            poison["said"] != "no end" and poison["tries"] <= MAX_TRIES,
        )
