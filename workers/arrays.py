"""The work of the example tasks: by torch where there is a GPU, by numpy where there is none."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


@cache
def torch_on_gpu() -> Any:
    """The module torch, when it is installed and sees a GPU; None otherwise.

    Called in a task, never at import: a worker's parent must not open the GPU.
    """
    try:
        torch = import_module("torch")
    except ImportError:
        return None
    return torch if torch.cuda.is_available() else None


def random_array(shape: tuple[int, ...], seed: int) -> Floats:
    """Numbers in [0, 1), the same for the same seed."""
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def matrix_product(left: Floats, right: Floats) -> Floats:
    """Product of two matrices."""
    torch = torch_on_gpu()
    if torch is None:
        return left @ right
    product: Floats = (torch.from_numpy(left).cuda() @ torch.from_numpy(right).cuda()).cpu().numpy()
    return product


def spectrum(signal: Floats) -> Floats:
    """Magnitudes of the two-dimensional Fourier transform."""
    torch = torch_on_gpu()
    if torch is None:
        return np.abs(np.fft.fft2(signal)).astype(np.float32)
    magnitudes: Floats = torch.fft.fft2(torch.from_numpy(signal).cuda()).abs().cpu().numpy()
    return magnitudes


def resize(image: Floats, height: int, width: int) -> Floats:
    """Resize an image of shape (height, width, channels) by bilinear interpolation.

    Pixel centres stay aligned, as in torch with ``align_corners=False``.
    """
    torch = torch_on_gpu()
    if torch is None:
        return _resize_axis(_resize_axis(image, 0, height), 1, width)
    pixels = torch.from_numpy(image).cuda().permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(pixels, (height, width), mode="bilinear")
    result: Floats = resized[0].permute(1, 2, 0).cpu().numpy()
    return result


def _resize_axis(image: Floats, axis: int, length: int) -> Floats:
    source = image.shape[axis]
    position = np.clip((np.arange(length) + 0.5) * source / length - 0.5, 0.0, source - 1.0)
    below = np.floor(position).astype(np.int64)
    above = np.minimum(below + 1, source - 1)
    shape = [1] * image.ndim
    shape[axis] = length
    share = (position - below).astype(np.float32).reshape(shape)
    lower, upper = np.take(image, below, axis), np.take(image, above, axis)
    resized: Floats = lower + (upper - lower) * share
    return resized
