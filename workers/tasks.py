"""Example tasks. Each says how large it is, so that the router need not learn every size anew.

``owl_type``, ``owl_size`` and ``owl_model`` are values or functions of ``(args, kwargs)``; all are
optional. Service times are taken as proportional to the size.
"""

# mypy: disallow-untyped-decorators=False
# Celery has no types, so neither has app.task.

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from owl_celery.errors import InputError
from owl_celery.gpus import current_gpu
from owl_celery.simulate.table import ServiceTable, gavel_table
from workers import arrays
from workers.app import app

Args = Sequence[Any]
Kwargs = Mapping[str, Any]


def given(args: Args, kwargs: Kwargs, position: int, name: str, default: Any = None) -> Any:
    """Find an argument that the caller gave by position or by name."""
    return args[position] if len(args) > position else kwargs.get(name, default)


@app.task(owl_size=lambda args, kwargs: (given(args, kwargs, 0, "order") / 1000) ** 3)
def matrix_product(order: int, seed: int = 0) -> float:
    """Multiply two random matrices of this order; the mean of the product."""
    left = arrays.random_array((order, order), seed)
    right = arrays.random_array((order, order), seed + 1)
    return float(arrays.matrix_product(left, right).mean())


@app.task(owl_size=lambda args, kwargs: (given(args, kwargs, 0, "side") / 1000) ** 2)
def fft(side: int, seed: int = 0) -> float:
    """Transform a random square signal; the mean magnitude."""
    return float(arrays.spectrum(arrays.random_array((side, side), seed)).mean())


def megapixels(args: Args, kwargs: Kwargs) -> float:
    """Size of an image that ``image_resize`` makes."""
    return float(given(args, kwargs, 0, "height") * given(args, kwargs, 1, "width") / 1e6)


@app.task(owl_size=megapixels)
def image_resize(height: int, width: int, source: int = 512, seed: int = 0) -> list[int]:
    """Resize a random square image of ``source`` pixels a side; the shape of the result."""
    image = arrays.random_array((source, source, 3), seed)
    return list(arrays.resize(image, height, width).shape)


@app.task(
    owl_type=lambda args, kwargs: f"replay {given(args, kwargs, 0, 'task_type')}",
    owl_size=lambda args, kwargs: given(args, kwargs, 1, "size", 1.0),
)
def replay(task_type: str, size: float = 1.0, scale_seconds: float = 1.0) -> dict[str, Any]:
    """Take as long as a measured training job takes on the GPU model of this worker.

    Parameters
    ----------
    task_type
        A job of the packaged table, such as ``ResNet-18 (batch size 16)``.
    size
        Steps of the job, > 0.
    scale_seconds
        Seconds that stand for one measured second.

    Returns
    -------
    dict
        ``gpu_model`` and ``seconds`` that it was meant to take.

    Raises
    ------
    InputError
        When the table does not have the job or this worker's GPU model.

    """
    started = time.monotonic()
    model = table_model(current_gpu().model)
    step_seconds = table().seconds_on(task_type, model)
    if step_seconds is None:
        raise InputError(f"{task_type!r} does not fit on GPU model {model!r}.")
    seconds = step_seconds * size * scale_seconds
    # From the start of the task, so that reading the table does not count.
    while (left := started + seconds - time.monotonic()) > 0.0:
        time.sleep(left)
    return {"gpu_model": model, "seconds": seconds}


@cache
def table() -> ServiceTable:
    """The packaged measurements, read once a process."""
    return gavel_table()


def table_model(gpu_model: str) -> str:
    """Name of a GPU model in the table: ``Tesla V100-SXM2-16GB`` is a ``v100``."""
    words = gpu_model.lower().replace("-", " ").split()
    return next((model for model in table().models if model in words), gpu_model)
