"""GPUs of this host: what they are, what they report, and which one this worker has."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, Final, Protocol, TypeVar

from owl_celery.breaker import Breaker
from owl_celery.errors import WorkerError
from owl_celery.settings import Settings

log = logging.getLogger(__name__)

T = TypeVar("T")

CPU_MODEL: Final = "cpu"
GIBIBYTE: Final = 1024**3
MAX_BYTES: Final = 2.0**60
MAX_MILLIWATTS: Final = 1e7
COLDEST_CELSIUS, HOTTEST_CELSIUS = -100.0, 1000.0
FAKE_MEMORY_BYTES: Final[Mapping[str, int]] = {
    model: count * GIBIBYTE
    for model, count in {
        **{"k80": 12, "p100": 16, "v100": 16, "t4": 16, "a10": 24, "a100": 40, "l4": 24},
        **{"l40s": 48, "h100": 80, "h200": 141},
    }.items()
}
"""Virtual GPUs that there are, in lower case."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, or one MIG instance of a divided GPU.

    Parameters
    ----------
    index
        Position among the GPUs of this host, from 0.
    uuid
        What ``CUDA_VISIBLE_DEVICES`` takes.
    model
        Product name; estimates pool over it.
    memory_total_bytes
        None when unknown.

    """

    index: int
    uuid: str
    model: str
    memory_total_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class GpuReadings:
    """What a GPU reports of itself; None where unknown.

    Parameters
    ----------
    memory_own_bytes
        What the processes of this worker hold of what is not free.
    utilization_ratio
        Share of the last second or so in which it computed, 0-1.

    """

    memory_total_bytes: int | None = None
    memory_free_bytes: int | None = None
    utilization_ratio: float | None = None
    temperature_celsius: float | None = None
    power_watts: float | None = None
    memory_own_bytes: int | None = None


class GpuReader(Protocol):
    """Finds and reads GPUs; neither verb raises, and neither takes long."""

    def list_gpus(self) -> list[Gpu]:
        """GPUs of this host by index; none when they cannot be read."""

    def read(self, uuid: str) -> GpuReadings:
        """Present readings of one GPU."""

    def totals(self) -> dict[str, float]:
        """What is counted of failures, as ``Breaker.totals``."""


class NvmlReader:
    """Reads NVIDIA GPUs by UUID, since NVML ignores ``CUDA_VISIBLE_DEVICES``.

    NVML calls can hang when a driver is broken: each runs in a thread of its own that is given
    up after ``limit_seconds``. While one hangs no other is started, and readings are unknown.

    Parameters
    ----------
    nvml
        The module ``pynvml``, or what behaves like it; imported at first use when omitted.
    limit_seconds
        Longest wait of a caller.

    Attributes
    ----------
    problem
        Why the last call found nothing; empty when it did.

    """

    def __init__(self, nvml: Any = None, limit_seconds: float = 2.0) -> None:
        self.problem = ""
        self._nvml = nvml
        self._limit_seconds = limit_seconds
        self._is_initialized = False
        self._idle = threading.Lock()
        self._breaker = Breaker(
            "worker",
            "nvml",
            "owl: GPU readings are unknown: {reason}",
            "owl: GPU readings are known again",
            level=logging.INFO,
            logger=log,
        )

    def list_gpus(self) -> list[Gpu]:
        """GPUs of this host; the MIG instances of a divided one take its place."""
        return self._within_limit(self._list) or []

    def read(self, uuid: str) -> GpuReadings:
        """Present readings of one GPU; those it does not have are None."""
        return self._within_limit(lambda: self._read(uuid)) or GpuReadings()

    def totals(self) -> dict[str, float]:
        """What is counted of failures, as ``Breaker.totals``."""
        return self._breaker.totals()

    def _within_limit(self, work: Callable[[], T]) -> T | None:
        if not self._idle.acquire(blocking=False):
            return None
        found: list[T] = []
        problems: list[str] = []

        def run() -> None:
            try:
                self._initialize()
                found.append(work())
            except Exception as error:
                problems.append(str(error) or type(error).__name__)
            finally:
                self._idle.release()

        thread = threading.Thread(target=run, name="nvml", daemon=True)
        thread.start()
        thread.join(self._limit_seconds)
        problem = problems[0] if problems else "" if found else "NVML does not answer"
        if problem:
            self._breaker.fails(problem)
        else:
            self._breaker.works()
        self.problem = problem
        return found[0] if found else None

    def _initialize(self) -> None:
        if self._nvml is None:
            # Here and not at the top: 8,000 lines that only a GPU worker's parent needs.
            self._nvml = import_module("pynvml")
        if not self._is_initialized:
            self._nvml.nvmlInit()
            self._is_initialized = True

    def _list(self) -> list[Gpu]:
        nvml = self._nvml
        handles: list[Any] = []
        for index in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            handles += self._mig_instances(handle) or [handle]
        return [
            Gpu(
                index,
                nvml.nvmlDeviceGetUUID(handle),
                nvml.nvmlDeviceGetName(handle),
                getattr(_known(nvml.nvmlDeviceGetMemoryInfo, handle), "total", None),
            )
            for index, handle in enumerate(handles)
        ]

    def _mig_instances(self, handle: Any) -> list[Any]:
        """Instances of a GPU that is divided by MIG; none of one that is whole."""
        nvml = self._nvml
        modes = _known(nvml.nvmlDeviceGetMigMode, handle)  # present and pending
        if modes is None or modes[0] != nvml.NVML_DEVICE_MIG_ENABLE:
            return []
        places = range(_known(nvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0)
        found = [_known(nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, i) for i in places]
        return [instance for instance in found if instance is not None]

    def _read(self, uuid: str) -> GpuReadings:
        nvml = self._nvml
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
        memory = _known(nvml.nvmlDeviceGetMemoryInfo, handle)
        rates = _known(nvml.nvmlDeviceGetUtilizationRates, handle)
        milliwatts = _known(nvml.nvmlDeviceGetPowerUsage, handle)
        celsius = _known(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU)
        percent = _within(getattr(rates, "gpu", None), 0.0, 100.0)
        milliwatts = _within(milliwatts, 0.0, MAX_MILLIWATTS)
        return GpuReadings(
            memory_total_bytes=_bytes(getattr(memory, "total", None)),
            memory_free_bytes=_bytes(getattr(memory, "free", None)),
            utilization_ratio=None if percent is None else percent / 100.0,
            temperature_celsius=_within(celsius, COLDEST_CELSIUS, HOTTEST_CELSIUS),
            power_watts=None if milliwatts is None else milliwatts / 1000.0,
            memory_own_bytes=self._own_bytes(handle),
        )

    def _own_bytes(self, handle: Any) -> int | None:
        """What our process group holds; None where NVML lists none of it, as in most containers."""
        processes = _known(self._nvml.nvmlDeviceGetComputeRunningProcesses, handle) or []
        own = [process.usedGpuMemory for process in processes if _is_of_our_group(process.pid)]
        return _bytes(sum(own)) if own and None not in own else None


def _is_of_our_group(pid: int) -> bool:
    """Whether a process was started by this worker, or by one of its children."""
    try:
        return os.getpgid(pid) == os.getpgrp()
    except (OSError, OverflowError):
        return False


def _within(value: Any, least: float, most: float) -> float | None:
    """A reading that can be true; None of one that cannot.

    For what is not available some drivers give the largest number of the type, and a heartbeat
    with such a number would be refused.
    """
    number = None if value is None else float(value)
    return number if number is not None and least <= number <= most else None


def _bytes(value: Any) -> int | None:
    return None if _within(value, 0.0, MAX_BYTES) is None else int(value)


def _known(read: Callable[..., Any], *args: Any) -> Any:
    """Read one value; None where this GPU does not have it (a MIG instance has no utilisation)."""
    try:
        return read(*args)
    except Exception:
        return None


class FakeGpus:
    """Virtual GPUs for a machine without any, and for tests.

    Parameters
    ----------
    gpus
        The GPUs, with distinct UUIDs.

    Examples
    --------
    >>> gpus = FakeGpus.of(["k80", "v100"], host="a")
    >>> [gpu.uuid for gpu in gpus.list_gpus()]
    ['SIM-a-0', 'SIM-a-1']
    >>> gpus.read("SIM-a-1").memory_free_bytes == 16 * 1024**3
    True
    >>> gpus.read("SIM-b-0").memory_free_bytes is None
    True

    """

    def __init__(self, gpus: Iterable[Gpu]) -> None:
        self._gpus = {gpu.uuid: gpu for gpu in gpus}
        self._readings: dict[str, GpuReadings] = {}

    @classmethod
    def of(cls, models: Iterable[str], host: str) -> FakeGpus:
        """One GPU for each model name, numbered from 0."""
        return cls(fake_gpu(index, model, host) for index, model in enumerate(models))

    def set_readings(self, uuid: str, readings: GpuReadings) -> None:
        """Report these readings from now on."""
        self._readings[uuid] = readings

    def list_gpus(self) -> list[Gpu]:
        """All of them, by index."""
        return sorted(self._gpus.values(), key=lambda gpu: gpu.index)

    def read(self, uuid: str) -> GpuReadings:
        """What was set, else an idle GPU; nothing for an unknown UUID."""
        gpu = self._gpus.get(uuid)
        if gpu is None:
            return GpuReadings()
        memory = gpu.memory_total_bytes
        return self._readings.get(uuid, GpuReadings(memory, memory, 0.0, 35.0, 30.0))

    def totals(self) -> dict[str, float]:
        """Nothing: they never fail."""
        return {}


def check_virtual(model: str) -> None:
    """Refuse a virtual GPU that there is not, which most often is a slip of the pen.

    Raises
    ------
    WorkerError
        When the model is unknown.

    """
    if model.lower() not in FAKE_MEMORY_BYTES:
        raise WorkerError(
            f"There is no virtual GPU {model!r}; there are {', '.join(FAKE_MEMORY_BYTES)}."
        )


def fake_gpu(index: int, model: str, host: str) -> Gpu:
    """Make up a GPU; its UUID tells hosts and indices apart."""
    return Gpu(
        index, f"SIM-{host}-{index}", model, FAKE_MEMORY_BYTES.get(model.lower(), 16 * GIBIBYTE)
    )


class CurrentGpu:
    """The GPU of this worker and the queue that it alone serves.

    The same in the worker's parent and in its children. Everything is empty in a plain worker, in
    a producer and in a shell. Attributes are looked up at each use, because ``--gpu`` is read only
    after the application was imported.
    """

    @property
    def queue(self) -> str:
        """The worker's own queue."""
        return _settings().worker_queue

    @property
    def model(self) -> str:
        """Product name of the GPU; ``cpu`` for CPU processes."""
        return _settings().gpu_model

    @property
    def uuid(self) -> str:
        """UUID of the GPU; empty for CPU processes."""
        return _settings().gpu_uuid

    @property
    def concurrency(self) -> int:
        """Tasks that the queue runs at a time."""
        return _settings().worker_concurrency

    @property
    def is_simulated(self) -> bool:
        """Whether the GPU is a virtual one."""
        return _settings().gpu_simulated

    @staticmethod
    def refresh() -> None:
        """Read the environment again."""
        _settings.cache_clear()


@cache
def _settings() -> Settings:
    return Settings.load()


def current_gpu() -> CurrentGpu:
    """The GPU of this worker process; callable in a task."""
    return CurrentGpu()
