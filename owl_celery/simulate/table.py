"""Service times by task type and GPU model, read from published measurements."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Literal, Self

import numpy as np
import numpy.typing as npt

from owl_celery.errors import InputError

Floats = npt.NDArray[np.float64]
Values = Literal["throughput", "seconds"]


@dataclass(frozen=True, eq=False)
class ServiceTable:
    """Mean service seconds of each task type on each GPU model.

    Parameters
    ----------
    types
        K task types.
    models
        C GPU models.
    seconds
        Mean service times > 0, shape (K, C); NaN where the type does not fit.

    Examples
    --------
    >>> table = ServiceTable.parse("task_type,k80,v100\\ntrain,0.5,2\\nscore,4,", "throughput")
    >>> table.seconds_on("train", "k80")
    2.0
    >>> table.seconds_on("score", "v100") is None
    True

    """

    types: tuple[str, ...]
    models: tuple[str, ...]
    seconds: Floats

    @classmethod
    def read(cls, path: Path | Traversable, values: Values = "throughput") -> Self:
        """Read a CSV file; see ``parse``.

        Raises
        ------
        InputError
            When the file cannot be read or a cell makes no sense.

        """
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"Table {path} cannot be read: {error}.") from error
        return cls.parse(text, values, name=path.name)

    @classmethod
    def parse(cls, text: str, values: Values = "throughput", name: str = "table") -> Self:
        """Read CSV text: a head of GPU models, then a row for each task type.

        Parameters
        ----------
        text
            First column: task types; the others: one GPU model each. An empty cell says that the
            type does not fit on the model.
        values
            ``throughput``: work per second, seconds are 1 / cell; ``seconds``: service times.
        name
            What errors call the text.

        Raises
        ------
        InputError
            Names the row and the column of the first cell that makes no sense.

        """
        lines = list(enumerate(csv.reader(io.StringIO(text)), start=1))
        rows = [(number, [c.strip() for c in row]) for number, row in lines if any(row)]
        if not rows or len(rows[0][1]) < 2:
            raise InputError(f"{name}, row 1: needs a head of a name and at least one GPU model.")
        models = tuple(rows[0][1][1:])
        _distinct(models, f"{name}, row {rows[0][0]}: GPU model")
        if len(rows) < 2:
            raise InputError(f"{name} has no row with a task type.")
        seconds = np.full((len(rows) - 1, len(models)), np.nan)
        for index, (number, row) in enumerate(rows[1:]):
            if len(row) != len(models) + 1:
                raise InputError(
                    f"{name}, row {number}: has {len(row)} cells, the head has {len(models) + 1}."
                )
            for column, cell in enumerate(row[1:]):
                if cell:
                    where = f"{name}, row {number}, column {models[column]!r}"
                    value = _positive(cell, where)
                    seconds[index, column] = 1.0 / value if values == "throughput" else value
            if np.isnan(seconds[index]).all():
                raise InputError(f"{name}, row {number}: {row[0]!r} fits on no GPU model.")
        types = tuple(row[0] for _, row in rows[1:])
        _distinct(types, f"{name}: task type")
        return cls(types, models, seconds)

    def seconds_on(self, task_type: str, gpu_model: str) -> float | None:
        """Mean service seconds; None where the type does not fit.

        Raises
        ------
        InputError
            When the table does not have the type or the model.

        """
        for name, known in ((task_type, self.types), (gpu_model, self.models)):
            if name not in known:
                raise InputError(f"The table has no {name!r}; it has: {', '.join(known)}.")
        value = self.seconds[self.types.index(task_type), self.models.index(gpu_model)]
        return None if np.isnan(value) else float(value)

    def scaled(self, mean_best_seconds: float = 1.0) -> ServiceTable:
        """Times multiplied by one factor, so that types on their best GPU take this on average."""
        factor = mean_best_seconds / float(np.nanmin(self.seconds, axis=1).mean())
        return ServiceTable(self.types, self.models, self.seconds * factor)

    def levelled(self) -> ServiceTable:
        """Times in which every type takes one second on its best GPU: only ratios are kept."""
        best = np.nanmin(self.seconds, axis=1, keepdims=True)
        return ServiceTable(self.types, self.models, self.seconds / best)

    def restricted(self, models: tuple[str, ...]) -> ServiceTable:
        """Keep the columns of these models, in this order.

        Raises
        ------
        InputError
            When the table lacks a model, or a type fits on none of them.

        """
        for model in models:
            if model not in self.models:
                raise InputError(
                    f"The table has no GPU model {model!r}; it has: {', '.join(self.models)}."
                )
        seconds = self.seconds[:, [self.models.index(m) for m in models]]
        for name, row in zip(self.types, seconds, strict=True):
            if np.isnan(row).all():
                raise InputError(f"Task type {name!r} fits on no GPU model of the fleet.")
        return ServiceTable(self.types, models, seconds)


def gavel_table() -> ServiceTable:
    """Read the packaged measurements: 26 training jobs on k80, p100 and v100, seconds a step."""
    return ServiceTable.read(files("owl_celery.simulate") / "data" / "gavel_throughputs.csv")


def parse_fleet(text: str) -> dict[str, int]:
    """Read GPUs by model, such as ``k80=4,p100=4,v100=4``.

    Raises
    ------
    InputError
        When a part is not MODEL=COUNT with a count of at least 1.

    Examples
    --------
    >>> parse_fleet("k80=4, v100=2")
    {'k80': 4, 'v100': 2}

    """
    fleet: dict[str, int] = {}
    for part in text.split(","):
        model, sign, count = (piece.strip() for piece in part.partition("="))
        if not model or not sign or not count.isdecimal() or not 1 <= int(count) <= 100_000:
            raise InputError(f"Fleet part {part.strip()!r} is not MODEL=COUNT, such as k80=4.")
        if model in fleet:
            raise InputError(f"Fleet names GPU model {model!r} twice.")
        fleet[model] = int(count)
    return fleet


def _positive(cell: str, where: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        raise InputError(f"{where}: {cell!r} is not a number.") from None
    if not math.isfinite(value) or value <= 0.0:
        raise InputError(f"{where}: {cell} is not a finite number above 0.")
    return value


def _distinct(names: tuple[str, ...], where: str) -> None:
    for index, name in enumerate(names):
        if not name:
            raise InputError(f"{where} {index + 1} has no name.")
        if name in names[:index]:
            raise InputError(f"{where} {name!r} is there twice.")
