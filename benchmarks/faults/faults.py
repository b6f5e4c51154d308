"""All faults, in an order in which neighbours can share a cluster."""

from __future__ import annotations

from typing import Final

from benchmarks.faults.broker import BrokerGone, RabbitGone
from benchmarks.faults.bursts import ProducersBurst
from benchmarks.faults.children import TasksStumble
from benchmarks.faults.controllers import ControllerKilled, ControllerKilledRabbit
from benchmarks.faults.database import (
    DatabaseDamaged,
    DatabaseLocked,
    DatabaseReadOnly,
    DiskFull,
    PostgresKilled,
)
from benchmarks.faults.events import EventsDisturbed
from benchmarks.faults.fault import Fault
from benchmarks.faults.movers import MoverKilled, MoverKilledRabbit
from benchmarks.faults.names import ManyNames
from benchmarks.faults.nvml import NvmlBroken
from benchmarks.faults.routers import RouterMistaken
from benchmarks.faults.state import StateCut, StateHole, StateSlow
from benchmarks.faults.versions import VersionsMixed
from benchmarks.faults.workers import WorkerFrozen, WorkerGone, WorkerGoneRabbit, WorkerRestarted

FAULTS: Final[tuple[Fault, ...]] = (
    DatabaseLocked(),
    DiskFull(),
    DatabaseReadOnly(),
    DatabaseDamaged(),
    RouterMistaken(),
    VersionsMixed(),
    PostgresKilled(),
    StateSlow(),
    StateCut(),
    StateHole(),
    BrokerGone(),
    RabbitGone(),
    TasksStumble(),
    WorkerRestarted(),
    WorkerFrozen(),
    WorkerGone(),
    WorkerGoneRabbit(),
    MoverKilled(),
    ControllerKilled(),
    MoverKilledRabbit(),
    ControllerKilledRabbit(),
    EventsDisturbed(),
    NvmlBroken(),
    ManyNames(),
    ProducersBurst(),
)
