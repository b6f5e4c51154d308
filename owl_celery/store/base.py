"""What a store is: learned state and the stream cursor, moved on together or not at all."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Protocol

from owl_celery.aggregates import Aggregates, Learned, QValue
from owl_celery.errors import UnsavableStateError
from owl_celery.types import Outcome

FIRST_CURSOR: Final = "0-0"
"""Cursor of a store that nothing was committed to: the begin of every Redis stream."""

MAX_Q_VALUES: Final = 100_000
"""Entries of the readable Q table that are kept, the latest changed."""

KEEP_Q_SECONDS: Final = 3 * 3600.0
"""An entry so much older than the latest is of a queue or task type that is gone."""


NO_REPORTS: Final[Mapping[int, str]] = MappingProxyType({})


class NumberedOutcome(NamedTuple):
    """A raw outcome and its number: larger for one that was committed later."""

    number: int
    outcome: Outcome


class Store(Protocol):
    """Keeps what was learned. Written by the controller only, from one thread at a time.

    ``add_prior`` and whatever only reads may be called in any process.

    Every method raises ``StoreError`` when the database cannot be used; its message is a sentence
    for the user and never holds a password. The next call tries again.
    """

    def load(self) -> Learned:
        """Read everything a controller continues from."""

    def known(self, keys: Collection[str]) -> set[str]:
        """Find those ``Outcome.key`` of which an outcome is kept already."""

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
        """Move on in one transaction: all of it is kept, or nothing.

        Parameters
        ----------
        expected_cursor
            Where the caller believes the store to be.
        cursor
            Where it is afterwards; may be the same.
        outcomes
            Raw outcomes to keep; one whose key is kept already is left out.
        policy_name, policy_state
            State to save, of JSON values; None leaves the saved one.
        aggregates
            Rows that replace those of the same key.
        q_values
            Entries that replace those of the same task type and queue.
        expected_prior
            Number of the last import that the caller believes to be taken.
        prior_reports
            What was taken of each later import, by its number, in a sentence; the state that is
            saved with it has taken them.

        Raises
        ------
        StaleCursorError
            When the store is not at ``expected_cursor`` and ``expected_prior``; nothing was
            written.
        UnsavableStateError
            When the state is not of JSON values; nothing was written, and all the rest can be.

        """

    def recent(self, limit: int) -> list[Outcome]:
        """Read the latest raw outcomes, oldest first."""

    def version(self) -> int:
        """Read a number that grows with every commit; 0 before the first."""

    def aggregates(self) -> Aggregates:
        """Read all rows, without the states of policies; from any thread."""

    def outcome_page(
        self, limit: int, before: int | None = None, task_type: str | None = None
    ) -> list[NumberedOutcome]:
        """Read the latest raw outcomes, latest first; from any thread.

        Parameters
        ----------
        before
            Only those of a smaller number.
        task_type
            Only those of this type.

        """

    def outcomes_of_task(self, task_id: str, limit: int) -> list[NumberedOutcome]:
        """Read the latest raw outcomes of one task, latest first; from any thread."""

    def q_values(self) -> list[QValue]:
        """Read the readable Q table, by task type and queue."""

    def add_prior(self, document: str) -> int:
        """Keep an import for the controller, at once or later; returns its number, from 1 on."""

    def priors(self, after: int) -> list[tuple[int, str]]:
        """Number and document of the imports later than ``after``, in order."""

    def prior_report(self, number: int) -> str | None:
        """What was taken of an import; None before a controller has looked at it."""

    def prune(self, keep_count: int) -> int:
        """Forget all but the latest raw outcomes, and old buckets; returns the outcomes dropped."""

    def close(self) -> None:
        """Close the connections; the next use opens new ones."""


def encode_state(policy_name: str, state: Mapping[str, Any]) -> str:
    """Write a policy's state as text that reads back as equal, bit for bit.

    Raises
    ------
    UnsavableStateError
        When the state holds what is no JSON value, such as NaN.

    """
    try:
        return json.dumps(state, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UnsavableStateError(
            f"The state of policy {policy_name} is not saved: {error}."
        ) from error


def format_of(state: Mapping[str, Any]) -> int:
    """The ``format`` that a policy's state names, 1 when it names none."""
    number = state.get("format", 1)
    return number if isinstance(number, int) else 1
