"""NVML is absent, hangs, has no readings, reports a lost GPU, or says nonsense."""

from __future__ import annotations

import random
import time
from typing import Final

from benchmarks.faults.cluster import Cluster
from benchmarks.faults.fault import Fault, Trial
from benchmarks.faults.plan import Plan
from owl_celery.wire import Heartbeat

HOWS: Final = ("hangs", "MIG", "lost", "nonsense")
HOLD_SECONDS: Final = 2.0
UNKNOWN_SECONDS: Final = 6.0


class NvmlBroken(Fault):
    """The readings of GPUs fail in one way after the other."""

    name = "NVML absent, hanging, MIG, ECC errors"
    strikes = (
        "a module pynvml of ours is absent at the start of the workers; then answers; then, in "
        f"random order: {', '.join(HOWS)} (MIG: no reading is supported; lost: an ECC error)"
    )
    must = "readings are unknown, and known again after; tasks are routed and run as before"
    recovery = "from the end of a fault until all readings are known again, the longest of them"
    plan = Plan(nvml=True)
    limit_seconds = 5.0
    tasks = 900
    over_seconds = 60.0
    most_seconds = 0.1
    until_mended = True

    def strike(self, cluster: Cluster, trial: Trial, draw: random.Random) -> None:
        before = cluster.parts.router.fallbacks.copy()
        took = cluster.wait(lambda: all(map(is_unknown, beats(cluster))), "no readings", 5.0)
        trial.check("absent: readings are unknown", f"after {took:.1f} s", True)
        longest = self._answer(cluster)
        for how in draw.sample(HOWS, len(HOWS)):
            cluster.nvml.write_text(how)
            took = cluster.wait(
                lambda: (
                    len(beats(cluster)) == self.plan.workers
                    and all(map(is_unknown, beats(cluster)))
                ),
                f"unknown readings while NVML {how}",
                UNKNOWN_SECONDS,
            )
            gone = time.monotonic() + HOLD_SECONDS
            alive = self.plan.workers
            while time.monotonic() < gone:
                alive = min(alive, cluster.open_queues())
                time.sleep(0.05)
            trial.check(f"{how}: readings are unknown", f"after {took:.1f} s", True)
            trial.check(f"{how}: open queues", alive, alive == self.plan.workers)
            longest = max(longest, self._answer(cluster))
        trial.recovery_seconds = round(longest, 2)
        found = cluster.parts.router.fallbacks - before
        found.pop("no_knowledge", None)
        trial.check("no task goes another way than before", dict(found) or "none", not found)

    def _answer(self, cluster: Cluster) -> float:
        """Let NVML answer; seconds until all readings are known."""
        cluster.nvml.write_text("answers")
        return cluster.wait(
            lambda: (
                len(beats(cluster)) == self.plan.workers
                and not any(map(is_unknown, beats(cluster)))
            ),
            "readings",
            30.0,
        )

    def mend(self, cluster: Cluster) -> None:
        cluster.nvml.write_text("answers")


def beats(cluster: Cluster) -> list[Heartbeat]:
    """Latest heartbeat of each worker."""
    return list(cluster.beats().values())


def is_unknown(beat: Heartbeat) -> bool:
    """Whether no reading is known."""
    readings = (
        beat.memory_free_bytes,
        beat.utilization_ratio,
        beat.temperature_celsius,
        beat.power_watts,
    )
    return all(reading is None for reading in readings)
