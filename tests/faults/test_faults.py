"""A part of ``make faults``: real processes are struck, and every task is accounted for."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(400)]

FAULTS = (
    "database locked",
    "router mistaken",
    "Redis of the state a black hole",
    "worker and its host gone, 100 queued there",
)
SLOW_MACHINE = 2.0
"""Times the limit of a recovery: the machine of a test has other work."""


@pytest.fixture(scope="module")
def accounts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The account of one trial of each fault, by its name."""
    path = tmp_path_factory.mktemp("faults") / "trials.json"
    chosen = [word for name in FAULTS for word in ("--fault", name)]
    command = [sys.executable, "-m", "benchmarks.faults", "--trials", "1", "--arm", "owl"]
    done = subprocess.run(
        [*command, *chosen, "--json", path], capture_output=True, text=True, check=False
    )
    assert path.exists(), done.stderr
    return {trial["fault"]: trial for trial in json.loads(path.read_text())}


@pytest.mark.parametrize("fault", FAULTS)
def test_no_task_is_lost_or_doubled_and_all_that_must_hold_does(
    accounts: dict[str, dict[str, Any]], fault: str
) -> None:
    account = accounts[fault]
    assert account["error"] == ""
    assert account["published"] > 50
    assert account["refused"] == 0
    assert account["lost"] == 0
    assert account["doubled"] <= account["held"]
    assert account["recovery_seconds"] <= SLOW_MACHINE * account["limit_seconds"]
    wrong = [check for check in account["checks"] if not check["holds"] and not check["is_timing"]]
    assert wrong == []
