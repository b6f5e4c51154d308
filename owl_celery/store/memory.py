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
from owl_celery.store.base import (
    FIRST_CURSOR,
    KEEP_Q_SECONDS,
    MAX_Q_VALUES,
    NO_REPORTS,
    NumberedOutcome,
    encode_state,
    format_of,
)
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
        self._commits = 0
        self._counted = 0
        self._outcomes: dict[str, NumberedOutcome] = {}
        self._policies: dict[tuple[str, int], tuple[str, float]] = {}
        self._book = Book()
        self._q_values: dict[tuple[str, str], QValue] = {}
        self._priors: dict[int, str] = {}
        self._prior_reports: dict[int, str] = {}

    def load(self) -> Learned:
        """Read everything a controller continues from."""
        with self._lock:
            saved = [
                SavedPolicy(name, number, json.loads(text), updated_at)
                for (name, number), (text, updated_at) in self._policies.items()
            ]
            prior = max(self._prior_reports, default=0)
            return Learned(self._cursor, tuple(reversed(saved)), self._book.all(), prior)

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
        expected_prior: int = 0,
        prior_reports: Mapping[int, str] = NO_REPORTS,
    ) -> None:
        """Move on in one transaction: all of it is kept, or nothing."""
        text = None if policy_state is None else encode_state(policy_name, policy_state)
        with self._lock:
            is_there = expected_cursor, expected_prior
            if is_there != (self._cursor, max(self._prior_reports, default=0)):
                raise StaleCursorError
            self._prior_reports |= prior_reports
            self._cursor = cursor
            self._commits += 1
            for outcome in outcomes:
                self._counted += 1
                self._outcomes.setdefault(outcome.key, NumberedOutcome(self._counted, outcome))
            if policy_state is not None and text is not None:
                key = (policy_name, format_of(policy_state))
                self._policies.pop(key, None)  # So that the order is that of the last saves.
                self._policies[key] = (text, time.time())
            self._book.merge(aggregates)
            self._q_values |= {(entry.task_type, entry.queue): entry for entry in q_values}

    def recent(self, limit: int) -> list[Outcome]:
        """Read the latest raw outcomes, oldest first."""
        with self._lock:
            kept = list(self._outcomes.values())[-limit:] if limit > 0 else []
        return [outcome for _, outcome in kept]

    def version(self) -> int:
        """Read a number that grows with every commit; 0 before the first."""
        with self._lock:
            return self._commits

    def aggregates(self) -> Aggregates:
        """Read all rows, without the states of policies; from any thread."""
        with self._lock:
            return self._book.all()

    def outcome_page(
        self, limit: int, before: int | None = None, task_type: str | None = None
    ) -> list[NumberedOutcome]:
        """Read the latest raw outcomes, latest first; from any thread."""
        found = [
            kept
            for kept in self._latest_first()
            if (before is None or kept.number < before)
            and (task_type is None or kept.outcome.task_type == task_type)
        ]
        return found[:limit] if limit > 0 else []

    def outcomes_of_task(self, task_id: str, limit: int) -> list[NumberedOutcome]:
        """Read the latest raw outcomes of one task, latest first; from any thread."""
        found = [kept for kept in self._latest_first() if kept.outcome.task_id == task_id]
        return found[:limit] if limit > 0 else []

    def _latest_first(self) -> list[NumberedOutcome]:
        with self._lock:
            return list(reversed(self._outcomes.values()))

    def q_values(self) -> list[QValue]:
        """Read the readable Q table, by task type and queue."""
        with self._lock:
            return [self._q_values[key] for key in sorted(self._q_values)]

    def add_prior(self, document: str) -> int:
        """Keep an import for the controller, at once or later; returns its number, from 1 on."""
        with self._lock:
            number = len(self._priors) + 1
            self._priors[number] = document
            return number

    def priors(self, after: int) -> list[tuple[int, str]]:
        """Number and document of the imports later than ``after``, in order."""
        with self._lock:
            return [(n, document) for n, document in self._priors.items() if n > after]

    def prior_report(self, number: int) -> str | None:
        """What was taken of an import; None before a controller has looked at it."""
        with self._lock:
            return self._prior_reports.get(number)

    def prune(self, keep_count: int) -> int:
        """Forget all but the latest raw outcomes, and old buckets; returns the outcomes dropped."""
        with self._lock:
            excess = list(self._outcomes)[: max(len(self._outcomes) - keep_count, 0)]
            for key in excess:
                del self._outcomes[key]
            latest = sorted(self._q_values.values(), key=lambda entry: entry.changed_at)
            self._book.trim()
            excess_count = max(len(latest) - MAX_Q_VALUES, 0)
            for rank, entry in enumerate(latest):
                is_gone = entry.changed_at < latest[-1].changed_at - KEEP_Q_SECONDS
                if rank < excess_count or is_gone:
                    del self._q_values[entry.task_type, entry.queue]
            return len(excess)

    def close(self) -> None:
        """Do nothing: what is kept lives as long as the object."""
