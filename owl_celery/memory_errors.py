"""Recognising a task that failed for lack of memory, by names and texts, importing no framework."""

from __future__ import annotations

import errno
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

MAX_EXCEPTIONS: Final = 32
TEXT_LENGTH: Final = 20_000
"""Read of one message; XLA appends whole buffer assignments after the sentence that matters."""

OUT_OF_MEMORY_CLASSES: Final = frozenset(
    {"MemoryError", "OutOfMemoryError", "ResourceExhaustedError"}
)
"""Class names used by Python, NumPy, pyCUDA; PyTorch, CuPy; TensorFlow."""

XLA_CLASSES: Final = frozenset({"XlaRuntimeError", "JaxRuntimeError"})
OTHER_SERVERS: Final = frozenset({"redis", "valkey"})
"""Packages whose errors of these names tell of a server's memory and not of ours."""

NEVER: Final = (ValueError, TypeError, LookupError, OSError, ArithmeticError)
"""Errors whose text is about something else: what a server answered, or what a user gave."""

OUT_OF_MEMORY: Final = re.compile(
    r"\b(?:CUDA|HIP|MPS|XPU|NPU)\b[^.\n]{0,40}\bout of memory\b"
    r"|\bout of memory error on GPU\b"
    r"|\bCUDA_ERROR_OUT_OF_MEMORY\b|\bcudaErrorMemoryAllocation\b"
    r"|\bhipError(?:OutOfMemory|MemoryAllocation)\b"
    r"|\b(?:CU|HIP)[A-Z]+_(?:[A-Z]+_)*ALLOC(?:ATION)?_FAILED\b"
    r"|\bOOM when allocating\b"
    r"|\bRESOURCE[_ ]EXHAUSTED\b[^\n]{0,80}\b(?:memory|allocat)"
    r"|\bfailed to allocate memory for requested buffer\b"
    r"|\bError Code 2: OutOfMemory\b"
    r"|\bDefaultCPUAllocator: (?:can't allocate|not enough) memory\b",
    re.IGNORECASE,
)
"""PyTorch, Triton, Numba; Paddle; CUDA and ROCm with their libraries; TensorFlow; JAX; ONNX
Runtime; TensorRT; PyTorch on the CPU."""

KILL_COUNTERS: Final = (
    "/sys/fs/cgroup/memory.events",
    "/proc/vmstat",
    "/sys/fs/cgroup/memory/memory.oom_control",
)
"""Where Linux counts processes killed for lack of memory: of a container, of the host, and where it
shows neither, of a cgroup of version 1, which does not count those of the groups within it."""

KILLS: Final = re.compile(rb"^oom_kill (\d+)$", re.MULTILINE)


def is_out_of_memory(error: BaseException | None, declared: Collection[str] = ()) -> bool:
    """Whether an exception, one that it was raised from, or one in its group tells of no memory.

    Parameters
    ----------
    error
        As raised, or as it came from another process.
    declared
        Classes that mean it in this application, with or without their module; their children too.

    Examples
    --------
    >>> is_out_of_memory(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    True
    >>> is_out_of_memory(ValueError("no such layer"))
    False
    >>> is_out_of_memory(ValueError("no such layer"), ["builtins.ValueError"])
    True

    """
    return any(_says_so(each, declared) for each in _related(error))


class KernelKills:
    """Counts how often Linux has killed a process for lack of memory.

    Parameters
    ----------
    paths
        Files with a line ``oom_kill <number>``; the first that has one counts.

    """

    def __init__(self, paths: Sequence[str] = KILL_COUNTERS) -> None:
        self._paths = [Path(path) for path in paths]

    def count(self) -> int:
        """Kills so far: only a difference says something."""
        for path in self._paths:
            try:
                found = KILLS.search(path.read_bytes())
            except OSError:
                continue
            if found is not None:
                return int(found[1])
        return 0


def _related(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it carries along: causes, contexts, members of groups, what it wraps."""
    left: list[object] = [error]
    seen: set[int] = set()
    while left and len(seen) < MAX_EXCEPTIONS:
        each = left.pop()
        if not isinstance(each, BaseException) or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        left += [each.__context__, each.__cause__, getattr(each, "exc", None)]
        if isinstance(each, BaseExceptionGroup):
            left += each.exceptions


def _says_so(error: BaseException, declared: Collection[str]) -> bool:
    names = set(_names(error))
    if not names.isdisjoint(declared):
        return True
    package = type(error).__module__.partition(".")[0]
    if package in OTHER_SERVERS:
        return False
    if not names.isdisjoint(OUT_OF_MEMORY_CLASSES):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, NEVER):
        return False
    text = _text(error)
    if not names.isdisjoint(XLA_CLASSES):
        return "RESOURCE_EXHAUSTED" in text
    return OUT_OF_MEMORY.search(text) is not None


def _names(error: BaseException) -> Iterator[str]:
    """Names of its class and their parents, with and without module."""
    for kind in type(error).__mro__:
        yield kind.__name__
        yield f"{kind.__module__}.{kind.__qualname__}"
    # What cannot be pickled comes from a pool process as this, with names and text only.
    wrapped: Any = getattr(error, "exc_cls_name", None)
    if isinstance(wrapped, str):
        yield wrapped
        yield f"{getattr(error, 'exc_module', '')}.{wrapped}"


def _text(error: BaseException) -> str:
    try:
        return str(error)[:TEXT_LENGTH]
    except Exception:
        return ""  # It is not ours, and neither is its way to describe itself.
