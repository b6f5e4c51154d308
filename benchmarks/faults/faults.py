"""All faults, in an order in which neighbours can share a cluster."""

from __future__ import annotations

from typing import Final

from benchmarks.faults.controllers import ControllerKilled
from benchmarks.faults.fault import Fault
from benchmarks.faults.workers import WorkerFrozen, WorkerGone, WorkerRestarted

FAULTS: Final[tuple[Fault, ...]] = (
    WorkerRestarted(),
    WorkerFrozen(),
    WorkerGone(),
    ControllerKilled(),
)
