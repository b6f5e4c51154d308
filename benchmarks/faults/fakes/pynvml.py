"""Plays NVML in a worker; the file ``FAULTS_NVML`` says what is wrong with it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

NVML_DEVICE_MIG_ENABLE = 1
NVML_TEMPERATURE_GPU = 0


class NVMLError(Exception):
    """What NVML raises."""


def _how() -> str:
    path = Path(os.environ["FAULTS_NVML"])
    while (how := path.read_text()) == "hangs":
        time.sleep(0.05)  # As a driver that never answers; ends with the trial.
    return how


def _answer(value: Any, nonsense: Any) -> Any:
    how = _how()
    if how == "lost":
        raise NVMLError("GPU is lost: uncorrectable ECC error")
    if how == "MIG":
        raise NVMLError("Not Supported")
    return nonsense if how == "nonsense" else value


def nvmlInit() -> None:
    if _how() == "absent":
        raise NVMLError("NVML Shared Library Not Found")


def nvmlDeviceGetHandleByUUID(uuid: str) -> str:
    if _how() in ("absent", "lost"):
        raise NVMLError("GPU is lost: uncorrectable ECC error")
    return uuid


def nvmlDeviceGetMemoryInfo(_: str) -> Any:
    # What NVML gives for a value that is not available is the largest of its type.
    return _answer(
        SimpleNamespace(total=16 * 2**30, free=12 * 2**30),
        SimpleNamespace(total=2**64 - 1, free=2**64 - 1),
    )


def nvmlDeviceGetUtilizationRates(_: str) -> Any:
    return _answer(SimpleNamespace(gpu=50), SimpleNamespace(gpu=2**32 - 1))


def nvmlDeviceGetPowerUsage(_: str) -> Any:
    return _answer(100_000, -1)


def nvmlDeviceGetTemperature(_: str, __: int) -> Any:
    return _answer(40, 2**31)


def nvmlDeviceGetComputeRunningProcesses(_: str) -> Any:
    return _answer([], [SimpleNamespace(pid=2**32 - 1, usedGpuMemory=None)])
