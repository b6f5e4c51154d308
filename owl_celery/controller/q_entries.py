"""Which entries of the readable Q table have changed noticeably since they were last written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from owl_celery.aggregates import QValue
from owl_celery.fleet import Bools, Floats
from owl_celery.policies.q_table import QTable
from owl_celery.sanity import is_text

NOTICEABLE: Final = 0.05
"""Relative change of a number from which on its entry is written again."""

WRITTEN_AT_ONCE: Final = 5_000
"""Entries given at a time, those that changed most; the others come the next times."""

REFRESH_SECONDS: Final = 3_600.0
"""An entry is written again after this time even if nothing has changed, as a sign of life."""


class QEntries:
    """Remembers what was written of the Q table, as matrices over task types and queues."""

    def __init__(self) -> None:
        self._types: Sequence[str] = ()
        self._queues: Sequence[str] = ()
        self._written: dict[str, Floats] = {}
        self.forget()

    def forget(self) -> None:
        """Take everything as not written."""
        self._types, self._queues = (), ()
        self._written = {name: np.zeros((0, 0)) for name in ("seconds", "idle", "visits", "at")}
        self._was_open: Bools = np.zeros((0, 0), dtype=np.bool_)

    def changed(self, table: QTable, now: float) -> list[QValue]:
        """Entries to write at Unix time ``now``; they count as written from now on."""
        self._lay_out(table)
        written = self._written
        present = {
            "seconds": table.seconds,
            "idle": table.idle_seconds,
            "visits": table.visits.astype(np.float64),
        }
        change = np.zeros(table.seconds.shape)
        for name, values in present.items():
            np.maximum(change, _relative(values, written[name]), out=change)
        change[table.is_open != self._was_open] = 1.0
        change[now - written["at"] > REFRESH_SECONDS] = 1.0
        # What was never written comes first.
        change[np.isnan(written["at"])] = np.inf
        is_due = np.flatnonzero(change.ravel() > NOTICEABLE)
        if len(is_due) > WRITTEN_AT_ONCE:
            order = np.argpartition(change.ravel()[is_due], len(is_due) - WRITTEN_AT_ONCE)
            is_due = is_due[order[-WRITTEN_AT_ONCE:]]
        rows, columns = np.unravel_index(is_due, change.shape)
        for name, values in present.items():
            written[name][rows, columns] = values[rows, columns]
        written["at"][rows, columns] = now
        self._was_open[rows, columns] = table.is_open[rows, columns]
        types, queues = table.task_types, table.queues
        return [
            QValue(
                task_type=types[row],
                queue=queues[column],
                gpu_model=table.gpu_models[column],
                seconds=float(table.seconds[row, column]),
                idle_seconds=float(table.idle_seconds[row, column]),
                visits=int(table.visits[row, column]),
                changed_at=now,
                is_open=bool(table.is_open[row, column]),
            )
            for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
            if all(map(is_text, (types[row], queues[column], table.gpu_models[column])))
        ]

    def _lay_out(self, table: QTable) -> None:
        """Bring what was written into the order of this table; NaN where nothing was."""
        types, queues = tuple(table.task_types), tuple(table.queues)
        if types == self._types and queues == self._queues:
            return
        row_of = {name: row for row, name in enumerate(self._types)}
        column_of = {name: column for column, name in enumerate(self._queues)}
        rows = [(new, row_of[name]) for new, name in enumerate(types) if name in row_of]
        columns = [(new, column_of[name]) for new, name in enumerate(queues) if name in column_of]
        to = np.ix_([new for new, _ in rows], [new for new, _ in columns])
        of = np.ix_([old for _, old in rows], [old for _, old in columns])
        was_open = np.zeros((len(types), len(queues)), dtype=np.bool_)
        has_any = bool(rows and columns)
        if has_any:
            was_open[to] = self._was_open[of]
        for name, before in self._written.items():
            matrix = np.full((len(types), len(queues)), np.nan)
            if has_any:
                matrix[to] = before[of]
            self._written[name] = matrix
        self._types, self._queues, self._was_open = types, queues, was_open


def _relative(values: Floats, before: Floats) -> Floats:
    """Change as a share of the larger number; 0 where nothing was before."""
    largest = np.maximum(np.maximum(np.abs(values), np.abs(before)), 1e-9)
    change: Floats = np.nan_to_num(np.abs(values - before) / largest, nan=0.0)
    return change
