"""The published load, while workers, children, producers and the controller are killed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.slow]

TASKS = 2_000


def run_benchmark(path: Path) -> dict[str, Any]:
    """Run the benchmark on a small scale; its result."""
    options = {
        "tasks": TASKS,
        "rounds": 2,
        "workers": 3,
        "controllers": 1,
        "depth": 150,
        "kill-tasks": 200,
        "longest-away-seconds": 3,
        "limit-seconds": 150,
        "json": path,
    }
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "benchmarks.load_view", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170.0, check=False)
    assert done.returncode == 0, done.stderr[-8000:]
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def test_the_load_is_nearly_exact_while_busy_and_exactly_zero_when_idle(tmp_path: Path) -> None:
    result = run_benchmark(tmp_path / "result.json")
    assert result["is_complete"]
    assert TASKS <= result["published"] < TASKS + 10
    # Whoever is killed between taking or publishing a task and saying so leaves nothing behind.
    assert len(result["zero_seconds"]) == 2
    assert None not in result["zero_seconds"]
    assert result["not_zero"] == 0
    struck = " ".join(result["strikes"])
    assert "worker killed" in struck
    assert "controller killed" in struck
    errors = {error["what"]: error for error in result["errors"]}
    assert errors["all queues: tasks"]["median"] < 0.1
    assert errors["all queues: predicted seconds"]["median"] < 0.15
