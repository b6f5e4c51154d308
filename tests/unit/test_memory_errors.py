"""What counts as a lack of memory, by the names and texts of frameworks that are not installed."""

from __future__ import annotations

import errno
import pickle
from pathlib import Path

import pytest
from billiard.einfo import ExceptionInfo
from billiard.exceptions import WorkerLostError
from celery.exceptions import Retry
from celery.utils.serialization import UnpickleableExceptionWrapper, create_exception_cls

from owl_celery.memory_errors import KernelKills, is_out_of_memory


def raised(module: str, name: str, text: str, parent: type[Exception] = RuntimeError) -> Exception:
    """An exception as a framework raises it."""
    kind = type(name, (parent,), {"__module__": module})
    error = kind(text)
    assert isinstance(error, Exception)
    return error


MEMORY = [
    raised("torch", "OutOfMemoryError", "CUDA out of memory. Tried to allocate 20.00 MiB."),
    raised("torch.cuda", "OutOfMemoryError", ""),
    RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB (GPU 0; 11.17 GiB total)"),
    RuntimeError("HIP out of memory. Tried to allocate 512.00 MiB. GPU 0 has a total capacity"),
    RuntimeError("MPS backend out of memory (MPS allocated: 17.60 GB, other allocations: 61 MB)"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory"),
    raised("cupy.cuda.memory", "OutOfMemoryError", "Out of memory allocating 8,000 bytes."),
    raised("cupy_backends.cuda.api.runtime", "CUDARuntimeError",
           "cudaErrorMemoryAllocation: out of memory"),
    raised("tensorflow.python.framework.errors_impl", "ResourceExhaustedError", "", Exception),
    raised("tensorflow.python.framework.errors_impl", "InternalError",
           "OOM when allocating tensor with shape[256,1024] and type float", Exception),
    raised("jaxlib.xla_extension", "XlaRuntimeError",
           "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 12884901888 bytes."),
    raised("jax.errors", "JaxRuntimeError", "RESOURCE_EXHAUSTED: Attempting to reserve 2.00G at "
           "the bottom of memory.", Exception),
    RuntimeError("Resource exhausted: Failed to allocate request for 16.00GiB on device ordinal 0"),
    raised("numba.cuda.cudadrv.driver", "CudaAPIError",
           "[2] Call to cuMemAlloc results in CUDA_ERROR_OUT_OF_MEMORY", Exception),
    raised("onnxruntime.capi.onnxruntime_pybind11_state", "RuntimeException",
           "[ONNXRuntimeError] : 6 : BFCArena::AllocateRawInternal Failed to allocate memory for "
           "requested buffer of size 1073741824", Exception),
    RuntimeError("[TRT] [E] 2: [virtualMemoryBuffer.cpp::resizePhysical::145] Error Code 2: "
                 "OutOfMemory (no further information)"),
    SystemError("ResourceExhaustedError: Out of memory error on GPU 0. Cannot allocate 2 GB"),
    MemoryError(),
    raised("numpy._core._exceptions", "_ArrayMemoryError", "", MemoryError),
    raised("pycuda._driver", "MemoryError", "cuMemAlloc failed", Exception),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
]  # fmt: skip

OTHERS = [
    None,
    ValueError("no such layer"),
    ValueError("'CUDA out of memory' is no valid label"),
    KeyError("CUDA out of memory"),
    OSError(errno.ENOSPC, "No space left on device"),
    ConnectionError("500 Server Error: CUDA out of memory"),
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("out of memory cards to draw"),
    raised("grpc", "RpcError", "StatusCode.RESOURCE_EXHAUSTED: Quota exceeded", Exception),
    raised("redis.exceptions", "OutOfMemoryError", "command not allowed when used memory > max"),
    raised("jax.errors", "JaxRuntimeError", "INVALID_ARGUMENT: shapes", Exception),
    WorkerLostError("Worker exited prematurely: signal 9 (SIGKILL) Job: 0."),
]


@pytest.mark.parametrize("error", MEMORY, ids=repr)
def test_what_frameworks_raise_is_recognised(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", OTHERS, ids=repr)
def test_other_errors_are_not(error: Exception | None) -> None:
    assert not is_out_of_memory(error)


def caused(how: str) -> BaseException:
    memory = MemoryError()
    try:
        try:
            raise memory
        except MemoryError as error:
            if how == "cause":
                raise ValueError("cannot train") from error
            if how == "context":
                raise ValueError("cannot train")  # noqa: B904
            if how == "retry":
                raise Retry(exc=error) from None
            raise ExceptionGroup("workers", [ValueError(), ExceptionGroup("", [memory])]) from None
    except Exception as error:
        return error


@pytest.mark.parametrize("how", ["cause", "context", "retry", "group"])
def test_it_is_found_behind_another_error(how: str) -> None:
    assert is_out_of_memory(caused(how))


def test_a_circle_of_causes_ends() -> None:
    first, second = ValueError(), ValueError()
    first.__cause__, second.__cause__ = second, first
    assert not is_out_of_memory(first)


def test_it_is_recognised_as_it_comes_from_another_process() -> None:
    try:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
    except RuntimeError:
        sent = pickle.loads(pickle.dumps(ExceptionInfo()))
    assert is_out_of_memory(sent.exception)
    wrapped = UnpickleableExceptionWrapper("torch", "OutOfMemoryError", ("text",))
    assert is_out_of_memory(wrapped)
    assert is_out_of_memory(create_exception_cls("OutOfMemoryError", "torch")("text"))


class TooBig(ValueError):
    """An application's own."""


class MuchTooBig(TooBig):
    """Its child."""


@pytest.mark.parametrize("name", ["TooBig", f"{__name__}.TooBig"])
def test_an_application_declares_its_own(name: str) -> None:
    assert is_out_of_memory(MuchTooBig(), [name])
    assert not is_out_of_memory(MuchTooBig(), ["another.TooBig"])


def test_an_error_that_cannot_be_described_is_none() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert not is_out_of_memory(Mute())


def test_kills_by_the_kernel_are_counted(tmp_path: Path) -> None:
    strange, group, host = tmp_path / "strange", tmp_path / "events", tmp_path / "vmstat"
    strange.write_text("oom_kill many\n")
    group.write_text("oom 9\noom_kill 2\noom_group_kill 0\n")
    host.write_text("nr_free_pages 7\noom_kill 3\n")
    paths = [str(path) for path in (tmp_path / "missing", strange, group, host)]
    assert KernelKills(paths).count() == 2
    assert KernelKills(paths[:2]).count() == 0
    assert KernelKills().count() >= 0
