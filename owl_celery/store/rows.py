"""Between values and rows: how each value is written to its table and read back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from functools import cache
from operator import attrgetter
from typing import Any, Final, Generic, TypeVar

from sqlalchemy import Connection, Select, Table, select
from sqlalchemy.dialects import postgresql, sqlite

from owl_celery.aggregates import (
    AlgorithmStats,
    AssignmentStats,
    CurvePoint,
    QValue,
    ServiceStats,
    TaskTypeStats,
    WorkerStats,
)
from owl_celery.store.models import (
    AlgorithmRow,
    AssignmentRow,
    CurveRow,
    LearnerRow,
    OutcomeRow,
    OwlModel,
    PolicyRow,
    QValueRow,
    ServiceRow,
    TaskTypeRow,
    WorkerRow,
)
from owl_celery.types import Outcome, TryState

Value = TypeVar("Value")
Insert = postgresql.Insert | sqlite.Insert


def table_of(model: type[OwlModel]) -> Table:
    """The table of a model."""
    return OwlModel.metadata.tables[str(model.__tablename__)]


@cache
def insert_into(table: Table, dialect: str) -> Insert:
    """An INSERT that can say what to do about a row that is there already."""
    return postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)


@cache
def upsert_into(table: Table, dialect: str) -> Insert:
    """An INSERT that replaces the row with the same primary key."""
    statement = insert_into(table, dialect)
    return statement.on_conflict_do_update(
        index_elements=list(table.primary_key),
        set_={c.name: statement.excluded[c.name] for c in table.columns if not c.primary_key},
    )


class Mapper(Generic[Value]):
    """Writes and reads the values of one kind, whose fields are the columns of a table.

    Parameters
    ----------
    kind
        A dataclass.
    model
        Its table, with ``namespace`` besides.

    """

    def __init__(self, kind: type[Value], model: type[OwlModel]) -> None:
        self.kind = kind
        self.table = table_of(model)
        self.names = tuple(field.name for field in fields(kind))  # type: ignore[arg-type]
        self._read_values = attrgetter(*self.names)

    def upsert(self, connection: Connection, namespace: str, values: Sequence[Value]) -> None:
        """Write values in the place of those with the same key."""
        if values:
            rows = [
                dict(zip(self.names, self._read_values(value), strict=True), namespace=namespace)
                for value in values
            ]
            connection.execute(upsert_into(self.table, connection.dialect.name), rows)

    def select(self, namespace: str) -> Select[Any]:
        """Query of the columns in order of the fields, in this namespace."""
        columns = [self.table.c[name] for name in self.names]
        return select(*columns).where(self.table.c.namespace == namespace)

    def all(self, connection: Connection, namespace: str) -> tuple[Value, ...]:
        """Read every value of a namespace."""
        rows = connection.execute(self.select(namespace))
        return tuple(self.kind(**dict(zip(self.names, row, strict=True))) for row in rows)


OUTCOME: Final = table_of(OutcomeRow)
LEARNER: Final = table_of(LearnerRow)
POLICY: Final = table_of(PolicyRow)

TASK_TYPES: Final = Mapper(TaskTypeStats, TaskTypeRow)
WORKERS: Final = Mapper(WorkerStats, WorkerRow)
ASSIGNMENTS: Final = Mapper(AssignmentStats, AssignmentRow)
SERVICES: Final = Mapper(ServiceStats, ServiceRow)
ALGORITHMS: Final = Mapper(AlgorithmStats, AlgorithmRow)
CURVE: Final = Mapper(CurvePoint, CurveRow)
Q_VALUES: Final = Mapper(QValue, QValueRow)

_OUTCOME_NAMES: Final = tuple(field.name for field in fields(Outcome))
_read_outcome = attrgetter(*_OUTCOME_NAMES)


def insert_outcomes(
    connection: Connection, namespace: str, first_number: int, outcomes: Sequence[Outcome]
) -> None:
    """Add outcomes, numbered in order; one whose key is there already is left out."""
    if not outcomes:
        return
    statement = insert_into(OUTCOME, connection.dialect.name).on_conflict_do_nothing()
    rows = [
        dict(
            zip(_OUTCOME_NAMES, _read_outcome(outcome), strict=True),
            state=outcome.state.value,
            key=outcome.key,
            namespace=namespace,
            number=number,
        )
        for number, outcome in enumerate(outcomes, first_number)
    ]
    connection.execute(statement, rows)


def latest_outcomes(connection: Connection, namespace: str, limit: int) -> list[Outcome]:
    """Read the outcomes with the highest numbers, the highest last."""
    query = (
        select(*(OUTCOME.c[name] for name in _OUTCOME_NAMES))
        .where(OUTCOME.c.namespace == namespace)
        .order_by(OUTCOME.c.number.desc())
        .limit(limit)
    )
    found = [dict(zip(_OUTCOME_NAMES, row, strict=True)) for row in connection.execute(query)]
    return [Outcome(**values | {"state": TryState(values["state"])}) for values in reversed(found)]
