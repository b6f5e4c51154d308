"""What arrives when: seeded Poisson and bursty streams, and recorded traces."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from owl_celery.errors import InputError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

BURST_RATES: Final = (0.5, 1.5)
BURST_SOJOURN_SECONDS: Final = 20.0
"""The bursty stream switches between these shares of its rate after this long on average."""


@dataclass(frozen=True, eq=False)
class Arrivals:
    """Tasks in order of arrival, as columns of length n.

    Parameters
    ----------
    times
        Seconds, never decreasing.
    types
        Rows of the service table.
    sizes
        Factors of the service time, > 0.
    models
        The machine-learning model that each task needs loaded; None when no task names one.

    """

    times: Floats
    types: Ints
    sizes: Floats
    models: Sequence[str | None] | None = None

    def __len__(self) -> int:
        return len(self.times)

    def mix(self, count: int) -> Floats:
        """Work of each of ``count`` types, as a share of all work at size 1."""
        share = np.bincount(self.types, self.sizes, minlength=count)
        return share / float(share.sum())

    def with_models(self, names: Sequence[str]) -> Arrivals:
        """The same tasks, each in need of the model of its type."""
        models = [names[kind] for kind in self.types]
        return Arrivals(self.times, self.types, self.sizes, models)

    def stretched(self, factor: float) -> Arrivals:
        """The same tasks with all times multiplied."""
        return Arrivals(self.times * factor, self.types, self.sizes, self.models)


def poisson(rate: float, mix: Floats, count: int, size_cv: float, seed: int) -> Arrivals:
    """Draw a Poisson stream of ``count`` tasks; the tasks are the same for every rate."""
    unit, types, sizes = _draw(mix, count, size_cv, seed)
    return Arrivals(unit / rate, types, sizes)


def mmpp(rate: float, mix: Floats, count: int, size_cv: float, seed: int) -> Arrivals:
    """Draw a bursty stream: a two-state Markov-modulated Poisson process of this mean rate."""
    unit, types, sizes = _draw(mix, count, size_cv, seed)
    rng = np.random.default_rng([seed, 3])
    first = int(rng.integers(2))
    spans = [np.empty(0)]
    expected = 0.0
    while expected <= unit[-1]:
        sojourns = rng.exponential(BURST_SOJOURN_SECONDS, 256)
        spans.append(sojourns)
        expected += float((sojourns * _rates(rate, first, 256)).sum())
    ends = np.concatenate(spans)
    tasks = np.cumsum(ends * _rates(rate, first, len(ends)))
    times = np.interp(
        unit, np.concatenate([[0.0], tasks]), np.concatenate([[0.0], np.cumsum(ends)])
    )
    return Arrivals(times, types, sizes)


def read_trace(path: Path, types: Sequence[str]) -> Arrivals:
    """Read a recorded stream from CSV with the head ``time,type,size,model``.

    Parameters
    ----------
    path
        Times are seconds from any origin, never decreasing; type is a row of the table; size
        (default 1) and model (default none) may be empty or left out.
    types
        Task types of the table.

    Raises
    ------
    InputError
        Names the row and the column of the first cell that makes no sense.

    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.reader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"Trace {path} cannot be read: {error}.") from error
    head = [cell.strip() for cell in rows[0]] if rows else []
    if head[:2] != ["time", "type"] or not set(head) <= {"time", "type", "size", "model"}:
        raise InputError(f"{path.name}, row 1: the head must be time,type[,size][,model].")
    position = {name: index for index, name in enumerate(types)}
    times: list[float] = []
    indices: list[int] = []
    sizes: list[float] = []
    models: list[str | None] = []
    for number, row in enumerate(rows[1:], start=2):
        if not any(cell.strip() for cell in row):
            continue
        if len(row) != len(head):
            raise InputError(
                f"{path.name}, row {number}: has {len(row)} cells, the head has {len(head)}."
            )
        cells = dict(zip(head, (cell.strip() for cell in row), strict=True))
        where = f"{path.name}, row {number}, column"
        time = _number(cells["time"], f"{where} 'time'")
        if times and time < times[-1]:
            raise InputError(f"{where} 'time': {time:g} comes before {times[-1]:g}.")
        if cells["type"] not in position:
            raise InputError(f"{where} 'type': the table has no {cells['type']!r}.")
        size = _number(cells["size"], f"{where} 'size'") if cells.get("size") else 1.0
        if size <= 0.0:
            raise InputError(f"{where} 'size': {size:g} is not above 0.")
        times.append(time)
        indices.append(position[cells["type"]])
        sizes.append(size)
        models.append(cells.get("model") or None)
    if not times:
        raise InputError(f"{path.name} has no task.")
    start = times[0]
    return Arrivals(
        np.array(times) - start,
        np.array(indices, dtype=np.int64),
        np.array(sizes),
        models if any(models) else None,
    )


def _draw(mix: Floats, count: int, size_cv: float, seed: int) -> tuple[Floats, Ints, Floats]:
    """Draw arrival times at rate 1, types, and lognormal sizes of mean 1.

    Each from its own stream: the first tasks are the same however many follow.
    """
    streams = [np.random.default_rng([seed, 2, column]) for column in range(3)]
    unit = np.cumsum(streams[0].exponential(1.0, count))
    types = streams[1].choice(len(mix), size=count, p=mix).astype(np.int64)
    sigma = math.sqrt(math.log1p(size_cv**2))
    sizes = np.exp(sigma * streams[2].standard_normal(count) - sigma**2 / 2.0)
    return unit, types, sizes


def _rates(rate: float, first: int, count: int) -> Floats:
    """Rates of the alternating states; ``first`` says which one begins."""
    return rate * np.array(BURST_RATES)[(np.arange(count) + first) % 2]


def _number(cell: str, where: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        raise InputError(f"{where}: {cell!r} is not a number.") from None
    if not math.isfinite(value):
        raise InputError(f"{where}: {cell} is not finite.")
    return value
