"""GPU readers: what is unknown is None, and nothing hangs or raises."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from owl_celery.gpus import (
    CurrentGpu,
    FakeGpus,
    GpuReader,
    GpuReadings,
    NvmlReader,
    current_gpu,
    fake_gpu,
)
from owl_celery.testing import wait_until

UUIDS = ("GPU-aaaa", "GPU-bbbb")


class FakeNvml:
    """Behaves like the module pynvml on a host with two GPUs.

    Parameters
    ----------
    mig
        UUIDs of the MIG instances of the first GPU; empty when it is whole.
    broken
        Names of functions that fail, as they do where a GPU does not support them.
    held
        What each process of ours holds of every GPU; None where NVML does not tell.

    """

    NVML_DEVICE_MIG_ENABLE = 1
    NVML_TEMPERATURE_GPU = 0

    def __init__(
        self,
        mig: tuple[str, ...] = (),
        broken: tuple[str, ...] = (),
        held: tuple[int | None, ...] = (),
    ) -> None:
        self.held = held
        self.mig = mig
        self.broken = broken
        self.inits = 0
        self.hang = threading.Event()
        self.hang.set()

    def __getattribute__(self, name: str) -> Any:
        found = object.__getattribute__(self, name)
        if not name.startswith("nvml"):
            return found

        def call(*args: Any) -> Any:
            self.hang.wait(10.0)
            if name in self.broken:
                raise RuntimeError("Not Supported")
            return found(*args)

        return call

    def nvmlInit(self) -> None:
        self.inits += 1

    def nvmlDeviceGetCount(self) -> int:
        return len(UUIDS)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        return UUIDS[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid not in UUIDS + self.mig:
            raise RuntimeError("Not Found")
        return uuid

    def nvmlDeviceGetUUID(self, handle: str) -> str:
        return handle

    def nvmlDeviceGetName(self, handle: str) -> str:
        return "NVIDIA A100 MIG 1g.5gb" if handle in self.mig else "NVIDIA A100"

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:
        return SimpleNamespace(total=40_000, free=30_000, used=10_000)

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> SimpleNamespace:
        if handle in self.mig:
            raise RuntimeError("Not Supported")
        return SimpleNamespace(gpu=75, memory=10)

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:
        return 61

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        return 250_500

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[SimpleNamespace]:
        ours = [SimpleNamespace(pid=os.getpid(), usedGpuMemory=used) for used in self.held]
        return [SimpleNamespace(pid=1, usedGpuMemory=3_000), *ours]

    def nvmlDeviceGetMigMode(self, handle: str) -> list[int]:
        if handle != UUIDS[0]:
            raise RuntimeError("Not Supported")
        return [1 if self.mig else 0, 0]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: str) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: str, index: int) -> str:
        if index >= len(self.mig):
            raise RuntimeError("Not Found")
        return self.mig[index]


@pytest.mark.parametrize(
    "reader",
    [NvmlReader(FakeNvml()), FakeGpus([fake_gpu(0, "k80", "a"), fake_gpu(1, "v100", "a")])],
    ids=["nvml", "fake"],
)
class TestEveryReader:
    def test_lists_gpus_by_index_with_distinct_uuids(self, reader: GpuReader) -> None:
        gpus = reader.list_gpus()

        assert [gpu.index for gpu in gpus] == [0, 1]
        assert len({gpu.uuid for gpu in gpus}) == 2
        assert all(gpu.model and gpu.memory_total_bytes for gpu in gpus)

    def test_reads_every_gpu_it_lists(self, reader: GpuReader) -> None:
        for gpu in reader.list_gpus():
            readings = reader.read(gpu.uuid)

            assert readings.memory_total_bytes == gpu.memory_total_bytes
            assert readings.utilization_ratio is not None
            assert 0.0 <= readings.utilization_ratio <= 1.0

    def test_knows_nothing_of_a_gpu_that_is_not_there(self, reader: GpuReader) -> None:
        assert reader.read("GPU-gone") == GpuReadings()


def test_nvml_units_are_ours() -> None:
    assert NvmlReader(FakeNvml()).read(UUIDS[0]) == GpuReadings(40_000, 30_000, 0.75, 61.0, 250.5)


def test_a_value_the_gpu_does_not_have_is_unknown_and_the_others_are_read() -> None:
    nvml = FakeNvml(broken=("nvmlDeviceGetPowerUsage", "nvmlDeviceGetTemperature"))

    assert NvmlReader(nvml).read(UUIDS[1]) == GpuReadings(40_000, 30_000, 0.75, None, None)


@pytest.mark.parametrize(
    ("held", "own"), [((), None), ((4_000, 500), 4_500), ((4_000, None), None)]
)
def test_what_our_own_processes_hold_is_told_apart(
    held: tuple[int | None, ...], own: int | None
) -> None:
    assert NvmlReader(FakeNvml(held=held)).read(UUIDS[0]).memory_own_bytes == own


@pytest.mark.parametrize("nonsense", [2**64 - 1, -1_000, float("nan")])
def test_a_value_that_cannot_be_true_is_unknown_and_so_fits_a_heartbeat(nonsense: Any) -> None:
    class Nonsense(FakeNvml):
        def nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:
            return SimpleNamespace(total=nonsense, free=nonsense)

        def nvmlDeviceGetUtilizationRates(self, handle: str) -> SimpleNamespace:
            return SimpleNamespace(gpu=nonsense)

        def nvmlDeviceGetPowerUsage(self, handle: str) -> Any:
            return nonsense

        def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[SimpleNamespace]:
            ours = SimpleNamespace(pid=os.getpid(), usedGpuMemory=nonsense)
            return [SimpleNamespace(pid=2**32 - 1, usedGpuMemory=None), ours]

    assert NvmlReader(Nonsense()).read(UUIDS[0]) == GpuReadings(temperature_celsius=61.0)


def test_instances_of_a_divided_gpu_take_its_place() -> None:
    reader = NvmlReader(FakeNvml(mig=("MIG-1", "MIG-2")))

    assert [gpu.uuid for gpu in reader.list_gpus()] == ["MIG-1", "MIG-2", UUIDS[1]]
    assert [gpu.index for gpu in reader.list_gpus()] == [0, 1, 2]
    assert reader.read("MIG-1") == GpuReadings(40_000, 30_000, None, 61.0, 250.5)


def test_a_divided_gpu_whose_instances_cannot_be_listed_counts_as_whole() -> None:
    nvml = FakeNvml(mig=("MIG-1",), broken=("nvmlDeviceGetMaxMigDeviceCount",))

    assert [gpu.uuid for gpu in NvmlReader(nvml).list_gpus()] == list(UUIDS)


def test_a_host_without_driver_has_no_gpus_and_says_why() -> None:
    reader = NvmlReader(FakeNvml(broken=("nvmlInit",)))

    assert reader.list_gpus() == []
    assert reader.read(UUIDS[0]) == GpuReadings()
    assert reader.problem == "Not Supported"


def test_the_real_library_never_raises() -> None:
    reader = NvmlReader()

    for gpu in reader.list_gpus():
        reader.read(gpu.uuid)
    reader.read("GPU-gone")


def test_a_hanging_call_is_given_up_and_no_other_is_started_meanwhile() -> None:
    nvml = FakeNvml()
    reader = NvmlReader(nvml, limit_seconds=0.05)
    assert reader.read(UUIDS[0]).utilization_ratio == 0.75
    before = threading.active_count()
    nvml.hang.clear()

    assert reader.read(UUIDS[0]) == GpuReadings()
    assert reader.problem == "NVML does not answer"
    assert [reader.read(UUIDS[0]) for _ in range(5)] == [GpuReadings()] * 5
    assert reader.list_gpus() == []
    assert threading.active_count() == before + 1

    nvml.hang.set()
    wait_until(lambda: reader.read(UUIDS[0]).utilization_ratio == 0.75, "readings to come back")
    assert reader.problem == ""
    assert nvml.inits == 1


def test_fake_readings_can_be_set() -> None:
    gpus = FakeGpus.of(["k80"], host="a")
    gpus.set_readings("SIM-a-0", GpuReadings(utilization_ratio=0.5))

    assert gpus.read("SIM-a-0").utilization_ratio == 0.5


@pytest.fixture
def gpu() -> Iterator[CurrentGpu]:
    yield current_gpu()
    current_gpu().refresh()


def test_a_process_without_a_gpu_of_its_own_has_an_empty_one(gpu: CurrentGpu) -> None:
    gpu.refresh()

    assert (gpu.queue, gpu.model, gpu.uuid, gpu.is_simulated) == ("", "", "", False)


def test_the_current_gpu_is_read_from_the_environment(
    gpu: CurrentGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OWL_WORKER_QUEUE", "gpu.a.3")
    monkeypatch.setenv("OWL_GPU_MODEL", "v100")
    monkeypatch.setenv("OWL_WORKER_CONCURRENCY", "2")
    gpu.refresh()

    assert (gpu.queue, gpu.model, gpu.concurrency) == ("gpu.a.3", "v100", 2)
