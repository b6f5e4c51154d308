"""A burst from many producers, as ``benchmarks/burst.py`` measures it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from benchmarks.faults.fault import Fault, Trial

SEEDS: Final = 3
TASKS: Final = 1_000
MOST_DEVIATION: Final = 0.15
FLEETS: Final = ("identical", "mixed")


class ProducersBurst(Fault):
    """32 producers send 1,000 tasks within a second; nobody takes them."""

    name = "32 producers burst 1,000 tasks in 1 s"
    strikes = (
        f"32 processes with a view of their own send {TASKS:,} tasks within a second to 12 queues "
        f"that nobody serves, {SEEDS} times to identical and to mixed GPUs (`benchmarks.burst`); "
        "*lost* are those that wait nowhere"
    )
    must = f"the predicted seconds of each queue are within {MOST_DEVIATION:.0%} of ideal after 2 s"
    recovery = "not measured"
    needs_cluster = False
    most_trials = 1

    def run_alone(self, seed: int) -> Trial:
        trial = Trial(self.name, "owl", seed, recovery_seconds=0.0)
        for fleet in FLEETS:
            bursts = self._bursts(fleet)
            trial.published += sum(burst["tasks"] for burst in bursts)
            trial.lost += sum(burst["tasks"] - burst["waiting"] for burst in bursts)
            deviations = sorted(burst["deviation"] for burst in bursts)
            shown = ", ".join(f"{deviation:.1%}" for deviation in deviations)
            trial.check(
                f"{fleet} GPUs: median of the largest deviations of a queue, at most "
                f"{MOST_DEVIATION:.0%}",
                shown,
                deviations[SEEDS // 2] <= MOST_DEVIATION,
                is_timing=True,
            )
        return trial

    def _bursts(self, fleet: str) -> list[dict[str, Any]]:
        # In a process of its own, since it forks.
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "bursts.json"
            command = [sys.executable, "-m", "benchmarks.burst", "--fleet", fleet]
            subprocess.run(
                [*command, "--arm", "routed", "--seeds", str(SEEDS), "--json", str(path)],
                check=True,
                capture_output=True,
            )
            bursts: list[dict[str, Any]] = json.loads(path.read_text())
            return bursts
