"""Numbers by task type and GPU model: growing matrices, and a bound on how many types are kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np

from owl_celery.errors import StateError
from owl_celery.fleet import Floats

MAX_MODELS: Final = 256
"""GPU models kept; real fleets have a handful, so more are a fault somewhere."""


class Cells:
    """Matrices over task types (rows) and GPU models (columns) that grow with what is seen.

    Row 0 stands for every type not seen yet, column 0 for every model not seen yet. When there are
    more types than ``max_types`` the one seen longest ago is forgotten and its row reused.

    Parameters
    ----------
    names
        Names of the matrices, all zero at first.
    max_types
        Types kept, >= 1.

    Attributes
    ----------
    types, models
        Row of each type, longest unseen first; column of each model.

    """

    def __init__(self, names: Iterable[str], max_types: int) -> None:
        if max_types < 1:
            raise ValueError(f"max_types is {max_types}: keep at least one")
        self.max_types = max_types
        self.types: dict[str, int] = {}
        self.models: dict[str, int] = {}
        self._full: dict[str, Floats] = {name: np.zeros((8, 4)) for name in names}
        self._used: dict[str, Floats] = {}
        self._view()

    def __getitem__(self, name: str) -> Floats:
        """The matrix without its spare rows and columns; a view, so writing to it counts."""
        return self._used[name]

    def _view(self) -> None:
        rows, columns = self.shape
        self._used = {name: full[:rows, :columns] for name, full in self._full.items()}

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns in use."""
        return len(self.types) + 1, len(self.models) + 1

    def column(self, model: str) -> int | None:
        """Column of a model, made when it is new; None when there are too many already."""
        column = self.models.get(model)
        if column is None:
            if len(self.models) >= MAX_MODELS:
                return None
            column = self.models[model] = len(self.models) + 1
            self._grow()
        return column

    def row(self, task_type: str) -> int:
        """Row of a type, made when it is new; the type counts as just seen."""
        row = self.types.pop(task_type, None)
        if row is None:
            if len(self.types) >= self.max_types:
                row = self.types.pop(next(iter(self.types)))
                for full in self._full.values():
                    full[row] = 0.0
            else:
                row = len(self.types) + 1
        self.types[task_type] = row
        if len(self.types) >= len(next(iter(self._used.values()))):
            self._grow()
        return row

    def _grow(self) -> None:
        rows, columns = self.shape
        have_rows, have_columns = next(iter(self._full.values())).shape
        if rows > have_rows or columns > have_columns:
            new_shape = (
                have_rows * 2 if rows > have_rows else have_rows,
                have_columns * 2 if columns > have_columns else have_columns,
            )
            for name, full in self._full.items():
                grown = np.zeros(new_shape)
                grown[:have_rows, :have_columns] = full
                self._full[name] = grown
        self._view()

    def state(self) -> dict[str, Any]:
        """Everything, exactly, as JSON values."""
        return {
            "types": list(self.types),
            "rows": list(self.types.values()),
            "models": list(self.models),
            "cells": {name: self[name].tolist() for name in self._full},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state()``; a matrix that an earlier release did not have stays zero.

        Raises
        ------
        StateError
            When names and matrices do not fit together.

        """
        try:
            types = {
                str(name): int(row) for name, row in zip(state["types"], state["rows"], strict=True)
            }
            models = {str(name): column for column, name in enumerate(state["models"], start=1)}
            shape = len(types) + 1, len(models) + 1
            matrices = {
                name: np.array(state["cells"].get(name, np.zeros(shape)), dtype=np.float64)
                for name in self._full
            }
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StateError("The saved estimates are damaged.") from error
        is_whole = (
            sorted(types.values()) == list(range(1, len(types) + 1))
            and len(models) == len(state["models"])
            and all(m.shape == shape and np.isfinite(m).all() for m in matrices.values())
        )
        if not is_whole:
            raise StateError("The saved estimates are damaged: names and numbers do not match.")
        self.types, self.models = types, models
        for name, matrix in matrices.items():
            full = np.zeros((max(8, 2 * shape[0]), max(4, 2 * shape[1])))
            full[: shape[0], : shape[1]] = matrix
            self._full[name] = full
        self._view()
