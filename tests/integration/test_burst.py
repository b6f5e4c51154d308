"""Several producer processes send at once, each by its own view of the load."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def test_a_burst_of_several_producers_spreads_over_all_queues(tmp_path: Path) -> None:
    path = tmp_path / "bursts.json"
    options = ["--fleet", "identical", "--arm", "routed", "--seeds", "1", "--producers", "8"]
    command = [sys.executable, "-m", "benchmarks.burst", *options, "--tasks", "360"]
    subprocess.run([*command, "--json", str(path)], check=True, timeout=150.0)
    (burst,) = json.loads(path.read_text())
    # Every task is in one of the queues; at random the fullest would have half as much again.
    assert sum(burst["seconds"]) == pytest.approx(sum(burst["ideal"]), rel=0.05)
    assert burst["deviation"] < 0.5
