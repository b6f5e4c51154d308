"""The store on SQLite or Postgres."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Engine, delete, func, select, update

from owl_celery.aggregates import Aggregates, Learned, QValue, SavedPolicy
from owl_celery.book import CURVE_BUCKETS
from owl_celery.errors import StaleCursorError
from owl_celery.sanity import is_text
from owl_celery.store import rows
from owl_celery.store.base import (
    FIRST_CURSOR,
    KEEP_Q_SECONDS,
    MAX_Q_VALUES,
    NO_REPORTS,
    NumberedOutcome,
    encode_state,
    format_of,
)
from owl_celery.store.engine import Database
from owl_celery.store.sessions import Sessions
from owl_celery.types import Outcome

logger = logging.getLogger(__name__)

KEYS_AT_ONCE: Final = 500
PRUNED_AT_ONCE: Final = 10_000
MAX_NUMBER: Final = 2**63 - 1


class SqlStore:
    """Keeps what one application learned in a database; see ``Store`` for the methods.

    It connects at first use in each process and brings the schema up to date then.

    Parameters
    ----------
    database
        Where it is, by ``database_of(settings)``.
    namespace
        Keeps applications that share a database apart.

    """

    def __init__(self, database: Database, namespace: str) -> None:
        self.database = database
        self.namespace = namespace
        self._sessions = Sessions(database)

    def load(self) -> Learned:
        """Read everything a controller continues from, all of it at one moment."""
        policy = rows.POLICY.c
        with self._sessions.reading() as connection:
            at = connection.execute(
                select(rows.LEARNER.c.cursor, rows.LEARNER.c.prior).where(
                    rows.LEARNER.c.namespace == self.namespace
                )
            ).one_or_none()
            saved = connection.execute(
                select(policy.name, policy.format, policy.state, policy.updated_at)
                .where(policy.namespace == self.namespace)
                .order_by(policy.commit_number.desc())
            ).all()
            aggregates = self._aggregates(connection)
        return Learned(
            cursor=FIRST_CURSOR if at is None else at.cursor,
            policies=tuple(filter(None, (_saved_policy(*row) for row in saved))),
            aggregates=aggregates,
            prior=0 if at is None else at.prior,
        )

    def _aggregates(self, connection: Connection) -> Aggregates:
        return Aggregates(
            task_types=rows.TASK_TYPES.all(connection, self.namespace),
            workers=rows.WORKERS.all(connection, self.namespace),
            assignments=rows.ASSIGNMENTS.all(connection, self.namespace),
            services=rows.SERVICES.all(connection, self.namespace),
            algorithms=rows.ALGORITHMS.all(connection, self.namespace),
            curve=rows.CURVE.all(connection, self.namespace),
        )

    def known(self, keys: Collection[str]) -> set[str]:
        """Find those ``Outcome.key`` of which an outcome is kept already."""
        # What no database can hold is in none, and asking for it would be an error.
        asked = [key for key in keys if is_text(key)]
        found: set[str] = set()
        if not asked:
            return found
        outcome = rows.OUTCOME.c
        with self._sessions.reading() as connection:
            for start in range(0, len(asked), KEYS_AT_ONCE):
                some = asked[start : start + KEYS_AT_ONCE]
                found.update(
                    connection.execute(
                        select(outcome.key).where(
                            outcome.namespace == self.namespace, outcome.key.in_(some)
                        )
                    ).scalars()
                )
        return found

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
        now = time.time()
        with self._sessions.writing() as connection:
            expected = expected_cursor, expected_prior
            moved = cursor, max(prior_reports, default=expected_prior)
            commits, counted = self._move(connection, expected, moved, len(outcomes), now)
            rows.insert_outcomes(connection, self.namespace, counted - len(outcomes) + 1, outcomes)
            if policy_state is not None:
                row = (self.namespace, policy_name, format_of(policy_state), text, commits, now)
                rows.POLICY_WRITER.write(connection, [row])
            rows.TASK_TYPES.write(connection, self.namespace, aggregates.task_types)
            rows.WORKERS.write(connection, self.namespace, aggregates.workers)
            rows.ASSIGNMENTS.write(connection, self.namespace, aggregates.assignments)
            rows.SERVICES.write(connection, self.namespace, aggregates.services)
            rows.ALGORITHMS.write(connection, self.namespace, aggregates.algorithms)
            rows.CURVE.write(connection, self.namespace, aggregates.curve)
            rows.Q_VALUES.write(connection, self.namespace, q_values)
            for number, report in prior_reports.items():
                connection.execute(
                    update(rows.PRIOR)
                    .where(rows.PRIOR.c.namespace == self.namespace, rows.PRIOR.c.number == number)
                    .values(document="", report=report, taken_at=now)
                )

    def _move(
        self,
        connection: Connection,
        expected: tuple[str, int],
        moved: tuple[str, int],
        count: int,
        now: float,
    ) -> tuple[int, int]:
        """Move cursor and import, which locks the row; returns the commits and outcomes so far.

        Raises
        ------
        StaleCursorError
            When they are not the expected ones.

        """
        learner = rows.LEARNER.c
        move = (
            update(rows.LEARNER)
            .where(
                learner.namespace == self.namespace,
                learner.cursor == expected[0],
                learner.prior == expected[1],
            )
            .values(
                cursor=moved[0],
                prior=moved[1],
                commits=learner.commits + 1,
                outcomes=learner.outcomes + count,
                updated_at=now,
            )
        )
        has_moved = connection.execute(move).rowcount
        if not has_moved and expected == (FIRST_CURSOR, 0):
            rows.LEARNER_WRITER.write(connection, [(self.namespace, FIRST_CURSOR, 0, 0, now, 0)])
            has_moved = connection.execute(move).rowcount
        if not has_moved:
            raise StaleCursorError
        commits, counted = connection.execute(
            select(learner.commits, learner.outcomes).where(learner.namespace == self.namespace)
        ).one()
        return commits, counted

    def recent(self, limit: int) -> list[Outcome]:
        """Read the latest raw outcomes, oldest first."""
        with self._sessions.reading() as connection:
            return rows.latest_outcomes(connection, self.namespace, max(limit, 0))

    def version(self) -> int:
        """Read a number that grows with every commit; 0 before the first."""
        learner = rows.LEARNER.c
        with self._sessions.reading() as connection:
            commits = connection.execute(
                select(learner.commits).where(learner.namespace == self.namespace)
            ).scalar_one_or_none()
        return commits or 0

    def aggregates(self) -> Aggregates:
        """Read all rows, without the states of policies; from any thread."""
        with self._sessions.reading() as connection:
            return self._aggregates(connection)

    def outcome_page(
        self, limit: int, before: int | None = None, task_type: str | None = None
    ) -> list[NumberedOutcome]:
        """Read the latest raw outcomes, latest first; from any thread."""
        outcome, conditions = rows.OUTCOME.c, []
        if before is not None:
            # No number is larger than this one, and none that is fits the database.
            conditions.append(outcome.number < min(before, MAX_NUMBER))
        if task_type is not None:
            conditions.append(outcome.task_type == task_type)
        return self._outcomes(conditions, limit, task_type)

    def outcomes_of_task(self, task_id: str, limit: int) -> list[NumberedOutcome]:
        """Read the latest raw outcomes of one task, latest first; from any thread."""
        return self._outcomes([rows.OUTCOME.c.task_id == task_id], limit, task_id)

    def _outcomes(
        self, conditions: Sequence[ColumnElement[bool]], limit: int, name: str | None
    ) -> list[NumberedOutcome]:
        if limit <= 0 or (name is not None and not is_text(name)):
            return []
        with self._sessions.reading() as connection:
            return rows.numbered_outcomes(connection, self.namespace, conditions, limit)

    def q_values(self) -> list[QValue]:
        """Read the readable Q table, by task type and queue."""
        with self._sessions.reading() as connection:
            found = rows.Q_VALUES.all(connection, self.namespace)
        return sorted(found, key=lambda entry: (entry.task_type, entry.queue))

    def add_prior(self, document: str) -> int:
        """Keep an import for the controller, at once or later; returns its number, from 1 on.

        A number is seen by others only when all before it are: whoever comes second waits for the
        first, finds the number taken, and takes the next.
        """
        prior = rows.PRIOR.c
        while True:
            with self._sessions.writing() as connection:
                last = connection.execute(
                    select(func.max(prior.number)).where(prior.namespace == self.namespace)
                ).scalar()
                number: int = (last or 0) + 1
                row = (self.namespace, number, document, time.time(), None, None)
                if rows.PRIOR_WRITER.write(connection, [row]):
                    return number

    def priors(self, after: int) -> list[tuple[int, str]]:
        """Number and document of the imports later than ``after``, in order."""
        prior = rows.PRIOR.c
        with self._sessions.reading() as connection:
            found = connection.execute(
                select(prior.number, prior.document)
                .where(prior.namespace == self.namespace, prior.number > after)
                .order_by(prior.number)
            ).all()
        return [(number, document) for number, document in found]

    def prior_report(self, number: int) -> str | None:
        """What was taken of an import; None before a controller has looked at it."""
        prior = rows.PRIOR.c
        with self._sessions.reading() as connection:
            report: str | None = connection.execute(
                select(prior.report).where(
                    prior.namespace == self.namespace, prior.number == number
                )
            ).scalar_one_or_none()
        return report

    def prune(self, keep_count: int) -> int:
        """Forget all but the latest raw outcomes, and old buckets; returns the outcomes dropped.

        Drops ten thousand outcomes a transaction, so that a commit never waits long for it.
        """
        outcome, learner = rows.OUTCOME.c, rows.LEARNER.c
        is_ours = outcome.namespace == self.namespace
        dropped = 0
        with self._sessions.reading() as connection:
            counted = connection.execute(
                select(learner.outcomes).where(learner.namespace == self.namespace)
            ).scalar_one_or_none()
            first = connection.execute(select(func.min(outcome.number)).where(is_ours)).scalar()
        last = (counted or 0) - keep_count
        while first is not None and first <= last:
            end = min(first + PRUNED_AT_ONCE - 1, last)
            with self._sessions.writing() as connection:
                dropped += connection.execute(
                    delete(rows.OUTCOME).where(is_ours, outcome.number <= end)
                ).rowcount
            first = end + 1
        self._prune_curve()
        self._prune_q_values()
        return dropped

    def _prune_curve(self) -> None:
        curve = rows.CURVE.table
        with self._sessions.writing() as connection:
            for length, keep_count in CURVE_BUCKETS.items():
                is_ours = (curve.c.namespace == self.namespace, curve.c.bucket_seconds == length)
                oldest = connection.execute(
                    select(curve.c.started_at)
                    .distinct()
                    .where(*is_ours)
                    .order_by(curve.c.started_at.desc())
                    .offset(keep_count - 1)
                    .limit(1)
                ).scalar_one_or_none()
                if oldest is not None:
                    connection.execute(delete(curve).where(*is_ours, curve.c.started_at < oldest))

    def _prune_q_values(self) -> None:
        table = rows.Q_VALUES.table
        is_ours = table.c.namespace == self.namespace
        with self._sessions.writing() as connection:
            oldest = connection.execute(
                select(table.c.changed_at)
                .where(is_ours)
                .order_by(table.c.changed_at.desc())
                .offset(MAX_Q_VALUES - 1)
                .limit(1)
            ).scalar_one_or_none()
            latest = connection.execute(
                select(func.max(table.c.changed_at)).where(is_ours)
            ).scalar()
            if latest is not None:
                keep_since = max(latest - KEEP_Q_SECONDS, oldest or 0.0)
                connection.execute(delete(table).where(is_ours, table.c.changed_at < keep_since))

    def engine(self) -> Engine:
        """The engine of this process, on a database that has the schema of this release."""
        return self._sessions.engine()

    def close(self) -> None:
        """Close the connections; the next use opens new ones."""
        self._sessions.close()


def _saved_policy(name: str, number: int, text: str, updated_at: float) -> SavedPolicy | None:
    """Read a saved state; None for one that somebody has damaged."""
    try:
        state = json.loads(text)
    except ValueError:
        state = None
    if isinstance(state, dict):
        return SavedPolicy(name, number, state, updated_at)
    logger.warning("The saved state of policy %s is no JSON object; it is not used", name)
    return None
