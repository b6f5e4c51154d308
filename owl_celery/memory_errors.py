"""Recognising a task that failed for lack of memory."""

from __future__ import annotations

from typing import Final

OUT_OF_MEMORY_CLASSES: Final = frozenset({"OutOfMemoryError", "ResourceExhaustedError"})
"""Class names used by PyTorch, CuPy and TensorFlow."""

OUT_OF_MEMORY_PHRASES: Final = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUDA_ERROR_OUT_OF_MEMORY",
    "RESOURCE_EXHAUSTED",
    "cudaErrorMemoryAllocation",
)
"""What JAX, CUDA itself and older releases say in the message of a general error."""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an exception, or the one it was raised from, means that memory ran out.

    Examples
    --------
    >>> is_out_of_memory(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    True
    >>> is_out_of_memory(ValueError("no such layer"))
    False

    """
    seen = 0
    while error is not None and seen < 8:
        if isinstance(error, MemoryError) or type(error).__name__ in OUT_OF_MEMORY_CLASSES:
            return True
        if isinstance(error, RuntimeError) and any(p in str(error) for p in OUT_OF_MEMORY_PHRASES):
            return True
        error, seen = error.__cause__ or error.__context__, seen + 1
    return False
