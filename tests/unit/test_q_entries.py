"""Which entries of the readable Q table are written, and when again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from owl_celery.controller import q_entries
from owl_celery.controller.q_entries import REFRESH_SECONDS, QEntries
from owl_celery.policies.q_table import QTable


def a_table(types: int = 3, queues: int = 4) -> QTable:
    seconds = 1.0 + np.add.outer(10.0 * np.arange(types), np.arange(queues, dtype=np.float64))
    return QTable(
        [f"type-{n}" for n in range(types)],
        [f"gpu.a.{n}" for n in range(queues)],
        ["V100"] * queues,
        seconds,
        0.5 * seconds,
        np.full((types, queues), 10),
        np.ones((types, queues), dtype=np.bool_),
    )


def test_everything_is_written_once_and_then_what_changes_noticeably() -> None:
    entries, table = QEntries(), a_table()
    assert len(entries.changed(table, 1e9)) == 12
    assert entries.changed(table, 1e9 + 10.0) == []
    seconds, visits = table.seconds.copy(), table.visits.copy()
    seconds[0, 1] *= 1.5
    seconds[0, 2] *= 1.01
    visits[2, 3] = 12
    is_open = table.is_open.copy()
    is_open[1, 0] = False
    later = replace(table, seconds=seconds, visits=visits, is_open=is_open)
    changed = entries.changed(later, 1e9 + 20.0)
    assert {(e.task_type, e.queue): (e.seconds, e.visits, e.is_open) for e in changed} == {
        ("type-0", "gpu.a.1"): (3.0, 10, True),
        ("type-2", "gpu.a.3"): (24.0, 12, True),
        ("type-1", "gpu.a.0"): (11.0, 10, False),
    }
    assert {entry.changed_at for entry in changed} == {1e9 + 20.0}


def test_small_changes_add_up() -> None:
    entries, table = QEntries(), a_table(1, 1)
    entries.changed(table, 1e9)
    written = [
        bool(entries.changed(replace(table, seconds=table.seconds * 1.02**step), 1e9 + step))
        for step in range(1, 10)
    ]
    assert written == [False, False, True] * 3


def test_an_entry_is_confirmed_from_time_to_time() -> None:
    entries, table = QEntries(), a_table()
    entries.changed(table, 1e9)
    assert len(entries.changed(table, 1e9 + REFRESH_SECONDS + 1.0)) == 12


def test_new_queues_and_types_are_written_and_those_gone_forgotten() -> None:
    entries = QEntries()
    entries.changed(a_table(3, 4), 1e9)
    added = entries.changed(a_table(4, 5), 1e9 + 10.0)
    assert sorted((entry.task_type, entry.queue) for entry in added) == sorted(
        [(f"type-{n}", "gpu.a.4") for n in range(4)] + [("type-3", f"gpu.a.{n}") for n in range(4)]
    )
    assert entries.changed(a_table(1, 2), 1e9 + 20.0) == []
    assert len(entries.changed(a_table(1, 3), 1e9 + 30.0)) == 1


def test_what_cannot_be_written_at_once_comes_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(q_entries, "WRITTEN_AT_ONCE", 5)
    entries, table = QEntries(), a_table()
    rounds = [entries.changed(table, 1e9 + 10.0 * step) for step in range(4)]
    assert [len(written) for written in rounds] == [5, 5, 2, 0]
    assert len({(e.task_type, e.queue) for written in rounds for e in written}) == 12


def test_forgetting_writes_everything_again() -> None:
    entries, table = QEntries(), a_table()
    entries.changed(table, 1e9)
    entries.forget()
    assert len(entries.changed(table, 1e9 + 10.0)) == 12


def test_a_name_that_no_database_holds_is_left_out() -> None:
    table = replace(a_table(), queues=["gpu.a.0", "bad\0name", "gpu.a.2", "gpu.a.3"])
    assert len(QEntries().changed(table, 1e9)) == 9
    table = replace(a_table(), gpu_models=["V100", "bad\0name", "V100", "V100"])
    assert len(QEntries().changed(table, 1e9)) == 9
