"""The random generator of a policy as JSON values, so that a restored one draws the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from owl_celery.errors import StateError

NORMALS: Final = np.random.default_rng(1).standard_normal(1 << 16)
"""A stretch of it, from a random place, is noise at a third of the price of drawing it."""

STATE_FORMAT: Final = 1
"""Format of ``Policy.state()``; a release reads its own and every earlier one."""


def normals(random: np.random.Generator, count: int) -> npt.NDArray[np.float64]:
    """Standard normal numbers, shape (count,); do not write to them."""
    start = int(random.random() * (len(NORMALS) - count))
    return random.standard_normal(count) if start < 0 else NORMALS[start : start + count]


def state_of(name: str, random: np.random.Generator, **parts: Any) -> dict[str, Any]:
    """Frame the state of a policy: its format, its name, its generator and its own parts."""
    return {
        "format": STATE_FORMAT,
        "policy": name,
        "random": dict(random.bit_generator.state),
        **parts,
    }


def restore_random(name: str, state: Mapping[str, Any], random: np.random.Generator) -> None:
    """Check the frame of a saved state and set the generator to where it was.

    Raises
    ------
    StateError
        When the state is of another policy or of a format this release cannot read.

    """
    if not isinstance(state, Mapping) or not isinstance(state.get("format"), int):
        raise StateError("The saved policy state has no format number; it cannot be read.")
    if not 1 <= state["format"] <= STATE_FORMAT:
        raise StateError(
            f"The saved policy state has format {state['format']}, but this release reads formats "
            f"up to {STATE_FORMAT}; use the release that wrote it, or a newer one."
        )
    if state.get("policy") != name:
        raise StateError(f"The saved state is of policy {state.get('policy')!r}, not of {name!r}.")
    try:
        random.bit_generator.state = state["random"]
    except (KeyError, TypeError, ValueError) as error:
        raise StateError("The random generator in the saved policy state is damaged.") from error
