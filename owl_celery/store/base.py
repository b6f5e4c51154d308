"""What a store is: learned state and the stream cursor, moved on together or not at all."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, Protocol

from owl_celery.aggregates import Aggregates, Learned, QValue
from owl_celery.errors import UnsavableStateError
from owl_celery.types import Outcome

FIRST_CURSOR: Final = "0-0"
"""Cursor of a store that nothing was committed to: the begin of every Redis stream."""

MAX_Q_VALUES: Final = 100_000
"""Entries of the readable Q table that are kept, the latest changed."""


class Store(Protocol):
    """Keeps what was learned. Used by the controller only, from one thread at a time.

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

        Raises
        ------
        StaleCursorError
            When the store is not at ``expected_cursor``; nothing was written.
        UnsavableStateError
            When the state is not of JSON values; nothing was written, and all the rest can be.

        """

    def recent(self, limit: int) -> list[Outcome]:
        """Read the latest raw outcomes, oldest first."""

    def q_values(self) -> list[QValue]:
        """Read the readable Q table, by task type and queue."""

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
