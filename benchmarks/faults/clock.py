"""A clock that jumps, in a worker or in the producer."""

from __future__ import annotations

import mmap
import os
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

FORMAT: Final = "d"


def make_clock(path: Path) -> None:
    """Make the file by which a clock is shifted."""
    path.write_bytes(struct.pack(FORMAT, 0.0))


def shift_clock(path: Path, seconds: float) -> None:
    """Let the clocks that look at this file be wrong by so many seconds from now on."""
    with path.open("r+b") as file:
        file.write(struct.pack(FORMAT, seconds))


def follow(path: str) -> None:
    """Let ``time.time`` of this process, and of its children, look at the file."""
    descriptor = os.open(path, os.O_RDONLY)
    shared, true = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ), time.time

    def shifted() -> float:
        seconds: float = struct.unpack_from(FORMAT, shared)[0]
        return true() + seconds

    time.time = shifted
    # What was imported before has the true clock as a default of its parameters.
    for name in [name for name in sys.modules if name.startswith("owl_celery")]:
        del sys.modules[name]


@contextmanager
def shifted_here(seconds: float) -> Iterator[None]:
    """Let ``time.time`` of this process be wrong for a while."""
    true = time.time
    time.time = lambda: true() + seconds
    try:
        yield
    finally:
        time.time = true
