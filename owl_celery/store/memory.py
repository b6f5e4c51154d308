"""A store that forgets at exit: for tests, and for learning without a database."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from owl_celery.aggregates import Aggregates, Learned, QValue, SavedPolicy
from owl_celery.book import Book
from owl_celery.errors import StaleCursorError
from owl_celery.store.base import FIRST_CURSOR, MAX_Q_VALUES, encode_state, format_of
from owl_celery.types import Outcome


class MemoryStore:
    """Behaves like ``SqlStore``; two controllers that share the object share what is kept.

    Examples
    --------
    >>> store = MemoryStore()
    >>> store.load().cursor
    '0-0'

    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cursor = FIRST_CURSOR
        self._outcomes: dict[str, Outcome] = {}
        self._policies: dict[tuple[str, int], tuple[str, float]] = {}
        self._book = Book()
        self._q_values: dict[tuple[str, str], QValue] = {}

    def load(self) -> Learned:
        """Read everything a controller continues from."""
        with self._lock:
            saved = [
                SavedPolicy(name, number, json.loads(text), updated_at)
                for (name, number), (text, updated_at) in self._policies.items()
            ]
            return Learned(self._cursor, tuple(reversed(saved)), self._book.all())

    def known(self, keys: Collection[str]) -> set[str]:
        """Find those ``Outcome.key`` of which an outcome is kept already."""
        with self._lock:
            return self._outcomes.keys() & set(keys)

    def commit(
        self,
        *,
        expected_cursor: str,
        cursor: str,
        outcomes: Sequence[Outcome],
        policy_name: str,
        policy_state: Mapping[str, Any] | None,
        aggregates: Aggregates,
        q_values: Sequence[QValue] = (),
    ) -> None:
        """Move on in one transaction: all of it is kept, or nothing."""
        text = None if policy_state is None else encode_state(policy_name, policy_state)
        with self._lock:
            if self._cursor != expected_cursor:
                raise StaleCursorError
            self._cursor = cursor
            for outcome in outcomes:
                self._outcomes.setdefault(outcome.key, outcome)
            if policy_state is not None and text is not None:
                key = (policy_name, format_of(policy_state))
                self._policies.pop(key, None)  # So that the order is that of the last saves.
                self._policies[key] = (text, time.time())
            self._book.merge(aggregates)
            self._q_values |= {(entry.task_type, entry.queue): entry for entry in q_values}

    def recent(self, limit: int) -> list[Outcome]:
        """Read the latest raw outcomes, oldest first."""
        with self._lock:
            return list(self._outcomes.values())[-limit:] if limit > 0 else []

    def q_values(self) -> list[QValue]:
        """Read the readable Q table, by task type and queue."""
        with self._lock:
            return [self._q_values[key] for key in sorted(self._q_values)]

    def prune(self, keep_count: int) -> int:
        """Forget all but the latest raw outcomes, and old buckets; returns the outcomes dropped."""
        with self._lock:
            excess = list(self._outcomes)[: max(len(self._outcomes) - keep_count, 0)]
            for key in excess:
                del self._outcomes[key]
            latest = sorted(self._q_values.values(), key=lambda entry: entry.changed_at)
            self._book.trim()
            for entry in latest[: max(len(latest) - MAX_Q_VALUES, 0)]:
                del self._q_values[entry.task_type, entry.queue]
            return len(excess)

    def close(self) -> None:
        """Do nothing: what is kept lives as long as the object."""
